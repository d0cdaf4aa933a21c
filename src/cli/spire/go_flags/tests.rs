use std::time::Duration;

use super::{Stop, parse};
use crate::cli::args::Args;
use crate::cli::command::{Command, Prints, spire_flags};
use crate::cli::flag::{Flag, Surface};
use crate::cli::output::Output;

const SPIFFE_ID: Flag<String> = Flag::text("spiffeID", "spiffe-id", "the ID");
const ADMIN: Flag<bool> = Flag::switch("admin", "admin", "admin");
const TTL: Flag<i64> = Flag::lifetime("x509SVIDTTL", "x509-ttl", "lifetime");
const SELECTOR: Flag<Vec<String>> = Flag::list("selector", "selector", "selector");
const AUDIENCE: Flag<Vec<String>> = Flag::comma_list("audience", "audience", "audience");
const TIMEOUT: Flag<Duration> = Flag::duration("timeout", "timeout", "how long").or("5s");

const COMMAND: Command = Command::local(&["entry", "create"], "", |_context, _args| {
    Box::pin(async { Ok(Output::default()) })
})
.flags(&[
    SPIFFE_ID.spec,
    ADMIN.spec,
    TTL.spec,
    SELECTOR.spec,
    AUDIENCE.spec,
    TIMEOUT.spec,
])
.prints(Prints::Data);

fn read(words: &[&str]) -> Result<Args, Stop> {
    parse(
        &COMMAND,
        &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>(),
    )
}

fn refusal(words: &[&str]) -> String {
    read(words)
        .unwrap_err()
        .0
        .lines()
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn takes_one_dash_two_dashes_and_an_equals_sign() {
    for words in [
        ["-spiffeID", "x"].as_slice(),
        &["--spiffeID", "x"],
        &["-spiffeID=x"],
        &["--spiffeID=x"],
    ] {
        assert_eq!(read(words).unwrap().get(SPIFFE_ID), "x");
    }
}

#[test]
fn a_value_may_begin_with_a_dash() {
    assert_eq!(
        read(&["-spiffeID", "-admin"]).unwrap().get(SPIFFE_ID),
        "-admin"
    );
}

#[test]
fn a_switch_takes_no_next_word_but_an_inline_value() {
    let args = read(&["-admin", "true"]).unwrap();
    assert!(args.get(ADMIN));
    assert_eq!(args.rest, ["true"]);
    assert!(!read(&["-admin=F"]).unwrap().get(ADMIN));
}

#[test]
fn lists_gather_and_comma_lists_split() {
    let args = read(&["-selector", "a:b", "-selector", "c:d", "-audience", "x,y"]).unwrap();
    assert_eq!(args.get(SELECTOR), ["a:b", "c:d"]);
    assert_eq!(args.get(AUDIENCE), ["x", "y"]);
}

#[test]
fn defaults_are_there_and_are_not_given() {
    let args = read(&[]).unwrap();
    assert_eq!(args.get(TIMEOUT).as_secs(), 5);
    assert!(!args.given(TIMEOUT));
}

#[test]
fn faults_are_worded_as_go_words_them() {
    assert_eq!(refusal(&["-nope"]), "flag provided but not defined: -nope");
    assert_eq!(
        refusal(&["-x509SVIDTTL", "1h"]),
        "invalid value \"1h\" for flag -x509SVIDTTL: parse error"
    );
    assert_eq!(
        refusal(&["-admin=xx"]),
        "invalid boolean value \"xx\" for -admin: parse error"
    );
    assert_eq!(refusal(&["-spiffeID"]), "flag needs an argument: -spiffeID");
    assert_eq!(refusal(&["---x"]), "bad flag syntax: ---x");
    assert_eq!(
        refusal(&["-output", "yaml"]),
        "invalid value \"yaml\" for flag -output: bad formatter flag: unknown format option: \"yaml\""
    );
}

#[test]
fn stops_at_two_dashes_and_at_the_first_word() {
    assert_eq!(read(&["--", "-admin"]).unwrap().rest, ["-admin"]);
    assert_eq!(read(&["word", "-admin"]).unwrap().rest, ["word", "-admin"]);
}

/// The names of the flags that the shim takes for a command, in the order of the alphabet.
fn flag_names(command: &Command) -> String {
    let flags = spire_flags(command);
    let mut names: Vec<&str> = flags.iter().map(|flag| flag.spire).collect();
    names.sort_by_key(|name| name.to_lowercase());
    names.join(" ")
}

/// Which commands SPIRE has and with which flags is a fact of SPIRE 1.15: its commands print it with `-help`.
#[test]
fn each_command_takes_exactly_the_flags_that_spire_gives_it() {
    let commands = crate::cli::commands();
    let shim = |command: &&Command| command.surface == Surface::Both;
    let mut known = Vec::new();
    for line in include_str!("spire_1_15.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let (words, expected) = line.split_once(": ").unwrap();
        let found = commands
            .iter()
            .filter(shim)
            .find(|command| command.words().join(" ") == words.trim_start_matches("- "));
        match (words.strip_prefix("- "), found) {
            (Some(_missing), None) => {}
            (Some(words), Some(_)) => panic!("{words} is there: take its minus sign away"),
            (None, None) => panic!("{words} is missing"),
            (None, Some(command)) => {
                assert_eq!(flag_names(command), expected, "{words}");
                known.push(words);
            }
        }
    }
    for command in commands.iter().filter(shim) {
        let words = command.words().join(" ");
        assert!(known.contains(&words.as_str()), "SPIRE has no {words}");
    }
}
