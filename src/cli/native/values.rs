//! Which command the native command line names, and the values of its flags.

use std::ffi::OsString;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::command_line::positional;
use crate::cli::args::{Args, Value};
use crate::cli::command::{Command, OUTPUT, native_flags};
use crate::cli::context::Format;
use crate::cli::flag::{FlagKind, FlagSpec};

/// Finds the command that the parsed words name, and its own matches.
pub(super) fn find<'c, 'm>(
    commands: &'c [Command],
    matches: &'m ArgMatches,
) -> Option<(&'c Command, &'m ArgMatches)> {
    let mut words = Vec::new();
    let mut current = matches;
    while let Some((word, below)) = current.subcommand() {
        words.push(word);
        current = below;
    }
    commands
        .iter()
        .find(|command| command.words() == words)
        .map(|command| (command, current))
}

/// The flag values of a command.
pub(super) fn read(command: &Command, matches: &ArgMatches) -> Args {
    let flags = native_flags(command);
    let mut args = Args::of(&flags);
    for flag in &flags {
        if flag.positional
            && let Some(text) = matches.get_one::<String>(positional(flag))
        {
            args.set(flag, Value::Text(text.clone()));
            continue;
        }
        let Some(value) = value(flag, matches) else {
            continue;
        };
        match matches.value_source(flag.spire) {
            Some(ValueSource::CommandLine) => args.set(flag, value),
            _ => args.set_default(flag, value),
        }
    }
    args
}

/// The value as the parsers of `command_line.rs` made it; `None` when the flag is absent and has no default.
fn value(flag: &FlagSpec, matches: &ArgMatches) -> Option<Value> {
    let texts = || {
        let texts = matches.get_many::<String>(flag.spire)?;
        Some(texts.cloned().collect::<Vec<_>>())
    };
    match flag.kind {
        FlagKind::Text | FlagKind::Format | FlagKind::Word => matches
            .get_one::<String>(flag.spire)
            .cloned()
            .map(Value::Text),
        FlagKind::Switch => matches
            .get_one::<bool>(flag.spire)
            .copied()
            .map(Value::Switch),
        FlagKind::Time | FlagKind::Lifetime => matches
            .get_one::<i64>(flag.spire)
            .copied()
            .map(Value::Seconds),
        FlagKind::Duration | FlagKind::Timeout => matches
            .get_one::<Duration>(flag.spire)
            .copied()
            .map(Value::Duration),
        FlagKind::List | FlagKind::Words => texts().map(Value::List),
        FlagKind::CommaList => texts().map(|texts| {
            let parts = texts.iter().flat_map(|text| text.split(','));
            Value::List(parts.map(str::to_owned).collect())
        }),
        FlagKind::Rest => {
            let words = matches.get_many::<OsString>(flag.spire)?;
            Some(Value::Command(words.cloned().collect()))
        }
    }
}

/// The native output format; a table unless asked otherwise.
pub(super) fn format(args: &Args) -> Format {
    if !args.has(OUTPUT) {
        return Format::Table;
    }
    match args.get(OUTPUT) {
        "json" => Format::Json,
        "yaml" => Format::Yaml,
        _ => Format::Table,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{find, format, read};
    use crate::cli::args::Args;
    use crate::cli::command::TIMEOUT;
    use crate::cli::commands;
    use crate::cli::context::Format;
    use crate::cli::flag::Flag;
    use crate::cli::native::command_line::command_line;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    /// The path of the command that the words name, and its values.
    fn parsed(argv: Vec<OsString>) -> (&'static [&'static str], Args) {
        let commands = commands();
        let matches = command_line(&commands).try_get_matches_from(argv).unwrap();
        let (command, own) = find(&commands, &matches).unwrap();
        (command.path, read(command, own))
    }

    #[test]
    fn native_flags_are_read_under_spires_names() {
        use crate::cli::selectors::SELECTOR;
        use crate::cli::server::entry::{ADMIN, SPIFFE_ID, X509_TTL};
        let line = "plastron server entry create --spiffe-id web --selector a:b --selector c:d --x509-svid-ttl 1h30m --admin -o yaml";
        let (path, args) = parsed(words(line));
        assert_eq!(path, ["entry", "create"]);
        assert_eq!(args.get(SPIFFE_ID), "web");
        assert_eq!(args.get(SELECTOR), ["a:b", "c:d"]);
        assert_eq!(args.get(X509_TTL), 5400);
        assert!(args.get(ADMIN) && args.given(ADMIN));
        assert_eq!(format(&args), Format::Yaml);
        assert_eq!(args.get(TIMEOUT).as_secs(), 30);
        assert!(!args.given(TIMEOUT));
    }

    #[test]
    fn the_id_that_a_command_is_about_needs_no_flag() {
        let flag = |name| Flag::text(name, "", "");
        for (line, name) in [
            ("plastron server entry show X", "entryID"),
            ("plastron server entry get X", "entryID"),
            ("plastron server entry delete X", "entryID"),
            ("plastron server agent evict X", "spiffeID"),
            ("plastron server localauthority jwt taint X", "authorityID"),
            ("plastron server bundle delete X", "id"),
        ] {
            let (_path, args) = parsed(words(line));
            assert!(args.given(flag(name)), "{line}");
            assert_eq!(args.get(flag(name)), "X", "{line}");
        }
        let both = "plastron server entry delete X --entry-id Y";
        command_line(&commands())
            .try_get_matches_from(words(both))
            .unwrap_err();
    }

    #[test]
    fn the_command_that_is_run_is_passed_on_as_it_is() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        let mut argv = words("plastron run --id web -- app");
        argv.push(odd.clone());
        let (_path, args) = parsed(argv);
        assert_eq!(
            args.get(crate::cli::tool::run::PROGRAM),
            [OsString::from("app"), odd]
        );
    }
}
