//! The program called as `spire-server` or `spire-agent`: SPIRE's command tree, flags, texts and exit codes (0 done,
//! 1 any failure, 127 no such command).

pub(crate) mod go_flags;
mod go_syntax;
pub(crate) mod print;

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::args::Args;
use super::command::{Command, Endpoint, OUTPUT, Prints, Program};
use super::context::{Context, Format, Frontend};
use super::error::CliError;
use super::flag::Surface;
use super::{environment, on_runtime, output, socket};
use go_flags::Stop;

/// Runs the command that the arguments after the program's name stand for. SPIRE's flags are text: an argument that is
/// not is refused, since a changed one would name something else.
pub(super) fn run(commands: &[Command], program: Program, argv: &[OsString]) -> u8 {
    let words: Result<Vec<String>, &OsString> = argv
        .iter()
        .map(|word| word.to_str().map(str::to_owned).ok_or(word))
        .collect();
    let words = match words {
        Ok(words) => words,
        Err(word) => {
            output::say(&format!("Error: the argument {word:?} is not UTF-8"));
            return 1;
        }
    };
    match read(commands, program, &words, &environment) {
        Call::Stop { out, err, code } => {
            if !err.is_empty() {
                output::say(err.trim_end());
            }
            if output::write_out(&out).is_err() {
                1
            } else {
                code
            }
        }
        Call::Run(command, context, args) => {
            let outcome = on_runtime((command.run)(context.clone(), args))
                .and_then(|output| print::print(output, context.format));
            match outcome {
                Ok(()) => 0,
                Err(error) => fail(command, &context.explained(error)),
            }
        }
    }
}

/// What the arguments amount to.
enum Call<'c> {
    Run(&'c Command, Context, Args),
    /// Print this and end with this exit code.
    Stop {
        out: String,
        err: String,
        code: u8,
    },
}

/// Reads the arguments after the program's name.
fn read<'c>(
    commands: &'c [Command],
    program: Program,
    argv: &[String],
    env: socket::Env<'_>,
) -> Call<'c> {
    let ours: Vec<&Command> = commands
        .iter()
        .filter(|command| command.program == program && command.surface == Surface::Both)
        .collect();
    if let Some("-version" | "--version" | "-v") = argv.first().map(String::as_str) {
        return Call::Stop {
            out: format!("{}\n", version()),
            err: String::new(),
            code: 0,
        };
    }
    let words = argv
        .iter()
        .take_while(|word| !word.starts_with('-'))
        .count();
    // The longest run of words that is a command; `api fetch` is `api fetch x509`, as SPIRE has it.
    for length in (1..=words.min(3)).rev() {
        let path: Vec<&str> = argv.iter().take(length).map(String::as_str).collect();
        let wanted: &[&str] = if path == ["api", "fetch"] {
            &["api", "fetch", "x509"]
        } else {
            &path
        };
        if let Some(command) = ours.iter().find(|command| command.path == wanted) {
            return leaf(command, argv.get(length..).unwrap_or_default(), env);
        }
    }
    let group: Vec<&str> = argv.iter().take(words).map(String::as_str).collect();
    let known = !group.is_empty() && ours.iter().any(|command| command.path.starts_with(&group));
    let code = match (go_flags::wants_help(argv), known) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 127,
    };
    help(program, &ours, if known { &group } else { &[] }, code)
}

fn leaf<'c>(command: &'c Command, argv: &[String], env: socket::Env<'_>) -> Call<'c> {
    if go_flags::wants_help(argv) {
        return Call::Stop {
            out: String::new(),
            err: format!("{}flag: help requested", go_flags::help(command)),
            code: 0,
        };
    }
    let args = match go_flags::parse(command, argv) {
        Ok(args) => args,
        Err(Stop(text)) => {
            return Call::Stop {
                out: String::new(),
                err: text,
                code: 1,
            };
        }
    };
    let format = if command.prints == Prints::Data && args.get(OUTPUT) == "json" {
        Format::Json
    } else {
        Format::Pretty
    };
    match socket::resolve(command.endpoint(), &args, Frontend::Spire, env) {
        Ok(socket) => Call::Run(
            command,
            Context::new(Frontend::Spire, command, format, socket),
            args,
        ),
        Err(error) => Call::Stop {
            out: String::new(),
            err: format!("Error: {error}\n"),
            code: 1,
        },
    }
}

/// Ends a failed command as SPIRE's does: `Error: …` for the server's commands and the agent's admin commands, the
/// bare text for `spire-agent api …` and its health check.
fn fail(command: &Command, error: &CliError) -> u8 {
    let bare = command.endpoint() == Some(Endpoint::Workload);
    match error {
        CliError::Silent => {}
        CliError::Fault(_) | CliError::Faults(_) => output::say(&error.to_string()),
        _ if bare => output::say(&error.to_string()),
        _ => output::say(&format!("Error: {error}")),
    }
    1
}

fn version() -> String {
    format!("{} (plastron)", env!("CARGO_PKG_VERSION"))
}

/// The list of what can follow the words so far.
fn help<'c>(program: Program, commands: &[&Command], group: &[&str], code: u8) -> Call<'c> {
    let mut next: BTreeMap<&str, &str> = BTreeMap::new();
    for command in commands
        .iter()
        .filter(|command| command.path.starts_with(group))
    {
        if let Some(word) = command.path.get(group.len()) {
            let leaf = command.path.len() == group.len() + 1;
            let about = next.entry(*word).or_default();
            if leaf {
                *about = command.about;
            }
        }
    }
    let width = next.keys().map(|word| word.len()).max().unwrap_or(0);
    let lines: String = next
        .iter()
        .map(|(word, about)| format!("    {word:<width$}    {about}\n"))
        .collect();
    let text = if group.is_empty() {
        format!(
            "Usage: {} [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n{lines}\n",
            program.spire_name()
        )
    } else {
        format!(
            "{} {} needs one of these commands:\n\nSubcommands:\n{lines}",
            program.spire_name(),
            group.join(" ")
        )
    };
    if code == 0 {
        Call::Stop {
            out: text,
            err: String::new(),
            code,
        }
    } else {
        Call::Stop {
            out: String::new(),
            err: text,
            code,
        }
    }
}
