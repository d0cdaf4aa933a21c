//! The commands of `plastron` itself.

mod completions;
mod help;

use super::spec::Command;

pub(super) fn commands() -> Vec<Command> {
    vec![
        help::command(),
        completions::command(),
        completions::man_command(),
    ]
}
