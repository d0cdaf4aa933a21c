//! What expires is withdrawn at that second, and a clock that was wrong does no lasting harm.

use super::*;
use spiffe::clock::unix_seconds;

fn until(entry: &Arc<Entry>, seconds: u64) -> Arc<Entry> {
    revised(entry, |entry| entry.expires_at = unix_seconds(at(seconds)))
}

fn token(f: &Fixture, entry: &Arc<Entry>) -> JwtKey {
    let key = JwtKey::new(&entry.spiffe_id, &["x".into()]);
    let token = JwtToken {
        token: Secret::new("t".into()),
        issued_at: f.clock.now(),
        expires_at: f.clock.now() + Duration::from_secs(300),
        key_id: Some("k1".into()),
    };
    f.cache.put_jwt(entry, key.clone(), Arc::new(token));
    key
}

#[test]
fn an_entry_is_withdrawn_with_its_svid_and_tokens_at_the_second_of_its_expiry() {
    let f = fixture();
    let brief = until(&entry("a", "/a", &["unix:uid:1"]), 30);
    f.entries(&[Arc::clone(&brief), entry("b", "/b", &["unix:uid:1"])]);
    let mut stream = f.stream(&["unix:uid:1"]);
    f.issue();
    let key = token(&f, &brief);
    assert_eq!(f.cache.next_due(), Some(at(30)));
    f.clock.set(at(30) - Duration::from_millis(1));
    f.cache.tick();
    assert_eq!(stream.updates.borrow_and_update().entries.len(), 2);
    f.clock.set(at(30));
    f.cache.tick();
    assert!(stream.updates.has_changed().unwrap());
    assert_eq!(ids(&stream.updates.borrow()), ["spiffe://example.org/b"]);
    assert!(matches!(f.cache.jwt(&key), Cached::Absent));
    assert_eq!(f.cache.counts().x509_svids, 1);
}

#[test]
fn who_comes_after_a_suspend_gets_nothing_that_expired_meanwhile() {
    let f = fixture();
    f.entries(&[
        until(&entry("a", "/a", &["unix:uid:1"]), 30),
        entry("b", "/b", &["unix:uid:1"]),
    ]);
    let former = f.stream(&["unix:uid:1"]);
    f.issue();
    let set = selectors(&["unix:uid:1"]);
    // Nothing ticks: the sync task sleeps on.
    f.clock.set(at(40));
    let current = f.cache.current(&set);
    assert_eq!(ids(&current), ["spiffe://example.org/b"]);
    assert_eq!(current.entries.len(), 1);
    f.clock.set(at(100));
    let stream = f.stream(&["unix:uid:1"]);
    assert!(stream.updates.borrow().identities.is_empty());
    assert!(former.updates.borrow().identities.is_empty());
    assert_eq!(f.issue(), ["b"]);
}

#[test]
fn an_entry_that_had_expired_before_it_came_is_nobodys_and_not_waited_for() {
    let f = fixture();
    f.clock.set(at(60));
    f.entries(&[until(&entry("a", "/a", &["unix:uid:1"]), 30)]);
    let stream = f.stream(&["unix:uid:1"]);
    assert!(!stream.updates.borrow().has_identity());
    assert_eq!(stream.outlook(Duration::from_secs(5)), Outlook::Settled);
    assert!(f.cache.take_wanted(10).is_empty());
    let nearest = f.cache.nearest(&selectors(&["unix:uid:1"])).unwrap();
    assert!(nearest.expired && nearest.lacking == 0);
}

#[test]
fn an_entry_that_expires_while_its_svid_is_wanted_or_in_flight_gets_none() {
    let f = fixture();
    let brief = until(&entry("a", "/a", &["unix:uid:1"]), 30);
    let other = until(&entry("b", "/b", &["unix:uid:1"]), 30);
    f.entries(&[Arc::clone(&brief), other]);
    let stream = f.stream(&["unix:uid:1"]);
    assert_eq!(f.cache.take_wanted(1).len(), 1);
    f.clock.set(at(30));
    f.cache.tick();
    f.cache.put_svids(vec![f.svid(&brief)]);
    assert!(f.cache.take_wanted(10).is_empty());
    assert!(stream.updates.borrow().identities.is_empty());
    token(&f, &brief);
    assert_eq!(f.cache.counts().jwt_svids, 0);
}

#[test]
fn an_expiry_that_is_put_off_or_taken_away_withdraws_nothing() {
    let f = fixture();
    let brief = until(&entry("a", "/a", &["unix:uid:1"]), 30);
    f.entries(&[Arc::clone(&brief)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.issue();
    f.entries(&[until(&brief, 60)]);
    f.issue();
    f.clock.set(at(31));
    f.cache.tick();
    assert!(stream.updates.borrow().has_identity());
    f.entries(&[revised(&until(&brief, 60), |entry| entry.expires_at = 0)]);
    f.issue();
    f.clock.set(at(70));
    f.cache.tick();
    assert!(stream.updates.borrow().has_identity());
}

#[test]
fn an_svid_that_ends_with_its_entry_is_not_renewed_since_no_other_would_live_longer() {
    let f = fixture();
    f.entries(&[until(&entry("a", "/a", &["unix:uid:1"]), 100)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.issue();
    f.clock.set(at(99));
    f.cache.tick();
    assert!(f.cache.take_wanted(10).is_empty());
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Settled);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
}

#[test]
fn a_token_leaves_the_cache_when_it_expires() {
    let f = fixture();
    let made = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&made)]);
    token(&f, &made);
    f.clock.set(at(299));
    f.cache.tick();
    assert_eq!(f.cache.counts().jwt_svids, 1);
    f.clock.set(at(300));
    f.cache.tick();
    assert_eq!(f.cache.counts().jwt_svids, 0);
    assert_eq!(f.cache.next_due(), None);
}

#[test]
fn authorities_leave_the_bundle_when_they_expire_and_the_last_x509_authority_stays() {
    let f = fixture();
    let stream = f.stream(&["unix:uid:1"]);
    let mut two_keys = bundle("example.org");
    two_keys.jwt_authorities[0].expires_at = Some(unix_seconds(at(40)));
    let mut later = two_keys.jwt_authorities[0].clone();
    later.key_id = "later".into();
    later.expires_at = Some(unix_seconds(at(50)));
    two_keys.jwt_authorities.push(later);
    f.cache.apply(Delta {
        bundles: vec![two_keys],
        ..Delta::default()
    });
    let left = || -> Vec<String> {
        let update = stream.updates.borrow();
        let bundle = &update.own.as_ref().unwrap().bundle;
        assert_eq!(bundle.x509_authorities.len(), 1);
        let keys = bundle.jwt_authorities.iter();
        keys.map(|key| key.key_id.clone()).collect()
    };
    assert_eq!(left(), ["key-of-example.org", "later"]);
    f.clock.set(at(40));
    f.cache.tick();
    assert_eq!(left(), ["later"]);
    f.clock.set(at(50));
    f.cache.tick();
    assert!(left().is_empty());
    assert_eq!(
        f.cache.bundles()[0].jwt_authorities.len(),
        2,
        "what the server sent is kept"
    );
}

#[test]
fn a_clock_that_jumps_ahead_and_back_loses_no_entry_and_no_authority() {
    let f = fixture();
    let lasting = until(&entry("a", "/a", &["unix:uid:1"]), 3600);
    f.entries(&[lasting]);
    let mut own = bundle("example.org");
    own.jwt_authorities[0].expires_at = Some(unix_seconds(at(3600)));
    f.cache.apply(Delta {
        bundles: vec![own],
        ..Delta::default()
    });
    let stream = f.stream(&["unix:uid:1"]);
    f.issue();
    f.clock.set(at(7200));
    f.cache.tick();
    assert!(!stream.updates.borrow().has_identity());
    f.clock.set(at(10));
    f.cache.tick();
    assert!(stream.updates.borrow().has_identity());
    let jwt_authorities = || {
        let update = stream.updates.borrow();
        update.own.as_ref().unwrap().bundle.jwt_authorities.len()
    };
    assert_eq!(jwt_authorities(), 1);
    assert_eq!(f.issue(), ["a"]);
    // And the expiry counts when it comes for real.
    f.clock.set(at(3600));
    f.cache.tick();
    assert!(!stream.updates.borrow().has_identity());
    assert_eq!(jwt_authorities(), 0);
}

#[test]
fn a_pause_that_began_while_the_clock_was_ahead_ends_when_it_is_set_back() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let _stream = f.stream(&["unix:uid:1"]);
    f.clock.set(at(7200));
    f.cache.tick();
    let wanted = f.cache.take_wanted(1);
    let mut expired = f.svid(&wanted[0]);
    expired.not_after = at(100);
    f.cache.put_svids(vec![expired]);
    f.clock.set(at(1));
    f.cache.tick();
    assert_eq!(f.issue(), ["a"]);
}
