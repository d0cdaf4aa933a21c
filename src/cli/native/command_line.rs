//! The native command line as clap has it: built from the rows, with GNU-style flags, durations and output formats.

use std::ffi::OsString;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, Command as ClapCommand};

use crate::cli::command::{Command, GROUPS, native_flags};
use crate::cli::flag::{FlagKind, FlagSpec};
use crate::cli::{duration, timefmt};

/// Below the list of commands.
const OVERVIEW: &str = "\
First identity, in two terminals:
  plastron dev
  plastron run --id web -- CMD

A command is explained by `plastron help COMMAND`, an error code by `plastron help PLA-nnnn`.

Exit codes: 0 done, 1 internal fault, 2 usage or configuration, 3 not found, 4 denied, 5 conflict,
6 unreachable, 7 a check failed, 8 no answer in time, 130 interrupted.

Called as spire-server or spire-agent (a link to this program), it takes SPIRE's flags instead.";

/// The whole native command line.
pub(crate) fn command_line(commands: &[Command]) -> ClapCommand {
    let root = ClapCommand::new("plastron")
        .version(env!("CARGO_PKG_VERSION"))
        .about("SPIFFE identity for workloads: server, agent and tools in one program")
        .after_help(unwrapped(OVERVIEW))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .max_term_width(100);
    commands.iter().fold(root, |root, command| {
        insert(root, command, &command.words(), 0)
    })
}

/// Puts a command below `parent`, which its first `depth` words name, and makes the groups on its way.
fn insert(
    parent: ClapCommand,
    command: &Command,
    words: &[&'static str],
    depth: usize,
) -> ClapCommand {
    let Some(word) = words.get(depth).copied() else {
        return parent;
    };
    if depth + 1 == words.len() {
        return parent.subcommand(leaf(word, command));
    }
    if parent.find_subcommand(word).is_some() {
        return parent.mut_subcommand(word, |group| insert(group, command, words, depth + 1));
    }
    let group = ClapCommand::new(word)
        .about(group_about(words.get(..=depth).unwrap_or_default()))
        .subcommand_required(true)
        .arg_required_else_help(true);
    parent.subcommand(insert(group, command, words, depth + 1))
}

fn group_about(words: &[&str]) -> &'static str {
    GROUPS
        .iter()
        .find(|group| group.words == words)
        .map_or("", |group| group.about)
}

fn leaf(word: &'static str, command: &Command) -> ClapCommand {
    let mut leaf = ClapCommand::new(word)
        .about(command.about)
        .visible_aliases(command.aliases);
    for flag in &native_flags(command) {
        leaf = leaf.arg(argument(flag));
        if flag.positional {
            leaf = leaf.arg(
                Arg::new(positional(flag))
                    .value_name(flag.value_name)
                    .help(format!("The same as --{}", flag.native))
                    .conflicts_with(flag.spire),
            );
        }
    }
    match command.examples {
        "" => leaf,
        text => leaf.after_help(unwrapped(text)),
    }
}

/// clap's key of a flag's value that is given without its name: other than the key of the flag.
pub(super) const fn positional(flag: &FlagSpec) -> &'static str {
    flag.value_name
}

/// Lines of one paragraph joined, so that clap wraps them to the width of the terminal. Indented lines are typed as they
/// are.
fn unwrapped(text: &str) -> String {
    let mut joined = String::new();
    let mut open = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if !joined.is_empty() {
            joined.push(if open && is_prose { ' ' } else { '\n' });
        }
        joined.push_str(line);
        open = is_prose;
    }
    joined
}

fn argument(flag: &FlagSpec) -> Arg {
    let mut arg = Arg::new(flag.spire).help(flag.help);
    match flag.kind {
        FlagKind::Word => return arg.value_name(flag.native),
        FlagKind::Words => return arg.value_name(flag.native).num_args(0..),
        FlagKind::Rest => {
            return arg
                .value_name(flag.native)
                .num_args(1..)
                .value_parser(clap::value_parser!(OsString))
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .required(true);
        }
        _ => arg = arg.long(flag.native),
    }
    arg = match flag.kind {
        FlagKind::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("true|false")
            .default_missing_value("true")
            .value_parser(clap::value_parser!(bool))
            .hide_possible_values(true),
        FlagKind::Text => arg.action(ArgAction::Set).value_name(flag.value_name),
        FlagKind::Time => arg
            .action(ArgAction::Set)
            .value_name("TIME")
            .value_parser(unix_seconds)
            .allow_hyphen_values(true),
        FlagKind::Lifetime => arg
            .action(ArgAction::Set)
            .value_name("DURATION")
            .value_parser(seconds),
        FlagKind::Format => arg
            .action(ArgAction::Set)
            .short('o')
            .value_name("FORMAT")
            .value_parser(["table", "json", "yaml"])
            .hide_possible_values(true)
            .help("Output format: table, json or yaml"),
        FlagKind::Duration | FlagKind::Timeout => arg
            .action(ArgAction::Set)
            .value_name("DURATION")
            .value_parser(go_duration),
        FlagKind::List | FlagKind::CommaList => arg
            .action(ArgAction::Append)
            .value_name(flag.value_name)
            .value_parser(NonEmptyStringValueParser::new()),
        FlagKind::Word | FlagKind::Words | FlagKind::Rest => arg,
    };
    if !flag.default.is_empty() {
        arg = arg.default_value(flag.default);
    }
    arg
}

fn unix_seconds(text: &str) -> Result<i64, String> {
    text.parse()
        .ok()
        .or_else(|| timefmt::parse_rfc3339(text))
        .ok_or_else(|| "expected a time such as 2026-11-25T12:00:00Z, or Unix seconds".to_owned())
}

fn seconds(text: &str) -> Result<i64, String> {
    duration::parse_seconds(text)
        .filter(|seconds| *seconds >= 0)
        .ok_or_else(|| "expected a lifetime in whole seconds, such as 90, 15m or 1h30m".to_owned())
}

fn go_duration(text: &str) -> Result<std::time::Duration, String> {
    let bare = || text.parse::<u32>().ok();
    duration::parse_native(text)
        .or_else(|| bare().map(|seconds| std::time::Duration::from_secs(seconds.into())))
        .ok_or_else(|| "expected a duration, such as 90s, 15m, 1h30m or 30d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{command_line, unwrapped};
    use crate::cli::commands;

    #[test]
    fn the_whole_command_line_is_sound() {
        command_line(&commands()).debug_assert();
    }

    #[test]
    fn a_paragraph_of_help_is_one_line_for_clap_to_wrap() {
        assert_eq!(unwrapped("a\nb\n\n  c\n  d\ne"), "a b\n\n  c\n  d\ne");
    }
}
