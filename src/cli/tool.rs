//! The commands of `plastron` itself.

mod completions;
mod dev;
mod executable;
mod help;
mod run;
pub(crate) mod sockets;
mod version;

use super::spec::Command;

pub(super) fn commands() -> Vec<Command> {
    vec![
        dev::command(),
        run::command(),
        help::command(),
        completions::command(),
        completions::man_command(),
        version::command(),
    ]
}
