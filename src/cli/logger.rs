//! `logger get`, `logger set` and `logger reset` of both daemons, over their admin sockets.

use proto::spire::api::agent::logger::v1 as agent_api;
use proto::spire::api::server::logger::v1 as server_api;
use proto::spire::api::types::{LogLevel, Logger};
use tonic::Status;

use super::args::Args;
use super::command::{Command, Endpoint, Kind, Program};
use super::context::Context;
use super::error::CliError;
use super::flag::Flag;
use super::output::{Output, Table};

const LEVEL: Flag<String> = Flag::text(
    "level",
    "level",
    "The level: panic, fatal, error, warn, info, debug or trace",
)
.value("LEVEL");

/// The same three commands for each daemon, on its own admin socket.
pub(crate) const SERVER_COMMANDS: [Command; 3] = [
    get(Program::Server, Endpoint::ServerAdmin),
    set_level(Program::Server, Endpoint::ServerAdmin),
    reset(Program::Server, Endpoint::ServerAdmin),
];

pub(crate) const AGENT_COMMANDS: [Command; 3] = [
    get(Program::Agent, Endpoint::AgentAdmin),
    set_level(Program::Agent, Endpoint::AgentAdmin),
    reset(Program::Agent, Endpoint::AgentAdmin),
];

const fn get(program: Program, endpoint: Endpoint) -> Command {
    let about = "Show the log level";
    Command::new(
        program,
        Kind::Call(endpoint),
        &["logger", "get"],
        about,
        |context, _args| Box::pin(change(context, Change::None)),
    )
}

const fn set_level(program: Program, endpoint: Endpoint) -> Command {
    let about = "Set the log level until the next start";
    Command::new(
        program,
        Kind::Call(endpoint),
        &["logger", "set"],
        about,
        |context, args| Box::pin(set(context, args)),
    )
    .flags(&[LEVEL.spec])
}

const fn reset(program: Program, endpoint: Endpoint) -> Command {
    let about = "Restore the startup log level";
    Command::new(
        program,
        Kind::Call(endpoint),
        &["logger", "reset"],
        about,
        |context, _args| Box::pin(change(context, Change::Reset)),
    )
}

#[derive(Clone, Copy, Debug)]
enum Change {
    None,
    Set(LogLevel),
    Reset,
}

async fn set(context: Context, args: Args) -> Result<Output, CliError> {
    let text = args.get(LEVEL);
    if text.is_empty() {
        return Err(CliError::usage_of(
            "a value (-level) must be set",
            "a value (--level) must be set",
        ));
    }
    match level(&text.to_lowercase()) {
        Some(level) => change(context, Change::Set(level)).await,
        None => Err(CliError::usage(format!(
            "the value {text:?} is not a valid setting"
        ))),
    }
}

/// The level of a name; `warning` is the name that SPIRE prints, `warn` the one that it documents.
fn level(text: &str) -> Option<LogLevel> {
    Some(match text {
        "panic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        "error" => LogLevel::Error,
        "warn" | "warning" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        _ => return None,
    })
}

const fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Unspecified => "unspecified",
        LogLevel::Panic => "panic",
        LogLevel::Fatal => "fatal",
        LogLevel::Error => "error",
        LogLevel::Warn => "warning",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

async fn change(context: Context, change: Change) -> Result<Output, CliError> {
    let words = match change {
        Change::None => "error fetching logger",
        Change::Set(_) => "failed to set log level",
        Change::Reset => "failed to reset logger",
    };
    let asked = match context.program {
        Program::Server => ask_server(&context, change).await?,
        Program::Agent | Program::Plastron => ask_agent(&context, change).await?,
    };
    let logger = asked.map_err(|status| CliError::status(words, status))?;
    let (current, launch) = (name(logger.current_level()), name(logger.launch_level()));
    let text = format!("Logger Level : {current}\nLaunch Level : {launch}\n\n");
    let table = Table {
        headings: vec!["LEVEL", "AT START"],
        rows: vec![vec![current.to_owned(), launch.to_owned()]],
    };
    Output::text_and_table(text, table).reply("spire.api.types.Logger", &logger)
}

async fn ask_server(context: &Context, change: Change) -> Result<Result<Logger, Status>, CliError> {
    let mut client = server_api::logger_client::LoggerClient::new(context.channel().await?);
    let reply = match change {
        Change::None => client.get_logger(server_api::GetLoggerRequest {}).await,
        Change::Set(level) => {
            let new_level = level.into();
            client
                .set_log_level(server_api::SetLogLevelRequest { new_level })
                .await
        }
        Change::Reset => {
            client
                .reset_log_level(server_api::ResetLogLevelRequest {})
                .await
        }
    };
    Ok(reply.map(tonic::Response::into_inner))
}

async fn ask_agent(context: &Context, change: Change) -> Result<Result<Logger, Status>, CliError> {
    let mut client = agent_api::logger_client::LoggerClient::new(context.channel().await?);
    let reply = match change {
        Change::None => client.get_logger(agent_api::GetLoggerRequest {}).await,
        Change::Set(level) => {
            let new_level = level.into();
            client
                .set_log_level(agent_api::SetLogLevelRequest { new_level })
                .await
        }
        Change::Reset => {
            client
                .reset_log_level(agent_api::ResetLogLevelRequest {})
                .await
        }
    };
    Ok(reply.map(tonic::Response::into_inner))
}

#[cfg(test)]
mod tests {
    use super::{level, name};

    #[test]
    fn every_level_that_is_printed_can_be_set() {
        for text in [
            "panic", "fatal", "error", "warning", "info", "debug", "trace",
        ] {
            assert_eq!(name(level(text).unwrap()), text);
        }
        for text in ["", "verbose", "INFO ", "0"] {
            assert_eq!(level(text), None, "{text:?}");
        }
    }
}
