use super::*;
use proptest::prelude::*;

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[track_caller]
fn refuses(text: &str, kind: IdError) {
    assert_eq!(SpiffeId::parse(text), Err(kind), "{text:?}");
}

#[track_caller]
fn accepts(text: &str) {
    let id = SpiffeId::parse(text).unwrap_or_else(|fault| panic!("{text:?}: {fault}"));
    assert_eq!(id.as_str(), text);
    assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
}

#[test]
fn id_01_scheme_is_spiffe_with_an_authority() {
    for text in [
        "http://d/p",
        "spiffe:/d/p",
        "spiffe:d/p",
        "d/p",
        "192.168.2.2:6688",
        "://d",
        "s",
        "SPIFFE://d/p",
    ] {
        refuses(text, IdError::WrongScheme);
    }
    refuses("", IdError::Empty);
}

#[test]
fn id_02_query_and_fragment_are_forbidden() {
    refuses("spiffe://d/p?q", IdError::BadPathChar);
    refuses("spiffe://d/p#f", IdError::BadPathChar);
    refuses("spiffe://d?q", IdError::BadTrustDomainChar);
}

#[test]
fn id_03_trust_domain_is_not_empty() {
    refuses("spiffe://", IdError::MissingTrustDomain);
    refuses("spiffe:///p", IdError::MissingTrustDomain);
}

#[test]
fn id_04_no_user_info() {
    for text in ["spiffe://u@d/p", "spiffe://u:p@d", "spiffe://@d"] {
        refuses(text, IdError::BadTrustDomainChar);
    }
}

#[test]
fn id_05_no_port() {
    refuses("spiffe://d:80/p", IdError::BadTrustDomainChar);
    refuses("spiffe://d:/p", IdError::BadTrustDomainChar);
}

#[test]
fn id_06_upper_case_trust_domain_is_refused_and_folded_only_on_request() {
    assert_eq!(
        TrustDomain::parse("Example.Org"),
        Err(IdError::BadTrustDomainChar)
    );
    refuses("spiffe://Example.Org/A", IdError::BadTrustDomainChar);
    assert_eq!(
        SpiffeId::parse_folding("SpIfFe://Example.Org/A")
            .unwrap()
            .as_str(),
        "spiffe://example.org/A"
    );
    assert_eq!(
        SpiffeId::parse_folding("http://d/p"),
        Err(IdError::WrongScheme)
    );
}

#[test]
fn id_07_trust_domain_alphabet() {
    let mut allowed = 0;
    for c in (0u8..=255).map(char::from).filter(|c| *c != '/') {
        match SpiffeId::parse(&format!("spiffe://d{c}/p")) {
            Ok(_) => allowed += 1,
            Err(kind) => assert_eq!(kind, IdError::BadTrustDomainChar, "{c:?}"),
        }
    }
    assert_eq!(allowed, 39);
}

#[test]
fn id_08_no_percent_encoding_in_the_trust_domain() {
    refuses("spiffe://%62ad/p", IdError::BadTrustDomainChar);
    refuses("spiffe://%F0%9F%A4%AF/p", IdError::BadTrustDomainChar);
}

#[test]
fn id_09_trust_domain_needs_no_sense_as_address_or_host_name() {
    let names = [
        "1.2.3.4",
        "a_b.example",
        "example..org",
        ".example.org",
        "example.org.",
        "-example.org",
        "example-.org",
        ".",
        "_",
    ];
    for name in names {
        accepts(&format!("spiffe://{name}"));
        accepts(&format!("spiffe://{name}/p"));
        assert_eq!(td(name).as_str(), name);
    }
    refuses("spiffe://[::1]/p", IdError::BadTrustDomainChar);
}

#[test]
fn id_10_no_percent_encoding_in_the_path() {
    refuses("spiffe://d/%62", IdError::BadPathChar);
    refuses("spiffe://d/%2e", IdError::BadPathChar);
}

#[test]
fn id_11_no_empty_segments() {
    for text in [
        "spiffe://d//",
        "spiffe://d//p",
        "spiffe://d/a//b",
        "spiffe://d//$",
    ] {
        refuses(text, IdError::EmptySegment);
    }
}

#[test]
fn id_12_no_relative_segments() {
    for path in ["/.", "/..", "/./a", "/../a", "/a/./b", "/a/.."] {
        refuses(&format!("spiffe://d{path}"), IdError::DotSegment);
    }
    for path in ["/.a", "/..a", "/..."] {
        accepts(&format!("spiffe://d{path}"));
    }
    refuses("spiffe://d/$/..", IdError::BadPathChar);
}

#[test]
fn id_13_no_trailing_slash() {
    refuses("spiffe://d/", IdError::TrailingSlash);
    refuses("spiffe://d/a/", IdError::TrailingSlash);
}

#[test]
fn id_14_path_alphabet() {
    let mut allowed = 0;
    for c in (0u8..=255).map(char::from).filter(|c| *c != '/') {
        match SpiffeId::parse(&format!("spiffe://d/p{c}")) {
            Ok(_) => allowed += 1,
            Err(kind) => assert_eq!(kind, IdError::BadPathChar, "{c:?}"),
        }
    }
    assert_eq!(allowed, 65);
}

#[test]
fn id_15_paths_may_be_absent_or_nested() {
    accepts("spiffe://d");
    accepts("spiffe://d/a/b/c");
    assert!(!SpiffeId::parse("spiffe://d").unwrap().has_path());
}

#[test]
fn id_16_2048_bytes_are_read() {
    let text = format!("spiffe://d/{}", "a".repeat(2048 - 11));
    assert_eq!(text.len(), 2048);
    accepts(&text);
    let json = serde_json::to_string(&SpiffeId::parse(&text).unwrap()).unwrap();
    assert_eq!(
        serde_json::from_str::<SpiffeId>(&json).unwrap().as_str(),
        text
    );
}

#[test]
fn id_17_more_than_2048_bytes_are_never_made() {
    let fits = format!("/{}", "a".repeat(2048 - 11));
    SpiffeId::from_path(&td("d"), &fits).unwrap();
    assert_eq!(
        SpiffeId::from_path(&td("d"), &format!("{fits}a")),
        Err(IdError::TooLong)
    );
    // Foreign ones are read up to a cap (AMB-2).
    accepts(&format!("spiffe://d{fits}a"));
    refuses(
        &format!("spiffe://d/{}", "a".repeat(8192)),
        IdError::TooLong,
    );
}

#[test]
fn id_18_trust_domain_has_at_most_255_bytes() {
    accepts(&format!("spiffe://{}/p", "a".repeat(255)));
    refuses(&format!("spiffe://{}/p", "a".repeat(256)), IdError::TooLong);
    assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(IdError::TooLong));
}

#[test]
fn id_19_comparison_is_case_sensitive() {
    assert_ne!(
        SpiffeId::parse("spiffe://d/A"),
        SpiffeId::parse("spiffe://d/a")
    );
}

#[test]
fn id_20_building_from_segments_and_paths() {
    let d = td("d");
    assert_eq!(
        SpiffeId::from_segments(&d, &[]).unwrap().as_str(),
        "spiffe://d"
    );
    assert_eq!(
        SpiffeId::from_segments(&d, &["foo", "Bar"])
            .unwrap()
            .as_str(),
        "spiffe://d/foo/Bar"
    );
    for (segment, kind) in [
        ("", IdError::EmptySegment),
        (".", IdError::DotSegment),
        ("..", IdError::DotSegment),
        ("/", IdError::BadPathChar),
        ("/foo", IdError::BadPathChar),
        ("foo/bar", IdError::BadPathChar),
        ("$", IdError::BadPathChar),
    ] {
        assert_eq!(
            SpiffeId::from_segments(&d, &[segment]),
            Err(kind),
            "{segment:?}"
        );
    }
    assert_eq!(SpiffeId::from_path(&d, "foo"), Err(IdError::NoLeadingSlash));
    assert_eq!(SpiffeId::from_path(&d, "/"), Err(IdError::TrailingSlash));
    assert_eq!(SpiffeId::from_path(&d, "/foo").unwrap().path(), "/foo");
}

#[test]
fn trust_domain_is_read_from_a_name_or_an_id() {
    for text in [
        "trustdomain",
        "spiffe://trustdomain",
        "spiffe://trustdomain/path",
    ] {
        assert_eq!(td(text).as_str(), "trustdomain");
    }
    for (text, kind) in [
        ("", IdError::MissingTrustDomain),
        ("spiffe:/td/p", IdError::WrongScheme),
        ("other://d", IdError::WrongScheme),
        ("://d", IdError::WrongScheme),
        ("spiffe:// d", IdError::BadTrustDomainChar),
        ("spiffe://d/a/", IdError::TrailingSlash),
    ] {
        assert_eq!(TrustDomain::parse(text), Err(kind), "{text:?}");
    }
    assert_eq!(td("a").id().as_str(), "spiffe://a");
    assert_eq!(td("a").id_string(), "spiffe://a");
}

#[test]
fn reserved_and_agent_paths_are_distinguished() {
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    assert!(id("spiffe://d/spire").is_reserved() && id("spiffe://d/spire/server").is_reserved());
    assert!(!id("spiffe://d/spirex").is_reserved() && !id("spiffe://d/a/spire").is_reserved());
    assert_eq!(
        SpiffeId::server(&td("d")).as_str(),
        "spiffe://d/spire/server"
    );
    let agent = SpiffeId::agent(&td("d"), "/join_token/x").unwrap();
    assert_eq!(agent.as_str(), "spiffe://d/spire/agent/join_token/x");
    assert!(agent.is_agent() && agent.is_agent_of("join_token") && !agent.is_agent_of("join"));
    assert!(
        !id("spiffe://d/spire/agent").is_agent() && !id("spiffe://d/spire/agents/x").is_agent()
    );
    assert_eq!(SpiffeId::agent(&td("d"), "x"), Err(IdError::NoLeadingSlash));
    assert!(agent.is_member_of(&td("d")) && !agent.is_member_of(&td("dd")));
}

proptest! {
    #[test]
    fn whatever_parses_prints_and_parses_back(text in "spiffe://[a-z0-9._/-]{0,40}[ -~]{0,20}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert_eq!(SpiffeId::from_path(&id.trust_domain(), id.path()), Ok(id));
        }
    }
}
