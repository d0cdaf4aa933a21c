use super::*;
use crate::selector::Selector;

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn selectors(texts: &[&str]) -> SelectorSet {
    texts
        .iter()
        .map(|text| Selector::parse(text).unwrap())
        .collect()
}

fn entry() -> Entry {
    let parent = id("spiffe://example.org/spire/agent/join_token/x");
    Entry::new(
        "e1",
        id("spiffe://example.org/w"),
        parent,
        selectors(&["unix:uid:0"]),
    )
}

#[test]
fn accepts_a_plain_entry_and_one_without_id() {
    assert_eq!(entry().validate(&td()), Ok(()));
    assert_eq!(
        Entry {
            id: "".into(),
            ..entry()
        }
        .validate(&td()),
        Ok(())
    );
}

#[test]
fn refuses_ids_that_are_foreign_empty_or_reserved() {
    let with = |text: &str| {
        Entry {
            spiffe_id: id(text),
            ..entry()
        }
        .validate(&td())
        .unwrap_err()
        .to_string()
    };
    assert_eq!(
        with("spiffe://other/w"),
        "invalid spiffe ID: \"spiffe://other/w\" is not a member of trust domain \"example.org\""
    );
    assert!(with("spiffe://example.org").ends_with("path is empty"));
    assert!(with("spiffe://example.org/spire/x").ends_with("path is in the reserved namespace"));
    let long = format!("spiffe://example.org/{}", "a".repeat(2048));
    assert_eq!(with(&long), "invalid spiffe ID: is longer than 2048 bytes");
}

#[test]
fn refuses_parents_outside_the_trust_domain() {
    let with = |text: &str| {
        Entry {
            parent_id: id(text),
            ..entry()
        }
        .validate(&td())
    };
    assert!(matches!(
        with("spiffe://other/x"),
        Err(EntryError::ParentId(MembershipError::NotMember { .. }))
    ));
    assert!(matches!(
        with("spiffe://example.org"),
        Err(EntryError::ParentId(MembershipError::WrongPath { .. }))
    ));
    assert_eq!(with("spiffe://example.org/any/alias"), Ok(()));
}

#[test]
fn refuses_missing_selectors_and_mixed_ones_for_stored_svids() {
    let none = Entry {
        selectors: selectors(&[]),
        ..entry()
    };
    assert_eq!(none.validate(&td()), Err(EntryError::MissingSelectors));
    let mixed = Entry {
        selectors: selectors(&["a:1", "b:1"]),
        ..entry()
    };
    assert_eq!(mixed.validate(&td()), Ok(()));
    let stored = Entry {
        store_svid: true,
        ..mixed
    };
    assert_eq!(stored.validate(&td()), Err(EntryError::MixedSelectorTypes));
    let cached = Entry {
        store_svid: true,
        disable_x509_svid_prefetch: true,
        ..entry()
    };
    assert_eq!(
        cached.validate(&td()),
        Err(EntryError::StoredWithCacheBehaviour)
    );
}

#[test]
fn refuses_negative_lifetimes_long_hints_and_bad_ids() {
    let x509 = Entry {
        x509_svid_ttl: -1,
        ..entry()
    };
    assert_eq!(
        x509.validate(&td()).unwrap_err().to_string(),
        "invalid registration entry: X509SvidTtl is not set"
    );
    let jwt = Entry {
        jwt_svid_ttl: -1,
        ..entry()
    };
    assert_eq!(jwt.validate(&td()), Err(EntryError::JwtSvidTtl));
    let hinted = |n: usize| Entry {
        hint: "h".repeat(n),
        ..entry()
    };
    assert_eq!(hinted(1024).validate(&td()), Ok(()));
    assert_eq!(hinted(1025).validate(&td()), Err(EntryError::HintTooLong));
    assert_eq!(validate_entry_id(&"a".repeat(255)), Ok(()));
    assert_eq!(
        validate_entry_id(&"a".repeat(256)),
        Err(EntryError::EntryIdTooLong)
    );
    assert_eq!(validate_entry_id("a/b"), Err(EntryError::EntryIdCharacters));
    assert_eq!(validate_entry_id("-._aZ9"), Ok(()));
}

#[test]
fn dns_names_follow_spire_s_rules() {
    for name in [
        "a",
        "db.example.org",
        "*.example.org",
        "xn--caf-dma.example",
        "1.2.3.4",
        "my_host",
        "_sip._tcp.example.org",
        "A.Example.org",
        "a b.org",
        "*.my_host",
    ] {
        assert_eq!(validate_dns_name(name), Ok(()), "{name}");
    }
    for (name, fault) in [
        ("caf\u{e9}", DnsNameError::NotAscii),
        ("*.*.org", DnsNameError::TooManyWildcards),
        ("a.*.org", DnsNameError::WildcardNotFirst),
        ("*", DnsNameError::WildcardNotFirst),
        ("", DnsNameError::Empty),
        (" ", DnsNameError::Empty),
        ("a.", DnsNameError::TrailingDot),
        ("a..b", DnsNameError::BadLabel(String::new())),
        (".a", DnsNameError::BadLabel(String::new())),
        ("a\n.b", DnsNameError::BadLabel("a\n".into())),
        ("a\0", DnsNameError::BadLabel("a\0".into())),
        ("*a.org", DnsNameError::WildcardNotFirst),
        ("*. ", DnsNameError::Empty),
        ("a-.b", DnsNameError::BadLabel("a-".into())),
        ("xn--A.b", DnsNameError::BadLabel("xn--A".into())),
        ("-a", DnsNameError::BadLabel("-a".into())),
        ("ab--c", DnsNameError::BadLabel("ab--c".into())),
    ] {
        assert_eq!(check_dns_name(name), Err(fault), "{name}");
    }
    assert_eq!(
        check_dns_name(&format!("{}.org", "a".repeat(64))),
        Err(DnsNameError::BadLabel("a".repeat(64)))
    );
    assert_eq!(validate_dns_name(&"a.".repeat(127)[..253]), Ok(()));
    assert_eq!(
        check_dns_name(&format!("{}a", "a.".repeat(127))),
        Err(DnsNameError::TooLong)
    );
    let faulty = Entry {
        dns_names: vec!["a..b".into()],
        ..entry()
    };
    assert!(matches!(
        faulty.validate(&td()),
        Err(EntryError::DnsName(InvalidDnsName { .. }))
    ));
}

#[test]
fn wildcards_may_not_cover_other_names_of_the_list() {
    let names = |list: &[&str]| {
        list.iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    check_wildcard_overlap(&names(&["*.a.org", "b.a.org"])).unwrap_err();
    check_wildcard_overlap(&names(&["*.a.org", "c.b.a.org", "a.org"])).unwrap();
}

#[test]
fn entries_expire_at_their_second_and_serialise_whole() {
    let brief = Entry {
        expires_at: 100,
        ..entry()
    };
    assert!(!brief.is_expired(99) && brief.is_expired(100) && !entry().is_expired(i64::MAX));
    let json = serde_json::to_string(&brief).unwrap();
    assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), brief);
}
