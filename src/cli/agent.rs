//! The agent's commands, one file each.

mod api_fetch_jwt;
mod api_fetch_x509;
mod run;
mod workload;

use super::command::Command;

pub(super) const COMMANDS: &[Command] = &[
    api_fetch_jwt::FETCH_COMMAND,
    api_fetch_x509::COMMAND,
    api_fetch_jwt::VALIDATE_COMMAND,
    api_fetch_x509::WATCH_COMMAND,
    run::COMMAND,
    run::VALIDATE_COMMAND,
];
