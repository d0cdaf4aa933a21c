//! The command line: which command the arguments name, and running it. `spec.rs` says what a command is; one file a
//! command below; `output.rs` alone prints.

mod agent;
mod args;
mod context;
mod daemon;
mod debug;
mod duration;
mod error;
mod error_report;
mod examples;
mod go_flags;
mod healthcheck;
mod ids;
mod json_input;
mod logger;
mod native;
mod output;
mod pem;
mod selectors;
mod server;
mod shim;
mod socket;
mod spec;
mod timefmt;
mod tool;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use args::Args;
use config::fault::{Code, Fault};
use context::{Context, Face};
use error::CliError;
use output::Output;
use spec::{Command, Endpoint, Program};

/// Every command of both programs.
fn commands() -> Vec<Command> {
    let mut commands = server::commands();
    commands.extend(agent::commands());
    commands.extend(tool::commands());
    commands.extend(logger::commands());
    commands.push(healthcheck::server_command());
    commands.push(healthcheck::agent_command());
    commands.push(debug::server_command());
    commands.push(debug::agent_command());
    commands
}

/// Runs the program with the arguments it was called with; `argv[0]` chooses the face.
pub(crate) fn main(argv: &[OsString]) -> ExitCode {
    let called_as = argv
        .first()
        .and_then(|path| Path::new(path).file_name())
        .and_then(OsStr::to_str);
    let rest = argv.get(1..).unwrap_or_default();
    let code = match called_as {
        Some("spire-server") => of_shim(Program::Server, rest),
        Some("spire-agent") => of_shim(Program::Agent, rest),
        _ => run_native(argv),
    };
    ExitCode::from(code)
}

/// The shims' flags are text. An argument that is not is refused: a changed one would name something else.
fn of_shim(program: Program, argv: &[OsString]) -> u8 {
    let words: Result<Vec<String>, &OsString> = argv
        .iter()
        .map(|word| word.to_str().map(str::to_owned).ok_or(word))
        .collect();
    match words {
        Ok(words) => run_shim(program, &words),
        Err(word) => {
            output::say(&format!("Error: the argument {word:?} is not UTF-8"));
            1
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn run_shim(program: Program, argv: &[String]) -> u8 {
    let commands = commands();
    match shim::read(&commands, program, argv, &environment) {
        shim::Call::Stop { out, err, code } => {
            if !err.is_empty() {
                output::say(err.trim_end());
            }
            if output::write_out(&out).is_err() {
                1
            } else {
                code
            }
        }
        shim::Call::Run(command, context, args) => match execute(command, &context, args) {
            Ok(()) => 0,
            Err(error) => shim::fail(command, &error),
        },
    }
}

fn run_native(argv: &[OsString]) -> u8 {
    let commands = commands();
    let line = native::command_line(&commands);
    let matches = match line.clone().try_get_matches_from(argv) {
        Ok(matches) => matches,
        Err(error) => return native::stopped(&error, argv, &line, &commands),
    };
    let Some((command, own)) = native::find(&commands, &matches) else {
        output::say(&error_report::usage("no such command", "").to_string());
        return 2;
    };
    let args = native::read(command, own);
    let format = native::format(&args);
    let outcome = socket::resolve(command.endpoint, &args, Face::Native, &environment)
        .map(|socket| socket::or_development(command.endpoint, socket))
        .map(|socket| Context::new(Face::Native, command, format, socket))
        .and_then(|context| execute(command, &context, args));
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            let (text, code) = error_report::report(&error, command, format);
            if let Some(text) = text {
                output::say(&text);
            }
            code
        }
    }
}

/// Runs one command to its end on a runtime of its own and prints what it has to say.
fn execute(command: &Command, context: &Context, args: Args) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
    let result = if context.face == Face::Native && command.endpoint != Endpoint::None {
        runtime.block_on(client(command, context, args))
    } else {
        runtime.block_on((command.run)(context.clone(), args))
    };
    runtime.shutdown_background();
    match result {
        Ok(output) => output::print(output, context.face, context.format),
        Err(error) => Err(context.explained(error)),
    }
}

/// A native command that asks a daemon: it ends with Ctrl-C, and when its time is over. Commands that have a time
/// limit of SPIRE's, such as `api fetch`, keep it themselves.
async fn client(command: &Command, context: &Context, args: Args) -> Result<Output, CliError> {
    let own = command.flags.iter().any(|flag| flag.spire == "timeout");
    let limit = if args.has("timeout") {
        args.duration("timeout")
    } else {
        Duration::ZERO
    };
    let running = (command.run)(context.clone(), args);
    let over = async move {
        if own || limit.is_zero() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        outcome = running => outcome,
        () = over => Err(Fault::new(Code::TimedOut, format!("no answer within {}", duration::go_text(limit)))
            .at(&context.socket.path)
            .hint("a longer time is given with --timeout")
            .into()),
        heard = tokio::signal::ctrl_c() => match heard {
            Ok(()) => Err(CliError::Interrupted),
            Err(error) => Err(CliError::failed(format!("cannot listen for Ctrl-C: {error}"))),
        },
    }
}
