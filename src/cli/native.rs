//! The native command line: clap commands built from the same descriptions as the shims, with GNU-style flags,
//! durations and our own output formats.

use std::ffi::OsString;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command as ClapCommand};
use config::fault::Fault;

use super::args::Args;
use super::context::Format;
use super::duration;
use super::spec::{Command, Flag, Kind, Program, Surface, native_flags};
use super::{error_report, examples, output, timefmt};

/// The whole native command line.
pub(crate) fn command_line(commands: &[Command]) -> ClapCommand {
    let mut root = ClapCommand::new("plastron")
        .version(env!("CARGO_PKG_VERSION"))
        .about("SPIFFE identity for workloads: server, agent and tools in one program")
        .after_help(unwrapped(examples::OVERVIEW))
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
        "token" => "Join tokens for a node's first attestation",
        "x509" => "X509-SVIDs",
        "jwt" => "JWT-SVIDs",
        "api" => "The Workload API, as a workload sees it",
        "fetch" => "Fetch the identity of the calling process",
        "validate" => "Validate a document through the Workload API",
        "localauthority" => "The server's own signing authorities",
        "logger" => "The log level of the running process",
        "debug" => "Runtime information",
        _ => "",
    }
}

fn leaf_command(name: &'static str, command: &Command) -> ClapCommand {
    let mut leaf = ClapCommand::new(name)
        .about(command.about)
        .visible_aliases(aliases(command));
    for flag in &native_flags(command) {
        if flag.native.is_empty() {
            continue;
        }
        leaf = leaf.arg(argument(flag));
        if flag.positional {
            leaf = leaf.arg(
                Arg::new(positional(flag))
                    .value_name(placeholder(flag.native))
                    .help(format!("The same as --{}", flag.native))
                    .conflicts_with(flag.spire),
            );
        }
    }
    match examples::of(&command.words()) {
        "" => leaf,
        text => leaf.after_help(unwrapped(text)),
    }
}

/// What other tools call the commands that show things.
fn aliases(command: &Command) -> &'static [&'static str] {
    match command.path {
        ["entry", "show"] => &["list", "get"],
        ["agent" | "bundle", "show"] => &["get"],
        _ => &[],
    }
}

/// The key of a flag's value that is given without its name; other than the key of the flag.
fn positional(flag: &Flag) -> &'static str {
    match flag.native {
        "id" => "trust domain",
        native => native,
    }
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

/// What stands for a flag's value in help.
fn placeholder(native: &str) -> &'static str {
    match native {
        "spiffe-id" | "parent-id" => "SPIFFE-ID",
        "entry-id" => "ENTRY-ID",
        "authority-id" => "AUTHORITY-ID",
        "id" | "trust-domain" | "federates-with" => "TRUST-DOMAIN",
        "selector" => "TYPE:VALUE",
        "config" | "data" | "file" | "path" | "log-file" | "trust-bundle" | "join-token-file" => {
            "FILE"
        }
        "data-dir" | "dir" | "write" => "DIRECTORY",
        "socket-path" | "server-socket" | "workload-socket" => "SOCKET",
        "trust-bundle-url" => "URL",
        "bind-address" | "server-address" => "ADDRESS",
        "server-port" => "PORT",
        "log-level" | "level" => "LEVEL",
        "format" | "log-format" | "trust-bundle-format" => "FORMAT",
        "match-selectors-on" | "match-federates-with-on" | "mode" | "rebootstrap-mode" => "MODE",
        "expires-before" => "TIME",
        "rebootstrap-delay" => "DURATION",
        "join-token" | "svid" => "TOKEN",
        "audience" => "AUDIENCE",
        "dns" | "instance" => "NAME",
        "can-reattest" | "banned" => "true|false",
        _ => "VALUE",
    }
}

fn argument(flag: &Flag) -> Arg {
    let mut arg = Arg::new(flag.spire).help(flag.help);
    match flag.kind {
        Kind::Word => return arg.value_name(flag.native),
        Kind::Words => return arg.value_name(flag.native).num_args(0..),
        Kind::Rest => {
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
        Kind::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("true|false")
            .default_missing_value("true")
            .value_parser(["true", "false"])
            .hide_possible_values(true),
        Kind::Text => arg
            .action(ArgAction::Set)
            .value_name(placeholder(flag.native)),
        Kind::Moment => arg
            .action(ArgAction::Set)
            .value_name("TIME")
            .value_parser(unix_seconds)
            .allow_hyphen_values(true),
        Kind::Seconds => arg
            .action(ArgAction::Set)
            .value_name("DURATION")
            .value_parser(seconds),
        Kind::Format => arg
            .action(ArgAction::Set)
            .short('o')
            .value_name("FORMAT")
            .value_parser(["table", "json", "yaml"])
            .hide_possible_values(true)
            .help("Output format: table, json or yaml"),
        Kind::Duration | Kind::Timeout => arg
            .action(ArgAction::Set)
            .value_name("DURATION")
            .value_parser(go_duration),
        Kind::List | Kind::CommaList => arg
            .action(ArgAction::Append)
            .value_name(placeholder(flag.native))
            .value_parser(NonEmptyStringValueParser::new()),
        Kind::Word | Kind::Words | Kind::Rest => arg,
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

fn go_duration(text: &str) -> Result<String, String> {
    if duration::parse_native(text).is_some() {
        return Ok(text.to_owned());
    }
    match text.parse::<u32>() {
        Ok(seconds) => Ok(format!("{seconds}s")),
        Err(_not_a_number) => Err("expected a duration, such as 90s, 15m, 1h30m or 30d".to_owned()),
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
    let flags = native_flags(command);
    let mut args = Args::of(&flags);
    for flag in &flags {
        if flag.native.is_empty() {
            continue;
        }
        if flag.kind == Kind::Rest {
            args.command = matches
                .get_many::<OsString>(flag.spire)
                .into_iter()
                .flatten()
                .cloned()
                .collect();
            continue;
        }
        if flag.positional
            && let Some(value) = matches.get_one::<String>(positional(flag))
        {
            args.set(flag.spire, value.clone());
            continue;
        }
        let given =
            matches.value_source(flag.spire) == Some(clap::parser::ValueSource::CommandLine);
        let values: Vec<String> = match flag.kind {
            Kind::Moment | Kind::Seconds => matches
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
                (true, Kind::List | Kind::CommaList | Kind::Words) => {
                    args.push(flag.spire, value);
                }
                (true, _) => args.set(flag.spire, value),
            }
        }
    }
    args
}

/// The native output format; a table unless asked otherwise.
pub(crate) fn format(args: &Args) -> Format {
    if !args.has("output") {
        return Format::Table;
    }
    match args.text("output") {
        "json" => Format::Json,
        "yaml" => Format::Yaml,
        _ => Format::Table,
    }
}

/// Ends a command line that clap could not read, or that asked for help or the version: prints, and gives the exit
/// code.
pub(crate) fn stopped(
    error: &clap::Error,
    argv: &[OsString],
    line: &ClapCommand,
    commands: &[Command],
) -> u8 {
    use clap::error::ErrorKind;
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            u8::from(output::write_out(&text).is_err())
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::say(text.trim_end());
            2
        }
        _ => {
            let words = named(line, argv);
            let fault =
                renamed_flag(commands, argv, &words).unwrap_or_else(|| usage_fault(&text, &words));
            output::say(&fault.to_string());
            fault.exit_code()
        }
    }
}

/// The words of the command line, as far as they name a command.
fn named(line: &ClapCommand, argv: &[OsString]) -> String {
    let mut words = Vec::new();
    let mut current = line;
    for word in argv.iter().skip(1) {
        match current.find_subcommand(word) {
            Some(below) => {
                words.push(below.get_name());
                current = below;
            }
            None => break,
        }
    }
    words.join(" ")
}

/// The fault of a flag that is spelt as SPIRE spells it, now or before: `-spiffeID` is `--spiffe-id` here.
fn renamed_flag(commands: &[Command], argv: &[OsString], words: &str) -> Option<Fault> {
    let command = commands
        .iter()
        .find(|command| command.words().join(" ") == words)?;
    let flags = native_flags(command);
    argv.iter()
        .filter_map(|word| word.to_str())
        .take_while(|word| *word != "--")
        .filter(|word| word.starts_with('-'))
        .find_map(|word| {
            let name = word.trim_start_matches('-').split('=').next()?;
            let native = match (name, command.path) {
                // SPIRE had one lifetime for both before 1.5.
                ("ttl", ["entry", "create" | "update"]) => {
                    "--x509-svid-ttl and --jwt-svid-ttl".to_owned()
                }
                _ => {
                    let flag = flags.iter().find(|flag| {
                        flag.spire == name
                            && !flag.native.is_empty()
                            && (flag.native != name || !word.starts_with("--"))
                            && name.len() > 1
                    })?;
                    format!("--{}", flag.native)
                }
            };
            Some(
                error_report::usage(&format!("unknown flag {word:?}"), words).hint(format!(
                    "here it is {native}; `plastron help {words}` shows the flags"
                )),
            )
        })
}

/// clap's message in the error form: its first paragraph, and its tip.
fn usage_fault(text: &str, words: &str) -> Fault {
    let first = text.split("\n\n").next().unwrap_or_default();
    let what: Vec<&str> = first.lines().map(str::trim).collect();
    let what = what.join(" ");
    let mut fault = error_report::usage(what.strip_prefix("error: ").unwrap_or(&what), words);
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    if let Some(tip) = tip {
        let hint = fault.hint.unwrap_or_default();
        fault.hint = Some(format!("{tip}; {hint}"));
    }
    fault
}

/// Whether the native command line shows this command; every command is on it.
pub(crate) const fn shown_on_shim(command: &Command) -> bool {
    matches!(command.surface, Surface::Both)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{command_line, find, format, read, stopped};
    use crate::cli::commands;
    use crate::cli::context::Format;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_whole_command_line_is_sound() {
        command_line(&commands()).debug_assert();
    }

    #[test]
    fn native_flags_are_read_under_spires_names() {
        let commands = commands();
        let line = "plastron server entry create --spiffe-id web --selector a:b --selector c:d --x509-svid-ttl 1h30m --admin -o yaml";
        let matches = command_line(&commands)
            .try_get_matches_from(words(line))
            .unwrap();
        let (command, own) = find(&commands, &matches).unwrap();
        let args = read(command, own);
        assert_eq!(command.path, ["entry", "create"]);
        assert_eq!(args.text("spiffeID"), "web");
        assert_eq!(args.list("selector"), ["a:b", "c:d"]);
        assert_eq!(args.integer("x509SVIDTTL"), 5400);
        assert!(args.switch("admin") && args.given("admin"));
        assert_eq!(format(&args), Format::Yaml);
        assert_eq!(args.text("timeout"), "30s");
    }

    #[test]
    fn wrong_command_lines_end_with_the_usage_code() {
        let commands = commands();
        for line in [
            "plastron",
            "plastron serve",
            "plastron server",
            "plastron server entry",
            "plastron server entry create --spiffeID x",
            "plastron server entry create --x509-svid-ttl soon",
            "plastron server entry show -o xml",
            "plastron server entry show -output json",
            "plastron agent api fetch jwt --timeout forever",
            "plastron run --id web",
        ] {
            let tree = command_line(&commands);
            let argv = words(line);
            let error = tree.clone().try_get_matches_from(&argv).unwrap_err();
            assert_eq!(stopped(&error, &argv, &tree, &commands), 2, "{line}");
        }
    }

    #[test]
    fn a_flag_in_spires_spelling_is_pointed_to_ours() {
        let commands = commands();
        let tree = command_line(&commands);
        for (line, native) in [
            (
                "plastron server entry create -spiffeID x",
                Some("--spiffe-id"),
            ),
            (
                "plastron server entry create --parentID=x",
                Some("--parent-id"),
            ),
            (
                "plastron server entry list -selector a:b",
                Some("--selector"),
            ),
            (
                "plastron server entry create --ttl 5",
                Some("--x509-svid-ttl"),
            ),
            ("plastron server entry create --selectr a:b", None),
            ("plastron run --id web -- app -spiffeID x", None),
        ] {
            let argv = words(line);
            let fault = super::renamed_flag(&commands, &argv, &super::named(&tree, &argv));
            let hint = fault.and_then(|fault| fault.hint).unwrap_or_default();
            assert_eq!(hint.is_empty(), native.is_none(), "{line}: {hint}");
            assert!(hint.contains(native.unwrap_or_default()), "{line}: {hint}");
        }
    }

    #[test]
    fn the_id_that_a_command_is_about_needs_no_flag() {
        let commands = commands();
        for (line, flag) in [
            ("plastron server entry show X", "entryID"),
            ("plastron server entry get X", "entryID"),
            ("plastron server entry delete X", "entryID"),
            ("plastron server agent evict X", "spiffeID"),
            ("plastron server localauthority jwt taint X", "authorityID"),
            ("plastron server bundle delete X", "id"),
        ] {
            let tree = command_line(&commands);
            let matches = tree.try_get_matches_from(words(line)).unwrap();
            let (command, own) = find(&commands, &matches).unwrap();
            let args = read(command, own);
            assert!(args.given(flag) && args.text(flag) == "X", "{line}");
        }
        let both = "plastron server entry delete X --entry-id Y";
        command_line(&commands)
            .try_get_matches_from(words(both))
            .unwrap_err();
    }

    #[test]
    fn the_command_that_is_run_is_passed_on_as_it_is() {
        use std::os::unix::ffi::OsStringExt;
        let commands = commands();
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        let mut argv = words("plastron run --id web -- app");
        argv.push(odd.clone());
        let matches = command_line(&commands).try_get_matches_from(argv).unwrap();
        let (command, own) = find(&commands, &matches).unwrap();
        assert_eq!(read(command, own).command, [OsString::from("app"), odd]);
    }

    #[test]
    fn a_paragraph_of_help_is_one_line_for_clap_to_wrap() {
        assert_eq!(
            super::unwrapped("a\nb\n\n  c\n  d\ne"),
            "a b\n\n  c\n  d\ne"
        );
    }

    #[test]
    fn a_misspelt_flag_is_reported_as_a_fault_with_the_closest_flag() {
        let tree = command_line(&commands());
        let argv = words("plastron server entry create --selectr a:b");
        let error = tree.clone().try_get_matches_from(&argv).unwrap_err();
        let text = super::usage_fault(&error.to_string(), &super::named(&tree, &argv)).to_string();
        assert!(
            text.starts_with("error[PLA-1008]: unexpected argument '--selectr' found"),
            "{text}"
        );
        assert!(text.contains("'--selector'"), "{text}");
        assert!(text.contains("plastron help server entry create"), "{text}");
    }
}
