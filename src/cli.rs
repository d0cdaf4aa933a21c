//! The command line: which command the arguments name, and running it. `spec.rs` says what a command is; one file a
//! command below; `output.rs` alone prints.

mod agent;
mod args;
mod context;
mod daemon;
mod duration;
mod error;
mod go_flags;
mod healthcheck;
mod ids;
mod moment;
mod native;
mod output;
mod pem;
mod selectors;
mod server;
mod shim;
mod socket;
mod spec;
mod tool;

use std::process::ExitCode;

use context::{Context, Face};
use error::CliError;
use spec::{Command, Program};

/// Every command of both programs.
fn commands() -> Vec<Command> {
    let mut commands = server::commands();
    commands.extend(agent::commands());
    commands.extend(tool::commands());
    commands.push(healthcheck::server_command());
    commands.push(healthcheck::agent_command());
    commands
}

/// Runs the program with the arguments it was called with; `argv[0]` chooses the face.
pub(crate) fn main(argv: &[String]) -> ExitCode {
    let called_as = argv
        .first()
        .map_or("", |path| path.rsplit('/').next().unwrap_or_default());
    let rest = argv.get(1..).unwrap_or_default();
    let code = match called_as {
        "spire-server" => run_shim(Program::Server, rest),
        "spire-agent" => run_shim(Program::Agent, rest),
        _ => run_native(argv),
    };
    ExitCode::from(code)
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
        shim::Call::Run(command, context, args) => match execute(command, context, args) {
            Ok(()) => 0,
            Err(error) => shim::fail(command, &error),
        },
    }
}

fn run_native(argv: &[String]) -> u8 {
    let commands = commands();
    let matches = match native::command_line(&commands).try_get_matches_from(argv) {
        Ok(matches) => matches,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            return if error.print().is_ok() { code } else { 1 };
        }
    };
    let Some((command, own)) = native::find(&commands, &matches) else {
        output::say("error: no such command; see `plastron --help`");
        return 2;
    };
    let args = native::read(command, own);
    let prepared = native::format(&args).and_then(|format| {
        let socket = socket::resolve(command.endpoint, &args, &environment)?;
        Ok(Context::new(
            Face::Native,
            command.program,
            command.endpoint,
            format,
            socket,
        ))
    });
    match prepared.and_then(|context| execute(command, context, args)) {
        Ok(()) => 0,
        Err(error) => {
            if !matches!(error, CliError::Silent) {
                output::say(&error.house(command.program));
            }
            error.exit_code()
        }
    }
}

/// Runs one command to its end on a runtime of its own and prints what it has to say.
fn execute(command: &Command, context: Context, args: args::Args) -> Result<(), CliError> {
    let (face, format) = (context.face, context.format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on((command.run)(context, args));
    runtime.shutdown_background();
    output::print(result?, face, format)
}
