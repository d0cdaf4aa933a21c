//! Nothing that a tainted authority signed stays in use.

use super::*;

/// The own bundle with this JWT key and its X.509 authority tainted.
fn taint(f: &Fixture) {
    let mut own = bundle("example.org");
    own.x509_authorities[0].tainted = true;
    own.jwt_authorities[0].tainted = true;
    f.cache.apply(Delta {
        bundles: vec![own],
        ..Delta::default()
    });
}

/// Signed by the authority of [`bundle`].
fn signed(f: &Fixture, entry: &Entry) -> IssuedSvid {
    let own = bundle("example.org");
    let authority = own.x509_authorities[0].certificate.subject_key_id();
    IssuedSvid {
        issuers: vec![authority.unwrap().to_vec()],
        ..f.svid(entry)
    }
}

fn put_token(f: &Fixture, entry: &Entry, key_id: &str) -> JwtKey {
    let key = JwtKey::new(&entry.spiffe_id, &["x".into()]);
    let token = JwtToken {
        token: Secret::new("t".into()),
        issued_at: at(0),
        expires_at: at(100),
        key_id: Some(key_id.into()),
    };
    f.cache.put_jwt(entry, key.clone(), Arc::new(token));
    key
}

#[test]
fn svids_of_a_tainted_authority_are_renewed_and_tokens_of_a_tainted_key_forgotten() {
    let f = fixture();
    let (a, b) = (
        entry("a", "/a", &["unix:uid:1"]),
        entry("b", "/b", &["unix:uid:1"]),
    );
    f.entries(&[Arc::clone(&a), Arc::clone(&b)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    f.cache.put_svids(vec![signed(&f, &a), f.svid(&b)]);
    let (tainted, sound) = (
        put_token(&f, &a, "key-of-example.org"),
        put_token(&f, &b, "k2"),
    );
    taint(&f);
    assert_eq!(stream.updates.borrow().identities.len(), 2);
    assert_eq!(f.issue(), ["a"]);
    assert!(matches!(f.cache.jwt(&tainted), Cached::Absent));
    assert!(matches!(f.cache.jwt(&sound), Cached::Fresh(_)));
}

#[test]
fn what_was_in_flight_when_the_taint_came_is_not_kept_either() {
    let f = fixture();
    let a = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&a)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    taint(&f);
    f.cache.put_svids(vec![signed(&f, &a)]);
    assert_eq!(
        stream.updates.borrow().identities.len(),
        1,
        "better than none"
    );
    assert!(
        f.cache.take_wanted(10).is_empty(),
        "a server that still signs with it is not asked without end"
    );
    f.clock.set(f.cache.next_due().unwrap());
    f.cache.tick();
    assert_eq!(f.issue(), ["a"]);
    let key = put_token(&f, &a, "key-of-example.org");
    assert!(matches!(f.cache.jwt(&key), Cached::Absent));
}

#[test]
fn a_taint_survives_a_restart() {
    let f = fixture();
    let a = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&a)]);
    let _stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    f.cache.put_svids(vec![signed(&f, &a)]);
    taint(&f);
    let kept = f.cache.snapshot();
    let next = fixture();
    next.cache.apply(Delta {
        entries: kept.entries,
        bundles: kept
            .bundles
            .iter()
            .map(|bundle| bundle.as_ref().clone())
            .collect(),
        ..Delta::default()
    });
    next.cache.restore(kept.svids);
    let stream = next.stream(&["unix:uid:1"]);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
    assert_eq!(next.issue(), ["a"]);
}
