//! The command line: `command.rs` says what a command is, one file a command below; `native` and `spire` are the two
//! command lines that read arguments and report errors; `output.rs` alone prints.

mod agent;
mod args;
mod command;
mod context;
mod daemon;
mod debug;
mod duration;
mod error;
mod flag;
mod healthcheck;
mod ids;
mod json_input;
mod logger;
mod native;
mod output;
mod pem;
mod selectors;
mod server;
mod socket;
mod spire;
mod timefmt;
mod tool;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use command::{Command, Program};
use error::CliError;

/// Every command of both command lines, in the order in which help lists them.
fn commands() -> Vec<Command> {
    [
        server::COMMANDS,
        &logger::SERVER_COMMANDS,
        &[healthcheck::SERVER_COMMAND, debug::SERVER_COMMAND],
        agent::COMMANDS,
        &logger::AGENT_COMMANDS,
        &[healthcheck::AGENT_COMMAND, debug::AGENT_COMMAND],
        tool::COMMANDS,
    ]
    .concat()
}

/// Runs the program with the arguments it was called with; `argv[0]` chooses the command line.
pub(crate) fn main(argv: &[OsString]) -> ExitCode {
    let called_as = argv
        .first()
        .and_then(|path| Path::new(path).file_name())
        .and_then(OsStr::to_str);
    let rest = argv.get(1..).unwrap_or_default();
    let code = match called_as {
        Some("spire-server") => spire::run(&commands(), Program::Server, rest),
        Some("spire-agent") => spire::run(&commands(), Program::Agent, rest),
        _ => native::run(&commands(), argv),
    };
    ExitCode::from(code)
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs a command's future on a runtime of its own. What it leaves running ends with the process.
fn on_runtime<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}
