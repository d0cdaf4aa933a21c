//! The native command line, `plastron …`: reads the arguments, runs the command, and reports what went wrong.

pub(crate) mod command_line;
pub(crate) mod error_report;
pub(crate) mod print;
mod spire_peers;
pub(crate) mod usage;
mod values;

use std::ffi::OsString;
use std::time::Duration;

use config::fault::{Code, Fault};

use super::args::Args;
use super::command::{Command, Kind, TIMEOUT};
use super::context::{Context, Frontend};
use super::error::CliError;
use super::output::{self, Output};
use super::{duration, environment, on_runtime, socket};

/// Runs the command that the arguments name, the program's own name first.
pub(super) fn run(commands: &[Command], argv: &[OsString]) -> u8 {
    let line = command_line::command_line(commands);
    let matches = match line.clone().try_get_matches_from(argv) {
        Ok(matches) => matches,
        Err(error) => return usage::stopped(&error, argv, &line, commands),
    };
    let Some((command, own)) = values::find(commands, &matches) else {
        output::say(&usage::usage("no such command", "").to_string());
        return 2;
    };
    let args = values::read(command, own);
    let format = values::format(&args);
    let outcome = socket::resolve(command.endpoint(), &args, Frontend::Native, &environment)
        .map(|socket| socket::or_development(command.endpoint(), socket))
        .map(|socket| Context::new(Frontend::Native, command, format, socket))
        .and_then(|context| {
            let output = on_runtime(finished(command, &context, args))?;
            print::print(output, format)
        });
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

/// Runs the command. One that asks a daemon ends with Ctrl-C too, and a call when its time is over; commands that have
/// a time limit of SPIRE's, such as `api fetch`, keep it themselves.
async fn finished(command: &Command, context: &Context, args: Args) -> Result<Output, CliError> {
    let running = (command.run)(context.clone(), args.clone());
    let limit = match command.kind {
        Kind::Daemon | Kind::Local => return running.await,
        Kind::Watch(_) => Duration::ZERO,
        Kind::Call(_) if has_own_limit(command) => Duration::ZERO,
        Kind::Call(_) => args.get(TIMEOUT),
    };
    let over = async move {
        if limit.is_zero() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        // Polled first, and so listening before the command asks anybody: a Ctrl-C from then on is heard.
        biased;
        heard = tokio::signal::ctrl_c() => match heard {
            Ok(()) => Err(CliError::Interrupted),
            Err(error) => Err(CliError::failed(format!("cannot listen for Ctrl-C: {error}"))),
        },
        outcome = running => outcome,
        () = over => Err(Fault::new(Code::TimedOut, format!("no answer within {}", duration::go_text(limit)))
            .at(&context.socket.path)
            .hint("a longer time is given with --timeout")
            .into()),
    }
}

fn has_own_limit(command: &Command) -> bool {
    command
        .flags
        .iter()
        .any(|flag| flag.spire == TIMEOUT.spec.spire)
}
