//! The flags of SPIRE's command line: Go's `flag` package with its messages and its usage text; its syntax is in
//! `go_syntax.rs`.
//! (SPIRE: every fault of a flag ends with exit code 1; `--name` means `-name`; a flag's value may begin with `-`.)

use super::go_syntax::{self, Fault, Form};
use crate::cli::args::{Args, Value};
use crate::cli::command::{Command, spire_flags};
use crate::cli::duration;
use crate::cli::flag::{FlagKind, FlagSpec};

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
    usage(command, &spire_flags(command))
}

/// Parses the arguments after the command's words.
pub(crate) fn parse(command: &Command, argv: &[String]) -> Result<Args, Stop> {
    let flags = spire_flags(command);
    // The flags that only the native command has are known too: they read as not given.
    let mut args = Args::of(command.flags.iter().chain(&flags));
    for flag in flags
        .iter()
        .filter(|flag| !flag.default_on_spire().is_empty())
    {
        let value = value(flag, flag.default_on_spire())
            .map_err(|message| stop(command, &flags, &message))?;
        args.set_default(flag, value);
    }
    let flag = |name: &str| flags.iter().find(|flag| flag.spire == name);
    let form = |name: &str| {
        flag(name).map(|flag| match flag.kind {
            FlagKind::Switch => Form::Boolean,
            _ => Form::Valued,
        })
    };
    let left = go_syntax::read(argv, form, |name, text| {
        let flag = flag(name).ok_or(Fault::Unknown(name))?;
        args.set(flag, value(flag, text)?);
        Ok(())
    })
    .map_err(|message: String| stop(command, &flags, &message))?;
    args.rest = left.to_vec();
    Ok(args)
}

/// Go's messages.
impl From<Fault<'_>> for String {
    fn from(fault: Fault<'_>) -> Self {
        match fault {
            Fault::BadSyntax(word) => format!("bad flag syntax: {word}"),
            Fault::Unknown(name) => format!("flag provided but not defined: -{name}"),
            Fault::NeedsValue(name) => format!("flag needs an argument: -{name}"),
        }
    }
}

/// The value of a flag; a fault is worded as Go words it.
fn value(flag: &FlagSpec, text: &str) -> Result<Value, String> {
    let invalid = |why: &str| format!("invalid value {text:?} for flag -{}: {why}", flag.spire);
    let text_value = || Ok(Value::Text(text.to_owned()));
    match flag.kind {
        FlagKind::Text | FlagKind::Word | FlagKind::Words | FlagKind::Rest => text_value(),
        FlagKind::Format if matches!(text, "pretty" | "json") => text_value(),
        FlagKind::Format => Err(invalid(&format!(
            "bad formatter flag: unknown format option: {text:?}"
        ))),
        FlagKind::Timeout => duration::parse(text)
            .map(Value::Duration)
            .ok_or_else(|| invalid(&duration::go_fault(text))),
        FlagKind::Switch => go_bool(text).map(Value::Switch).ok_or_else(|| {
            format!(
                "invalid boolean value {text:?} for -{}: parse error",
                flag.spire
            )
        }),
        FlagKind::Time | FlagKind::Lifetime => text
            .parse()
            .map(Value::Seconds)
            .map_err(|_not_a_number| invalid("parse error")),
        FlagKind::Duration => {
            // (SPIRE: a lifetime below zero is the server's default, as zero is.)
            let negative = text
                .strip_prefix('-')
                .is_some_and(|rest| duration::parse(rest).is_some());
            duration::parse(if negative { "0s" } else { text })
                .map(Value::Duration)
                .ok_or_else(|| invalid("parse error"))
        }
        FlagKind::List => Ok(Value::List(vec![text.to_owned()])),
        FlagKind::CommaList => Ok(Value::List(text.split(',').map(str::to_owned).collect())),
    }
}

/// The texts Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn stop(command: &Command, flags: &[FlagSpec], message: &str) -> Stop {
    Stop(format!("{message}\n{}", usage(command, flags)))
}

/// The usage text in the layout of Go's `flag.PrintDefaults`, flags in the order of their names.
fn usage(command: &Command, flags: &[FlagSpec]) -> String {
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
            FlagKind::Switch => "",
            FlagKind::Time | FlagKind::Lifetime => " int",
            FlagKind::Text | FlagKind::Word | FlagKind::Words | FlagKind::Rest => " string",
            FlagKind::Duration => " duration",
            FlagKind::Timeout | FlagKind::Format | FlagKind::List | FlagKind::CommaList => " value",
        };
        text.push_str(&format!("  -{}{value}\n    \t{}", flag.spire, flag.help));
        match (flag.kind, flag.default_on_spire()) {
            (_, "") => {}
            (FlagKind::Text, default) => text.push_str(&format!(" (default {default:?})")),
            (_, default) => text.push_str(&format!(" (default {default})")),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[path = "go_flags/tests.rs"]
mod tests;
