//! `completions` and `man`: what shells and `man` read, made from the same descriptions as the commands.

use std::path::Path;

use clap::ValueEnum;
use clap_complete::Shell;

use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::commands;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::Flag;
use crate::cli::native::command_line::command_line;
use crate::cli::output::Output;

const SHELL: Flag<String> = Flag::word("shell", "SHELL", "The shell; bash when absent");
const DIRECTORY: Flag<String> = Flag::word(
    "directory",
    "DIRECTORY",
    "Where to write; the top page goes to standard output when absent",
);

pub(crate) const COMMAND: Command = Command::local(
    &["completions"],
    "Print the completion script of a shell: bash, zsh, fish, elvish or powershell",
    |context, args| Box::pin(std::future::ready(completions(&context, &args))),
)
.flags(&[SHELL.spec])
.examples(
    "\
  plastron completions bash > /etc/bash_completion.d/plastron",
);

pub(crate) const MAN_COMMAND: Command = Command::local(
    &["man"],
    "Write the manual pages of every command into a directory",
    |context, args| Box::pin(std::future::ready(man(&context, &args))),
)
.flags(&[DIRECTORY.spec])
.examples("  plastron man /usr/local/share/man/man1");

fn completions(_context: &Context, args: &Args) -> Result<Output, CliError> {
    let name = args.optional(SHELL).unwrap_or("bash");
    let shell = Shell::from_str(name, true).map_err(|_unknown| {
        CliError::usage(format!(
            "unknown shell {name:?}: expected bash, zsh, fish, elvish or powershell"
        ))
    })?;
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut command_line(&commands()),
        "plastron",
        &mut script,
    );
    Ok(Output::text(String::from_utf8_lossy(&script)))
}

fn man(_context: &Context, args: &Args) -> Result<Output, CliError> {
    let line = command_line(&commands());
    let failed =
        |error: std::io::Error| CliError::failed(format!("cannot write the manual pages: {error}"));
    match args.optional(DIRECTORY) {
        Some(directory) => {
            std::fs::create_dir_all(directory).map_err(failed)?;
            clap_mangen::generate_to(line, Path::new(directory)).map_err(failed)?;
            Ok(Output::text(format!(
                "manual pages written to {directory}\n"
            )))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(line)
                .render(&mut page)
                .map_err(failed)?;
            Ok(Output::text(String::from_utf8_lossy(&page)))
        }
    }
}
