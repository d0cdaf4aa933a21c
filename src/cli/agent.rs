//! The agent's commands, one file each.

mod api_fetch_jwt;
mod api_fetch_x509;
mod run;
mod workload;

use super::spec::Command;

pub(super) fn commands() -> Vec<Command> {
    vec![
        api_fetch_jwt::fetch_command(),
        api_fetch_x509::command(),
        api_fetch_jwt::validate_command(),
        api_fetch_x509::watch_command(),
        run::command(),
        run::validate_command(),
    ]
}
