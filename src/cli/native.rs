//! The native command line: clap commands built from the same descriptions as the shims, with GNU-style flags,
//! durations and our own output formats.

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command as ClapCommand};

use super::args::Args;
use super::context::Format;
use super::duration;
use super::error::CliError;
use super::spec::{Command, Flag, Kind, Program, Surface, shared_flags};

/// The whole native command line.
pub(crate) fn command_line(commands: &[Command]) -> ClapCommand {
    let mut root = ClapCommand::new("plastron")
        .version(env!("CARGO_PKG_VERSION"))
        .about("SPIFFE identity for workloads: server, agent and tools in one program")
        .after_help("First SVID: `plastron dev`, then `plastron run --id web -- CMD`. A code is explained by `plastron help PLA-nnnn`.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .max_term_width(100);
    for program in [Program::Server, Program::Agent] {
        let about = match program {
            Program::Server => "Run and administer the identity server",
            Program::Agent | Program::Plastron => "Run the node agent and use its Workload API",
        };
        let mut top = ClapCommand::new(program.word())
            .about(about)
            .subcommand_required(true)
            .arg_required_else_help(true);
        for command in commands.iter().filter(|command| command.program == program) {
            top = insert(top, command, command.path);
        }
        root = root.subcommand(top);
    }
    for command in commands
        .iter()
        .filter(|command| command.program == Program::Plastron)
    {
        root = insert(root, command, command.path);
    }
    root
}

/// Puts a command below `parent`, making the groups on its way.
fn insert(parent: ClapCommand, command: &Command, path: &[&'static str]) -> ClapCommand {
    match path {
        [] => parent,
        [leaf] => parent.subcommand(leaf_command(leaf, command)),
        [group, rest @ ..] => {
            if parent.find_subcommand(group).is_some() {
                parent.mut_subcommand(*group, |existing| insert(existing, command, rest))
            } else {
                let made = ClapCommand::new(*group)
                    .about(group_about(group))
                    .subcommand_required(true)
                    .arg_required_else_help(true);
                parent.subcommand(insert(made, command, rest))
            }
        }
    }
}

fn group_about(group: &str) -> &'static str {
    match group {
        "agent" => "Attested nodes: list, show, count, ban, evict, purge",
        "bundle" => "The trust bundle, and those of other trust domains",
        "entry" => "Registration entries: which workload gets which identity",
        "token" => "Join tokens, with which a node attests for the first time",
        "x509" => "X509-SVIDs",
        "jwt" => "JWT-SVIDs",
        "api" => "The Workload API, as a workload sees it",
        "fetch" => "Fetch the identity of the calling process",
        "validate" => "Validate a document through the Workload API",
        "localauthority" => "The server's own signing authorities",
        "logger" => "The log level of the running process",
        "debug" => "Facts about the running process",
        _ => "",
    }
}

fn leaf_command(name: &'static str, command: &Command) -> ClapCommand {
    let mut leaf = ClapCommand::new(name).about(command.about);
    for flag in command.flags.iter().chain(&shared_flags(command)) {
        if !flag.native.is_empty() {
            leaf = leaf.arg(argument(flag));
        }
    }
    leaf
}

fn argument(flag: &Flag) -> Arg {
    let mut arg = Arg::new(flag.spire).help(flag.help);
    match flag.kind {
        Kind::Word => return arg.value_name(flag.native),
        Kind::Rest => {
            return arg
                .value_name(flag.native)
                .num_args(1..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .required(true);
        }
        _ => arg = arg.long(flag.native),
    }
    arg = match flag.kind {
        Kind::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(["true", "false"])
            .hide_possible_values(true),
        Kind::Text => arg.action(ArgAction::Set).value_name("TEXT"),
        Kind::Integer => arg
            .action(ArgAction::Set)
            .value_name("N")
            .value_parser(clap::value_parser!(i64))
            .allow_hyphen_values(true),
        Kind::Seconds => arg
            .action(ArgAction::Set)
            .value_name("DURATION")
            .value_parser(seconds),
        Kind::Duration => arg
            .action(ArgAction::Set)
            .value_name("DURATION")
            .value_parser(go_duration),
        Kind::List | Kind::CommaList => arg
            .action(ArgAction::Append)
            .value_name("TEXT")
            .value_parser(NonEmptyStringValueParser::new()),
        Kind::Word | Kind::Rest => arg,
    };
    if flag.spire == "output" {
        arg = arg
            .short('o')
            .value_parser(["table", "json", "yaml", "pretty"])
            .value_name("FORMAT");
    }
    if !flag.default.is_empty() {
        arg = arg.default_value(flag.default);
    }
    arg
}

fn seconds(text: &str) -> Result<i64, String> {
    duration::parse_seconds(text)
        .filter(|seconds| *seconds >= 0)
        .ok_or_else(|| "expected a lifetime in whole seconds, such as 90, 15m or 1h30m".to_owned())
}

fn go_duration(text: &str) -> Result<String, String> {
    if duration::parse(text).is_some() {
        return Ok(text.to_owned());
    }
    match text.parse::<u32>() {
        Ok(seconds) => Ok(format!("{seconds}s")),
        Err(_not_a_number) => Err("expected a duration, such as 90s, 15m or 1h30m".to_owned()),
    }
}

/// Finds the command that the parsed words name, and its own matches.
pub(crate) fn find<'c, 'm>(
    commands: &'c [Command],
    matches: &'m ArgMatches,
) -> Option<(&'c Command, &'m ArgMatches)> {
    let mut words = Vec::new();
    let mut current = matches;
    while let Some((word, below)) = current.subcommand() {
        words.push(word);
        current = below;
    }
    let named = |command: &&Command| match command.program {
        Program::Plastron => command.path == words.as_slice(),
        program => words
            .split_first()
            .is_some_and(|(first, path)| *first == program.word() && command.path == path),
    };
    commands
        .iter()
        .find(named)
        .map(|command| (command, current))
}

/// The flag values of a command.
pub(crate) fn read(command: &Command, matches: &ArgMatches) -> Args {
    let mut args = Args::default();
    for flag in command.flags.iter().chain(&shared_flags(command)) {
        if flag.native.is_empty() {
            continue;
        }
        let given =
            matches.value_source(flag.spire) == Some(clap::parser::ValueSource::CommandLine);
        let values: Vec<String> = match flag.kind {
            Kind::Integer | Kind::Seconds => matches
                .get_many::<i64>(flag.spire)
                .into_iter()
                .flatten()
                .map(i64::to_string)
                .collect(),
            Kind::CommaList => matches
                .get_many::<String>(flag.spire)
                .into_iter()
                .flatten()
                .flat_map(|value| value.split(',').map(str::to_owned))
                .collect(),
            _ => matches
                .get_many::<String>(flag.spire)
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        };
        for value in values {
            match (given, flag.kind) {
                (false, _) => args.set_default(flag.spire, &value),
                (true, Kind::List | Kind::CommaList | Kind::Rest) => args.push(flag.spire, value),
                (true, _) => args.set(flag.spire, value),
            }
        }
    }
    args
}

/// The native output format; a table unless asked otherwise.
pub(crate) fn format(args: &Args) -> Result<Format, CliError> {
    match args.text("output") {
        "" | "table" | "pretty" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        "yaml" => Ok(Format::Yaml),
        other => Err(CliError::usage(format!(
            "unknown output format {other:?}: expected table, json or yaml"
        ))),
    }
}

/// Whether the native command line shows this command; every command is on it.
pub(crate) const fn shown_on_shim(command: &Command) -> bool {
    matches!(command.surface, Surface::Both)
}
