use super::{Stop, parse};
use crate::cli::args::Args;
use crate::cli::output::Output;
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[
    flag("spiffeID", "spiffe-id", Kind::Text, "the ID"),
    flag("admin", "admin", Kind::Switch, "admin"),
    flag("x509SVIDTTL", "x509-ttl", Kind::Seconds, "lifetime"),
    flag("selector", "selector", Kind::List, "selector"),
    flag("audience", "audience", Kind::CommaList, "audience"),
    flag("timeout", "timeout", Kind::Duration, "how long").or("5s"),
];

fn command() -> Command {
    Command {
        program: Program::Server,
        path: &["entry", "create"],
        about: "",
        flags: FLAGS,
        endpoint: Endpoint::None,
        formats: true,
        surface: Surface::Both,
        run: |_context, _args| Box::pin(async { Ok(Output::default()) }),
    }
}

fn read(words: &[&str]) -> Result<Args, Stop> {
    parse(
        &command(),
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
        assert_eq!(read(words).unwrap().text("spiffeID"), "x");
    }
}

#[test]
fn a_value_may_begin_with_a_dash() {
    assert_eq!(
        read(&["-spiffeID", "-admin"]).unwrap().text("spiffeID"),
        "-admin"
    );
}

#[test]
fn a_switch_takes_no_next_word_but_an_inline_value() {
    let args = read(&["-admin", "true"]).unwrap();
    assert!(args.switch("admin"));
    assert_eq!(args.rest, ["true"]);
    assert!(!read(&["-admin=F"]).unwrap().switch("admin"));
}

#[test]
fn lists_gather_and_comma_lists_split() {
    let args = read(&["-selector", "a:b", "-selector", "c:d", "-audience", "x,y"]).unwrap();
    assert_eq!(args.list("selector"), ["a:b", "c:d"]);
    assert_eq!(args.list("audience"), ["x", "y"]);
}

#[test]
fn defaults_are_there_and_are_not_given() {
    let args = read(&[]).unwrap();
    assert_eq!(args.duration("timeout").as_secs(), 5);
    assert!(!args.given("timeout"));
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
