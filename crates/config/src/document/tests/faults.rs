//! What an operator reads.

use super::*;

fn whats(document: &Document) -> Vec<String> {
    document
        .faults()
        .into_iter()
        .map(|fault| fault.what)
        .collect()
}

#[test]
fn an_unknown_key_is_marked_and_the_likely_one_named() {
    let document = parse("server {\n    trust_domain = \"a\"\n    loglevel = \"DEBUG\"\n}");
    let server = document.root().section("server").unwrap();
    server.string("trust_domain");
    server.string("log_level");
    server.finish();
    let faults = document.faults();
    assert_eq!(
        faults[0].to_string(),
        "error[PLA-1203]: unknown key \"loglevel\" in server; did you mean \"log_level\"?\n  \
         at: server.conf:3:5\n    \
         3 |     loglevel = \"DEBUG\"\n      \
           |     ^^^^^^^^\n  \
         see: plastron help PLA-1203"
    );
    assert_eq!(faults.len(), 1);
}

#[test]
fn a_key_of_another_block_is_sent_there() {
    let document = parse("log_level = \"INFO\"\nserver { agent { } }\nhealth_checks {}");
    let root = document.root();
    root.section("health_checks");
    root.section("agent");
    root.section("server").unwrap().string("log_level");
    let faults = document.check().unwrap_err();
    let hints: Vec<Option<&str>> = faults.iter().map(|fault| fault.hint.as_deref()).collect();
    assert_eq!(
        hints,
        [
            Some("it belongs in server"),
            Some("it belongs at the top level of the file")
        ]
    );
}

#[test]
fn an_unread_block_is_one_fault_whatever_it_holds() {
    let document = parse("telemetri { a = 1 b { c = 2 } }");
    document.root().section("telemetry");
    document.check().unwrap_err();
    assert_eq!(
        whats(&document),
        ["unknown key \"telemetri\"; did you mean \"telemetry\"?"]
    );
}

#[test]
fn unknown_keys_are_found_at_every_level() {
    let document = parse("server { x = 1 federation { y = 1 federates_with \"t\" { zz = 1 } } }");
    let server = document.root().section("server").unwrap();
    let federation = server.section("federation").unwrap();
    federation.sections_labelled("federates_with");
    document.check().unwrap_err();
    assert_eq!(
        whats(&document),
        [
            "unknown key \"x\" in server",
            "unknown key \"y\" in server.federation",
            "unknown key \"zz\" in server.federation.federates_with \"t\"",
        ]
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let document = parse("server {\n  experimental { events_based_cache = true }\n}");
    let server = document.root().section("server").unwrap();
    server.unsupported(&[
        ("experimental", "entries are pushed to agents in any case"),
        ("profiling_enabled", ""),
    ]);
    server.finish();
    let faults = document.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].code, Code::NotYetSupported);
    assert_eq!(faults[0].what, "server.experimental is not yet supported");
    assert_eq!(
        faults[0].hint.as_deref(),
        Some("entries are pushed to agents in any case")
    );
    assert_eq!(faults[0].at.as_deref(), Some("server.conf:2:3"));
}

#[test]
fn a_wrong_type_is_a_fault_and_reads_as_nothing() {
    let document = parse(
        "a = true\nb = \"true\"\nc = \"x\"\nd = 5\ne = \"soon\"\nf = [1, true]\ng = \"x\"\nh = 1\ni = 1.5\nj { }\nk = [1]",
    );
    let root = document.root();
    assert_eq!(root.string("a"), None);
    assert_eq!(root.boolean("b"), None);
    assert_eq!(root.integer("c"), None);
    assert_eq!(root.duration("d"), None);
    assert_eq!(root.duration("e"), None);
    assert_eq!(root.strings("f"), None);
    assert_eq!(root.strings("g"), None);
    assert!(root.section("h").is_none());
    assert_eq!(root.integer("i"), None);
    assert_eq!(root.string("j"), None);
    assert!(root.sections("k").is_empty());
    root.finish();
    assert_eq!(
        whats(&document),
        [
            "a takes a string, found true or false",
            "b takes true or false, found a string",
            "c takes a whole number, found a string",
            "d: the duration lacks a unit; write it like \"30s\", \"5m\" or \"1h30m\"",
            "e: the duration has an unknown unit; units are h, m, s, ms, us and ns",
            "f takes a list of strings, found true or false",
            "g takes a list of strings, found a string",
            "h takes a block, found a number",
            "i takes a whole number, found a number",
            "j takes a string, found a block",
            "k takes a block, found a number",
        ]
    );
    let second = &document.faults()[1];
    assert_eq!(
        second.hint.as_deref(),
        Some("write b = true, without quotes")
    );
}

#[test]
fn a_required_key_is_missed_at_its_block() {
    let document =
        parse("\nserver {\n}\nagent { trust_domain = \"\" }\nother { trust_domain = [] }");
    for name in ["server", "agent", "other"] {
        let section = document.root().section(name).unwrap();
        assert_eq!(section.required_string("trust_domain", "example.org"), None);
    }
    let faults = document.faults();
    assert_eq!(
        whats(&document),
        [
            "server.trust_domain is missing",
            "agent.trust_domain must not be empty",
            "trust_domain takes a string, found a list",
        ]
    );
    assert_eq!(faults[0].at.as_deref(), Some("server.conf:2:1"));
    assert_eq!(
        faults[0].hint.as_deref(),
        Some("for instance trust_domain = \"example.org\"")
    );
}

#[test]
fn a_key_set_twice_is_refused_since_one_would_be_ignored() {
    let document = parse("a = 1\nA = 2\ns { b = 1 }\ns { b = 2 }");
    assert_eq!(document.root().integer("a"), Some(1));
    document.root().section("s").unwrap().integer("b");
    assert_eq!(whats(&document), ["a is set twice", "b is set twice"]);
    let hint = document.faults()[0].hint.clone();
    assert_eq!(
        hint.as_deref(),
        Some("it is set before at server.conf:1:1; remove one")
    );
}

#[test]
fn one_of_a_few_is_checked_and_guessed() {
    let document = parse("database_type = \"sqlite\"\nok = \"pem\"");
    let root = document.root();
    assert_eq!(root.one_of("ok", &["pem", "spiffe"]), Some("pem"));
    assert_eq!(
        root.one_of("database_type", &["sqlite3", "postgres", "mysql"]),
        None
    );
    let fault = &document.faults()[0];
    assert_eq!(
        fault.what,
        "database_type must be one of sqlite3, postgres, mysql"
    );
    assert_eq!(fault.hint.as_deref(), Some("did you mean \"sqlite3\"?"));
}

#[test]
fn a_number_out_of_range_is_refused() {
    let document = parse("port = 70000 huge = 99999999999999999999 neg = -1");
    let root = document.root();
    assert_eq!(
        (root.port("port"), root.integer("huge"), root.port("neg")),
        (None, None, None)
    );
    assert_eq!(document.faults().len(), 3);
}

#[test]
fn faults_come_in_the_order_of_the_file_and_once() {
    let document = parse("a = 1\nb = 1\nc = 1");
    let root = document.root();
    for _ in 0..2 {
        root.boolean("c");
        root.fault_at("a", "a is odd", "");
        root.finish();
    }
    let lines: Vec<String> = document
        .faults()
        .into_iter()
        .filter_map(|fault| fault.at)
        .collect();
    assert_eq!(
        lines,
        [
            "server.conf:1:1",
            "server.conf:1:5",
            "server.conf:2:1",
            "server.conf:3:5"
        ]
    );
}

#[test]
fn a_hopeless_file_is_refused_in_bounded_time() {
    let mut text = String::new();
    for number in 0..20_000 {
        text.push_str(&format!("k{number} = [true]\n"));
    }
    let document = parse(&text);
    let root = document.root();
    for number in 0..400 {
        root.strings(&format!("k{number}"));
    }
    root.finish();
    assert_eq!(document.faults().len(), 400);
}

#[test]
fn secrets_are_blanked_and_control_characters_replaced_in_excerpts() {
    let document = parse("connection_string = \"password=hunter2\" x = 1\ny = \"a\u{1b}[31m\"");
    let root = document.root();
    root.boolean("connection_string");
    root.boolean("y");
    let text = Faults(document.faults()).to_string();
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(
        text.contains("connection_string = \"****************\" x = 1"),
        "{text}"
    );
}

#[test]
fn an_excerpt_keeps_tabs_and_shows_the_part_of_a_long_line() {
    let long = format!("\ta = \"{}\" bad_key = 1", "x".repeat(500));
    let document = parse(&long);
    document.root().boolean("a");
    document.root().finish();
    let faults = document.faults();
    assert!(
        faults[0]
            .excerpt
            .as_deref()
            .unwrap()
            .contains("\n  | \t    ^")
    );
    let excerpt = faults[1].excerpt.as_deref().unwrap();
    let lines: Vec<&str> = excerpt.lines().collect();
    let caret = lines[1].find('^').unwrap();
    assert!(
        lines[0].get(caret..).unwrap().starts_with("bad_key"),
        "{excerpt}"
    );
    assert!(lines[0].chars().count() < 130);
}

#[test]
fn a_file_that_cannot_be_read_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Document::load(&directory.path().join("none.conf"), None).unwrap_err();
    assert_eq!(missing.0[0].code, Code::ConfigUnreadable);
    assert!(
        missing.0[0]
            .because
            .as_deref()
            .unwrap()
            .contains("No such file")
    );
    let binary = directory.path().join("binary.conf");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert_eq!(
        Document::load(&binary, None).unwrap_err().0[0].code,
        Code::ConfigUnreadable
    );
    let big = directory.path().join("big.conf");
    std::fs::write(&big, vec![b' '; MAX_BYTES + 1]).unwrap();
    assert!(
        Document::load(&big, None).unwrap_err().0[0]
            .what
            .contains("larger than 4 MiB")
    );
    std::fs::write(&big, "a = 1").unwrap();
    assert_eq!(
        Document::load(&big, None).unwrap().root().integer("a"),
        Some(1)
    );
}

#[test]
fn null_is_an_absent_value_in_json() {
    let text = r#"{"server": {"a": null, "b": {"c": null}, "d": 1}, "x": null}"#;
    let document = Document::parse("server.conf", text, None).unwrap();
    let server = document.root().section("server").unwrap();
    assert!(!server.has("a") && !document.root().has("x"));
    assert_eq!(server.string("a"), None);
    assert_eq!(server.boolean("a"), None);
    assert_eq!(server.strings("a"), None);
    assert_eq!(server.section("b").unwrap().string("c"), None);
    assert_eq!(server.integer("d"), Some(1));
    document.check().unwrap();
}

#[test]
fn a_yaml_file_is_recognised() {
    for text in [
        "server:\n  trust_domain: example.org\n",
        "# x\n---\nserver:\n",
    ] {
        let faults = Document::parse("server.yaml", text, None).unwrap_err();
        let hint = faults.0[0].hint.as_deref().unwrap();
        assert!(hint.contains("YAML"), "{faults}");
    }
    let hcl = Document::parse("server.conf", "server {\n a = \n}", None).unwrap_err();
    assert!(!hcl.to_string().contains("YAML"), "{hcl}");
}

#[test]
fn a_list_in_place_of_a_block_says_what_to_write() {
    let document = Document::parse("s", "plugins = [\"KeyManager\"]", None).unwrap();
    assert!(document.root().section("plugins").is_none());
    let fault = document.check().unwrap_err().0.remove(0);
    assert!(fault.what.starts_with("plugins takes a block"), "{fault}");
    assert_eq!(fault.hint.as_deref(), Some("write plugins { … }"));
}
