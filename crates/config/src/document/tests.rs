//! The language as its readers see it.

mod faults;
mod hcl1;

use super::*;

fn parse(text: &str) -> Document {
    Document::parse("server.conf", text, None)
        .unwrap_or_else(|faults| panic!("{faults}\n---\n{text}"))
}

fn refusal(text: &str) -> Fault {
    let faults = Document::parse("server.conf", text, None).expect_err("must be refused");
    faults.into_iter().next().expect("at least one fault")
}

const SERVER: &str = r#"
server {
    bind_port = "8081"
    trust_domain = "example.org"
    ratelimit = { signing = false }
    admin_ids = ["spiffe://example.org/a", "spiffe://example.org/b",]
    federation {
        federates_with "one.test" { bundle_endpoint_url = "https://one.test" }
        federates_with "two.test" { bundle_endpoint_url = "https://two.test" }
    }
}
plugins {
    KeyManager "memory" { plugin_data {} }
}
"#;

const SERVER_JSON: &str = r#"{
    "server": {
        "bind_port": 8081,
        "trust_domain": "example.org",
        "ratelimit": { "signing": false },
        "admin_ids": ["spiffe://example.org/a", "spiffe:\/\/example.org/\u0062"],
        "federation": [{
            "federates_with": [
                { "one.test": [{ "bundle_endpoint_url": "https://one.test" }] },
                { "two.test": { "bundle_endpoint_url": "https://two.test" } }
            ]
        }]
    },
    "plugins": { "KeyManager": { "memory": { "plugin_data": {} } } }
}"#;

#[test]
fn reads_the_same_from_hcl_and_json() {
    for text in [SERVER, SERVER_JSON] {
        let document = parse(text);
        let root = document.root();
        let server = root.section("server").unwrap();
        assert_eq!(server.port("bind_port"), Some(8081));
        assert_eq!(
            server
                .required_string("trust_domain", "example.org")
                .as_deref(),
            Some("example.org")
        );
        assert_eq!(
            server.section("ratelimit").unwrap().boolean("signing"),
            Some(false)
        );
        let admins = server.strings("admin_ids").unwrap();
        assert_eq!(admins, ["spiffe://example.org/a", "spiffe://example.org/b"]);
        let federation = server.section("federation").unwrap();
        let peers: Vec<(String, Option<String>)> = federation
            .sections_labelled("federates_with")
            .into_iter()
            .map(|(label, section)| (label.value, section.string("bundle_endpoint_url")))
            .collect();
        let peer = |name: &str| (name.to_owned(), Some(format!("https://{name}")));
        assert_eq!(peers, [peer("one.test"), peer("two.test")]);
        let plugins = root.section("plugins").unwrap();
        let (name, memory) = plugins.sections_labelled("KeyManager").remove(0);
        assert_eq!(
            (name.value.as_str(), memory.path()),
            ("memory", "plugins.KeyManager \"memory\"")
        );
        assert!(memory.section("plugin_data").is_some());
        document.check().unwrap();
    }
}

#[test]
fn takes_blocks_of_the_same_name_together() {
    let document = parse("server { a = 1 }\nserver = { b = 2 }\n\"server\" { c = 3 }");
    let server = document.root().section("server").unwrap();
    let numbers = ["a", "b", "c"].map(|key| server.integer(key));
    assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
    assert_eq!(document.root().sections("server").len(), 3);
    document.check().unwrap();
}

#[test]
fn compares_keys_without_regard_to_case() {
    let document = parse("Server { TRUST_DOMAIN = \"a\" }");
    let server = document.root().section("server").unwrap();
    assert_eq!(server.string("trust_domain").as_deref(), Some("a"));
    document.check().unwrap();
}

#[test]
fn a_missing_block_reads_as_an_empty_one() {
    let document = parse("");
    let health = document.root().section_or_empty("health_checks");
    assert_eq!(health.boolean("listener_enabled"), None);
    assert!(document.root().section("server").is_none());
    document.check().unwrap();
}

#[test]
fn gives_a_value_as_it_is_written() {
    let document = parse("plugin_data { a = \"b\" c { d = 1 } }");
    let raw = document.root().raw("plugin_data").unwrap();
    assert_eq!(raw.value, "{ a = \"b\" c { d = 1 } }");
    assert_eq!(document.root().position_of(&raw), "server.conf:1:13");
    document.check().unwrap();
}

#[test]
fn reads_numbers_and_durations() {
    let document = parse("a = 0x1F b = 0644 c = -7 d = \"12\" e = 1.5 t = \"1h30m\" zero = 0");
    let root = document.root();
    let numbers = ["a", "b", "c", "d"].map(|key| root.integer(key));
    assert_eq!(numbers, [Some(31), Some(420), Some(-7), Some(12)]);
    assert_eq!(root.string("e").as_deref(), Some("1.5"));
    assert_eq!(
        root.duration("t"),
        Some(std::time::Duration::from_secs(5400))
    );
    assert_eq!(root.duration("zero"), Some(std::time::Duration::ZERO));
    document.check().unwrap();
}

#[test]
fn expands_variables_and_keeps_the_positions_of_the_file() {
    let environment = |name: &str| match name {
        "DOMAIN" => Some("example.org".to_owned()),
        "BLOCK" => Some("server {\n  bind_port = 1\n}\n".to_owned()),
        _ => None,
    };
    let text = "${BLOCK}agent {\n  domain = \"$DOMAIN\" bogus = 1\n  empty = \"$UNSET\"\n  price = \"$$5\"\n}\n";
    let document = Document::parse("agent.conf", text, Some(&environment)).unwrap();
    let root = document.root();
    let agent = root.section("agent").unwrap();
    assert_eq!(agent.string("domain").as_deref(), Some("example.org"));
    assert_eq!(agent.string("empty").as_deref(), Some(""));
    assert_eq!(agent.non_empty_string("empty"), None);
    assert_eq!(agent.string("price").as_deref(), Some("$5"));
    assert_eq!(root.section("server").unwrap().boolean("bind_port"), None);
    let faults = document.check().unwrap_err();
    let places: Vec<&str> = faults
        .iter()
        .filter_map(|fault| fault.at.as_deref())
        .collect();
    assert_eq!(places, ["agent.conf:1:1", "agent.conf:2:22"]);
    let excerpt = faults.0[1].excerpt.as_deref().unwrap();
    assert_eq!(
        excerpt,
        "2 |   domain = \"$DOMAIN\" bogus = 1\n  |                      ^^^^^"
    );
}

#[test]
fn leaves_dollar_signs_alone_without_expansion() {
    let document = parse("a = \"$HOME ${HOME} $$\"");
    assert_eq!(
        document.root().string("a").as_deref(),
        Some("$HOME ${HOME} $$")
    );
}

/// What the fuzz target does, on the inputs it begins with.
#[test]
fn replays_the_fuzz_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/hcl");
    let mut good = 0;
    let mut bad = 0;
    for file in std::fs::read_dir(&corpus).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let Ok(text) = std::str::from_utf8(&bytes) else {
            continue;
        };
        let environment = |name: &str| Some(name.to_owned());
        for expand in [None, Some(&environment as Environment<'_>)] {
            match Document::parse("fuzz.conf", text, expand) {
                Ok(document) => {
                    document.root().finish();
                    assert!(document.faults().iter().all(|fault| fault.at.is_some()));
                    good += 1;
                }
                Err(faults) => {
                    assert!(
                        faults
                            .iter()
                            .all(|fault| fault.code == Code::ConfigSyntax && fault.at.is_some())
                    );
                    bad += 1;
                }
            }
        }
    }
    assert!(good >= 10 && bad >= 10, "{good} {bad}");
}

#[test]
fn no_input_makes_it_panic() {
    let fragments = [
        "a", " ", "=", "{", "}", "[", "]", ",", "\"", "\\", "$", "${", "<<E\n", "<<-", "E", "\n",
        "#", "//", "/*", "*/", "-", ".", "0x", "1e", "true", "ä", "\u{0}", "\r", "'", ":", "null",
        "\u{feff}", "\"b\"",
    ];
    // Every triple, alone and inside a block; then long runs by a small generator.
    let mut state: u64 = 7;
    let mut texts: Vec<String> = Vec::new();
    for a in fragments {
        for b in fragments {
            for c in fragments {
                texts.push(format!("{a}{b}{c}"));
            }
        }
    }
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..24 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let index = usize::try_from(state >> 33).unwrap() % fragments.len();
            text.push_str(fragments[index]);
        }
        texts.push(text);
    }
    let environment = |name: &str| Some(name.to_owned());
    for text in &texts {
        for expand in [None, Some(&environment as Environment<'_>)] {
            match Document::parse("x", text, expand) {
                Ok(document) => {
                    document.root().string("a");
                    document.root().finish();
                    assert!(document.faults().len() <= text.len());
                }
                Err(faults) => assert!(faults.to_string().contains("PLA-1202"), "{text:?}"),
            }
        }
    }
}
