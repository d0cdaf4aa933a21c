//! The commands of `plastron` itself.

mod completions;
mod dev;
mod executable;
mod help;
pub(crate) mod run;
pub(crate) mod sockets;
mod version;

use super::command::Command;

pub(super) const COMMANDS: &[Command] = &[
    dev::COMMAND,
    run::COMMAND,
    help::COMMAND,
    completions::COMMAND,
    completions::MAN_COMMAND,
    version::COMMAND,
];
