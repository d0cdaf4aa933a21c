//! A native command line that cannot be read: what is wrong with it, and what is likely meant.

use std::ffi::OsString;

use clap::Command as ClapCommand;
use clap::error::ErrorKind;
use config::fault::{Code, Fault};

use crate::cli::command::{Command, native_flags};
use crate::cli::flag::FlagSpec;
use crate::cli::output;

/// A command line that cannot be understood.
pub(crate) fn usage(what: &str, words: &str) -> Fault {
    Fault::new(Code::Usage, what).hint(match words {
        "" => "`plastron help` lists the commands".to_owned(),
        words => format!("`plastron help {words}` shows what the command takes"),
    })
}

/// Ends a command line that clap could not read, or that asked for help or the version: prints, and gives the exit
/// code.
pub(super) fn stopped(
    error: &clap::Error,
    argv: &[OsString],
    line: &ClapCommand,
    commands: &[Command],
) -> u8 {
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
            let is_meant = |flag: &&FlagSpec| {
                let is_spires = flag.spire == name
                    && (flag.native != name || !word.starts_with("--"))
                    && name.len() > 1;
                is_spires || (!flag.former.is_empty() && flag.former == name)
            };
            let meant: Vec<String> = flags
                .iter()
                .filter(is_meant)
                .map(|flag| format!("--{}", flag.native))
                .collect();
            let hint = match meant.as_slice() {
                [] => return None,
                names => format!(
                    "here it is {}; `plastron help {words}` shows the flags",
                    names.join(" and ")
                ),
            };
            Some(usage(&format!("unknown flag {word:?}"), words).hint(hint))
        })
}

/// clap's message in the error form: its first paragraph, and its tip.
fn usage_fault(text: &str, words: &str) -> Fault {
    let first = text.split("\n\n").next().unwrap_or_default();
    let what: Vec<&str> = first.lines().map(str::trim).collect();
    let what = what.join(" ");
    let mut fault = usage(what.strip_prefix("error: ").unwrap_or(&what), words);
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    if let Some(tip) = tip {
        let hint = fault.hint.unwrap_or_default();
        fault.hint = Some(format!("{tip}; {hint}"));
    }
    fault
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{named, renamed_flag, stopped, usage_fault};
    use crate::cli::commands;
    use crate::cli::native::command_line::command_line;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
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
            let fault = renamed_flag(&commands, &argv, &named(&tree, &argv));
            let hint = fault.and_then(|fault| fault.hint).unwrap_or_default();
            assert_eq!(hint.is_empty(), native.is_none(), "{line}: {hint}");
            assert!(hint.contains(native.unwrap_or_default()), "{line}: {hint}");
        }
    }

    #[test]
    fn a_misspelt_flag_is_reported_as_a_fault_with_the_closest_flag() {
        let tree = command_line(&commands());
        let argv = words("plastron server entry create --selectr a:b");
        let error = tree.clone().try_get_matches_from(&argv).unwrap_err();
        let text = usage_fault(&error.to_string(), &named(&tree, &argv)).to_string();
        assert!(
            text.starts_with("error[PLA-1008]: unexpected argument '--selectr' found"),
            "{text}"
        );
        assert!(text.contains("'--selector'"), "{text}");
        assert!(text.contains("plastron help server entry create"), "{text}");
    }
}
