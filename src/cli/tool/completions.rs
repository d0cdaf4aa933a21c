//! `completions` and `man`: what shells and `man` read, made from the same descriptions as the commands.

use std::path::Path;

use clap::ValueEnum;
use clap_complete::Shell;

use crate::cli::args::Args;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};
use crate::cli::{commands, native};

const SHELL: &[Flag] = &[flag(
    "shell",
    "SHELL",
    Kind::Word,
    "The shell; bash when absent",
)];

const DIRECTORY: &[Flag] = &[flag(
    "directory",
    "DIRECTORY",
    Kind::Word,
    "Where to write; the top page goes to standard output when absent",
)];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Plastron,
        path: &["completions"],
        about: "Print the completion script of a shell: bash, zsh, fish, elvish or powershell",
        flags: SHELL,
        endpoint: Endpoint::None,
        formats: false,
        surface: Surface::Native,
        run: |context, args| Box::pin(std::future::ready(completions(&context, &args))),
    }
}

pub(crate) fn man_command() -> Command {
    Command {
        path: &["man"],
        about: "Write the manual pages of every command into a directory",
        flags: DIRECTORY,
        run: |context, args| Box::pin(std::future::ready(man(&context, &args))),
        ..command()
    }
}

fn completions(_context: &Context, args: &Args) -> Result<Output, CliError> {
    let name = args.optional("shell").unwrap_or("bash");
    let shell = Shell::from_str(name, true).map_err(|_unknown| {
        CliError::usage(format!(
            "unknown shell {name:?}: expected bash, zsh, fish, elvish or powershell"
        ))
    })?;
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut native::command_line(&commands()),
        "plastron",
        &mut script,
    );
    Ok(Output::text(String::from_utf8_lossy(&script)))
}

fn man(_context: &Context, args: &Args) -> Result<Output, CliError> {
    let line = native::command_line(&commands());
    let failed =
        |error: std::io::Error| CliError::failed(format!("cannot write the manual pages: {error}"));
    match args.optional("directory") {
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
