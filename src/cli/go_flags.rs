//! The flag syntax of SPIRE's command line: Go's `flag` package, with its messages and its usage text.
//! (SPIRE: every fault of a flag ends with exit code 1; `--name` means `-name`; a flag's value may begin with `-`.)

use super::args::Args;
use super::duration;
use super::spec::{Command, Flag, Kind, Surface, shared_flags};

/// Why parsing ended without values: the text for stderr.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stop(pub(crate) String);

/// Whether help is asked for, wherever it stands before `--` (SPIRE: such a call ends with exit code 0).
pub(crate) fn wants_help(argv: &[String]) -> bool {
    argv.iter()
        .take_while(|word| *word != "--")
        .any(|word| matches!(word.as_str(), "-h" | "-help" | "--help"))
}

/// The usage text of a command.
pub(crate) fn help(command: &Command) -> String {
    let shared = shared_flags(command);
    usage(command, &of_spire(command, &shared))
}

/// The flags that SPIRE's command has.
fn of_spire<'f>(command: &'f Command, shared: &'f [Flag]) -> Vec<&'f Flag> {
    command
        .flags
        .iter()
        .chain(shared)
        .filter(|flag| flag.surface == Surface::Both)
        .collect()
}

/// Parses the arguments after the command's words.
pub(crate) fn parse(command: &Command, argv: &[String]) -> Result<Args, Stop> {
    let shared = shared_flags(command);
    let flags = of_spire(command, &shared);
    let mut args = Args::of(command.flags.iter().chain(&shared));
    for flag in flags
        .iter()
        .filter(|flag| !flag.default_on_shim().is_empty())
    {
        args.set_default(flag.spire, flag.default_on_shim());
    }
    let mut words = argv.iter();
    while let Some(word) = words.next() {
        let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else {
            args.rest.push(word.clone());
            break;
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() {
            break;
        }
        if body.starts_with(['-', '=']) {
            return Err(stop(command, &flags, &format!("bad flag syntax: {word}")));
        }
        let (name, inline) = body
            .split_once('=')
            .map_or((body, None), |(name, value)| (name, Some(value)));
        let Some(flag) = flags.iter().find(|flag| flag.spire == name) else {
            return Err(stop(
                command,
                &flags,
                &format!("flag provided but not defined: -{name}"),
            ));
        };
        let value = match (inline, flag.kind) {
            (Some(value), _) => value.to_owned(),
            (None, Kind::Switch) => "true".to_owned(),
            (None, _) => match words.next() {
                Some(value) => value.clone(),
                None => {
                    return Err(stop(
                        command,
                        &flags,
                        &format!("flag needs an argument: -{name}"),
                    ));
                }
            },
        };
        store(&mut args, flag, &value).map_err(|message| stop(command, &flags, &message))?;
    }
    args.rest.extend(words.cloned());
    Ok(args)
}

fn store(args: &mut Args, flag: &Flag, value: &str) -> Result<(), String> {
    let invalid = |why: &str| format!("invalid value {value:?} for flag -{}: {why}", flag.spire);
    match flag.kind {
        Kind::Text | Kind::Word | Kind::Words | Kind::Rest => {
            args.set(flag.spire, value.to_owned());
        }
        Kind::Format => {
            if !matches!(value, "pretty" | "json") {
                let why = format!("bad formatter flag: unknown format option: {value:?}");
                return Err(invalid(&why));
            }
            args.set(flag.spire, value.to_owned());
        }
        Kind::Timeout => {
            if duration::parse(value).is_none() {
                return Err(invalid(&duration::go_fault(value)));
            }
            args.set(flag.spire, value.to_owned());
        }
        Kind::Switch => {
            let on = go_bool(value).ok_or_else(|| {
                format!(
                    "invalid boolean value {value:?} for -{}: parse error",
                    flag.spire
                )
            })?;
            args.set(flag.spire, on.to_string());
        }
        Kind::Moment | Kind::Seconds => {
            let number: i64 = value
                .parse()
                .map_err(|_not_a_number| invalid("parse error"))?;
            args.set(flag.spire, number.to_string());
        }
        Kind::Duration => {
            // (SPIRE: a lifetime below zero is the server's default, as zero is.)
            let negative = value
                .strip_prefix('-')
                .is_some_and(|rest| duration::parse(rest).is_some());
            let value = if negative { "0s" } else { value };
            duration::parse(value).ok_or_else(|| invalid("parse error"))?;
            args.set(flag.spire, value.to_owned());
        }
        Kind::List => args.push(flag.spire, value.to_owned()),
        Kind::CommaList => {
            for part in value.split(',') {
                args.push(flag.spire, part.to_owned());
            }
        }
    }
    Ok(())
}

/// The texts Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn stop(command: &Command, flags: &[&Flag], message: &str) -> Stop {
    Stop(format!("{message}\n{}", usage(command, flags)))
}

/// The usage text in the layout of Go's `flag.PrintDefaults`, flags in the order of their names.
fn usage(command: &Command, flags: &[&Flag]) -> String {
    let mut sorted = flags.to_vec();
    sorted.sort_by_key(|flag| flag.spire);
    // SPIRE: the usage of the agent's `api` commands leaves that word out.
    let words = match command.path {
        ["api", rest @ ..] => rest,
        words => words,
    };
    let mut text = format!("Usage of {}:\n", words.join(" "));
    for flag in sorted {
        let value = match flag.kind {
            Kind::Switch => "",
            Kind::Moment | Kind::Seconds => " int",
            Kind::Text | Kind::Word | Kind::Words | Kind::Rest => " string",
            Kind::Duration => " duration",
            Kind::Timeout | Kind::Format | Kind::List | Kind::CommaList => " value",
        };
        text.push_str(&format!("  -{}{value}\n    \t{}", flag.spire, flag.help));
        match (flag.kind, flag.default_on_shim()) {
            (_, "") => {}
            (Kind::Text, default) => text.push_str(&format!(" (default {default:?})")),
            (_, default) => text.push_str(&format!(" (default {default})")),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[path = "go_flags/tests.rs"]
mod tests;
