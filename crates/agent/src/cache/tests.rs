use spiffe::clock::ManualClock;
use spiffe::key::{KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::secret::Secret;

use super::inner::IDLE_SETS;
use super::*;
use crate::testing::{at, bundle, entry, id, selectors, trust_domain};
use prost::Message as _;
use proto::workload::{JwtBundlesResponse, X509BundlesResponse, X509svidResponse};

struct Fixture {
    cache: Cache,
    clock: ManualClock,
}

fn fixture_of(x509_svids: usize) -> Fixture {
    let clock = ManualClock::new(at(0));
    let options = CacheOptions {
        trust_domain: trust_domain(),
        x509_svids,
        jwt_svids: 10,
        rotation: RotationRule::default(),
    };
    let cache = Cache::new(options, Arc::new(clock.clone()), Arc::new(SystemRandom));
    assert!(cache.apply(Delta {
        bundles: vec![bundle("example.org")],
        ..Delta::default()
    }));
    Fixture { cache, clock }
}

fn fixture() -> Fixture {
    fixture_of(100)
}

impl Fixture {
    fn entries(&self, entries: &[Arc<Entry>]) {
        self.cache.apply(Delta {
            entries: entries.to_vec(),
            ..Delta::default()
        });
    }

    fn remove(&self, entry_id: &str) {
        self.cache.apply(Delta {
            removed_entries: vec![entry_id.into()],
            ..Delta::default()
        });
    }

    /// Issues what is wanted, for 100 seconds from now, and says for which entries.
    fn issue(&self) -> Vec<String> {
        let wanted = self.cache.take_wanted(100);
        let ids = wanted.iter().map(|entry| entry.id.to_string()).collect();
        self.cache
            .put_svids(wanted.iter().map(|entry| self.svid(entry)).collect());
        ids
    }

    fn svid(&self, entry: &Entry) -> IssuedSvid {
        let now = self.cache.clock.now();
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        IssuedSvid {
            entry_id: Arc::clone(&entry.id),
            revision: entry.revision_number,
            spiffe_id: entry.spiffe_id.clone(),
            chain: vec![
                Arc::from(format!("leaf of {}", entry.id).as_bytes()),
                Arc::from(&b"+intermediate"[..]),
            ],
            key: Arc::new(Secret::new(key.to_pkcs8_der().unwrap().expose().clone())),
            not_before: now,
            not_after: now + Duration::from_secs(100),
            issuers: vec![b"authority-1".to_vec()],
        }
    }
}

fn revised(entry: &Arc<Entry>, change: impl FnOnce(&mut Entry)) -> Arc<Entry> {
    let mut entry = Entry::clone(entry);
    entry.revision_number += 1;
    change(&mut entry);
    Arc::new(entry)
}

fn x509(update: &WorkloadUpdate) -> X509svidResponse {
    X509svidResponse::decode(update.x509_svids().unwrap().bytes()).unwrap()
}

#[test]
fn nothing_is_issued_before_somebody_asks() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    assert!(f.cache.take_wanted(10).is_empty());
    f.cache.subscribe_bundles(&selectors(&["unix:uid:1"]));
    f.cache.current(&selectors(&["unix:uid:1"]));
    assert!(f.cache.take_wanted(10).is_empty());
    let _stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    assert_eq!(f.issue(), ["a"]);
    assert!(f.cache.take_wanted(10).is_empty());
}

#[test]
fn wa_13_and_wa_31_a_message_holds_all_svids_in_the_order_of_entry_ids() {
    let f = fixture();
    f.entries(&[
        entry("b", "/b", &["unix:uid:1"]),
        entry("a", "/z", &["unix:uid:1"]),
        entry("c", "/c", &["unix:uid:2"]),
    ]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1", "unix:gid:1"]));
    f.issue();
    let message = x509(&stream.borrow());
    let ids: Vec<_> = message
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.as_str())
        .collect();
    assert_eq!(ids, ["spiffe://example.org/z", "spiffe://example.org/b"]);
    assert_eq!(message.svids[0].x509_svid, b"leaf of a+intermediate");
    assert_eq!(
        message.svids[0].bundle,
        bundle("example.org").to_concatenated_der()
    );
    KeyPair::from_pkcs8_der(&message.svids[0].x509_svid_key).unwrap();
    assert!(message.federated_bundles.is_empty());
}

#[test]
fn an_update_is_incomplete_until_every_svid_is_there() {
    let f = fixture();
    f.entries(&[
        entry("a", "/a", &["unix:uid:1"]),
        entry("b", "/b", &["unix:uid:1"]),
    ]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    assert!(stream.borrow().x509_svids().is_none());
    let wanted = f.cache.take_wanted(1);
    f.cache.put_svids(vec![f.svid(&wanted[0])]);
    assert!(!stream.borrow().is_complete());
    f.issue();
    assert!(stream.borrow().is_complete());
}

#[test]
fn streams_of_one_set_share_one_encoding() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let one = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    let other = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    let bytes = |update: &WorkloadUpdate| update.x509_svids().unwrap().bytes().as_ptr();
    assert_eq!(bytes(&one.borrow()), bytes(&other.borrow()));
}

#[test]
fn wa_16_a_stream_hears_at_once_that_its_entry_is_gone() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let mut stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    stream.mark_unchanged();
    f.remove("a");
    assert!(stream.has_changed().unwrap());
    assert!(!stream.borrow().has_identity());
    assert!(stream.borrow().x509_svids().is_none());
    assert_eq!(f.cache.counts().x509_svids, 0);
}

#[test]
fn wa_06_others_entries_and_repeated_news_do_not_wake_a_stream() {
    let f = fixture();
    let mine = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&mine)]);
    let mut stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    stream.mark_unchanged();
    f.entries(&[entry("b", "/b", &["unix:uid:2"])]);
    assert!(!f.cache.apply(Delta {
        entries: vec![mine],
        bundles: vec![bundle("example.org"),],
        ..Delta::default()
    }));
    assert!(!stream.has_changed().unwrap());
}

#[test]
fn a_held_svid_is_renewed_at_half_life_and_the_stream_told() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let mut stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    stream.mark_unchanged();
    let due = f.cache.next_due().unwrap();
    assert!(due >= at(44) && due <= at(56), "half life ± 10 %");
    f.clock.set(due);
    f.cache.tick();
    assert!(
        !stream.has_changed().unwrap(),
        "the old one is good until the new one is there"
    );
    assert_eq!(f.issue(), ["a"]);
    assert!(stream.has_changed().unwrap());
}

#[test]
fn an_svid_that_nobody_used_since_its_issue_is_not_renewed() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    f.clock.set(f.cache.next_due().unwrap());
    f.cache.tick();
    f.issue();
    drop(stream);
    f.clock.set(f.cache.next_due().unwrap());
    f.cache.tick();
    f.clock.set(f.cache.next_due().unwrap());
    f.cache.tick();
    assert_eq!(f.cache.counts().x509_svids, 0);
    assert!(f.cache.take_wanted(10).is_empty());
}

#[test]
fn an_expired_svid_leaves_the_message() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    f.clock.set(at(100));
    f.cache.tick();
    assert!(stream.borrow().has_identity() && stream.borrow().x509_svids().is_none());
}

#[test]
fn a_revised_entry_is_issued_again_and_the_old_svid_serves_meanwhile() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    f.entries(&[revised(&first, |entry| entry.dns_names = vec!["x".into()])]);
    assert!(stream.borrow().is_complete());
    assert_eq!(f.issue(), ["a"]);
}

#[test]
fn an_entry_that_names_another_identity_loses_its_svid_at_once() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    f.entries(&[revised(&first, |entry| entry.spiffe_id = id("/other"))]);
    assert!(stream.borrow().x509_svids().is_none());
    f.issue();
    assert_eq!(
        x509(&stream.borrow()).svids[0].spiffe_id,
        "spiffe://example.org/other"
    );
}

#[test]
fn an_svid_that_arrives_for_a_changed_or_removed_entry_is_dropped() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.cache.take_wanted(10);
    f.entries(&[revised(&first, |entry| entry.spiffe_id = id("/other"))]);
    f.cache.put_svids(vec![f.svid(&first)]);
    assert!(stream.borrow().x509_svids().is_none());
    f.remove("a");
    f.cache.put_svids(vec![f.svid(&first)]);
    assert_eq!(f.cache.counts().x509_svids, 0);
}

#[test]
fn a_failed_issue_is_wanted_again_only_after_its_pause() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let set = selectors(&["unix:uid:1"]);
    let _stream = f.cache.subscribe(&set);
    f.cache.take_wanted(10);
    f.cache.failed(&["a".into()], Duration::from_secs(5));
    let _second = f.cache.subscribe(&set);
    assert!(f.cache.take_wanted(10).is_empty());
    f.clock.set(at(5));
    f.cache.tick();
    assert_eq!(f.issue(), ["a"]);
}

#[test]
fn wa_14_repeated_hints_are_sent_once() {
    let f = fixture();
    let with_hint = |entry_id: &str, created_at: i64| {
        revised(&entry(entry_id, "/x", &["unix:uid:1"]), |entry| {
            entry.hint = "internal".into();
            entry.created_at = created_at;
        })
    };
    f.entries(&[with_hint("a", 2), with_hint("b", 1)]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    assert_eq!(f.issue(), ["b"]);
    assert_eq!(x509(&stream.borrow()).svids.len(), 1);
}

#[test]
fn wa_18_and_wa_24_bundles_are_keyed_by_trust_domain_id_and_hold_the_own_one() {
    let f = fixture();
    f.entries(&[revised(&entry("a", "/a", &["unix:uid:1"]), |entry| {
        entry.federates_with = vec![TrustDomain::parse("other.test").unwrap()];
    })]);
    f.cache.apply(Delta {
        bundles: vec![bundle("other.test"), bundle("unrelated.test")],
        ..Delta::default()
    });
    let update = f.cache.current(&selectors(&["unix:uid:1"]));
    let x509 = X509BundlesResponse::decode(update.x509_bundles().unwrap().bytes()).unwrap();
    let jwt = JwtBundlesResponse::decode(update.jwt_bundles().unwrap().bytes()).unwrap();
    let mut names: Vec<_> = x509.bundles.keys().collect();
    names.sort();
    assert_eq!(names, ["spiffe://example.org", "spiffe://other.test"]);
    let jwks: serde_json::Value =
        serde_json::from_slice(&jwt.bundles["spiffe://example.org"]).unwrap();
    assert_eq!(jwks["keys"][0]["kid"], "key-of-example.org");
    assert!(jwks["keys"][0].get("use").is_none() && jwks["keys"][0].get("x5c").is_none());
    let nobody = f.cache.current(&selectors(&["unix:uid:9"]));
    assert_eq!(
        X509BundlesResponse::decode(nobody.x509_bundles().unwrap().bytes())
            .unwrap()
            .bundles
            .len(),
        1
    );
}

#[test]
fn a_bundle_that_goes_or_changes_reaches_those_who_federate_with_it() {
    let f = fixture();
    f.entries(&[revised(&entry("a", "/a", &["unix:uid:1"]), |entry| {
        entry.federates_with = vec![TrustDomain::parse("other.test").unwrap()];
    })]);
    f.cache.apply(Delta {
        bundles: vec![bundle("other.test")],
        ..Delta::default()
    });
    let mut stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    assert_eq!(x509(&stream.borrow()).federated_bundles.len(), 1);
    stream.mark_unchanged();
    f.cache.apply(Delta {
        removed_bundles: vec![TrustDomain::parse("other.test").unwrap()],
        ..Delta::default()
    });
    assert!(stream.has_changed().unwrap());
    assert!(x509(&stream.borrow()).federated_bundles.is_empty());
}

#[test]
fn the_own_bundle_is_never_removed() {
    let f = fixture();
    assert!(!f.cache.apply(Delta {
        removed_bundles: vec![trust_domain()],
        ..Delta::default()
    }));
    assert_eq!(f.cache.counts().bundles, 1);
}

#[test]
fn tainted_authorities_renew_svids_and_forget_tokens() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    let key = JwtKey::new(&id("/a"), &["x".into()]);
    let token = JwtToken {
        token: Secret::new("t".into()),
        issued_at: at(0),
        expires_at: at(100),
        key_id: Some("k1".into()),
    };
    f.cache.put_jwt(key.clone(), Arc::new(token));
    f.cache.taint(
        &BTreeSet::from([b"authority-2".to_vec()]),
        &BTreeSet::from(["k2".to_owned()]),
    );
    assert!(f.cache.take_wanted(10).is_empty());
    assert!(matches!(f.cache.jwt(&key), Cached::Fresh(_)));
    f.cache.taint(
        &BTreeSet::from([b"authority-1".to_vec()]),
        &BTreeSet::from(["k1".to_owned()]),
    );
    assert_eq!(f.issue(), ["a"]);
    assert!(matches!(f.cache.jwt(&key), Cached::Absent));
    assert!(stream.borrow().is_complete());
}

#[test]
fn over_its_size_the_cache_drops_what_no_stream_holds() {
    let f = fixture_of(2);
    let entries: Vec<_> = (0..4)
        .map(|number| {
            entry(
                &format!("e{number}"),
                "/x",
                &[&format!("unix:uid:{number}")],
            )
        })
        .collect();
    f.entries(&entries);
    let held = f.cache.subscribe(&selectors(&["unix:uid:0"]));
    f.issue();
    for number in 1..4 {
        drop(
            f.cache
                .subscribe(&selectors(&[&format!("unix:uid:{number}")])),
        );
        f.issue();
    }
    assert_eq!(f.cache.counts().x509_svids, 2);
    assert!(held.borrow().is_complete());
    assert!(
        f.cache
            .current(&selectors(&["unix:uid:0"]))
            .x509_svids()
            .is_some()
    );
}

#[test]
fn sets_that_nobody_listens_to_do_not_pile_up() {
    let f = fixture();
    for number in 0..3 * IDLE_SETS {
        f.cache
            .current(&selectors(&[&format!("unix:uid:{number}")]));
    }
    assert!(f.cache.lock().sets.len() <= IDLE_SETS);
}

#[test]
fn a_snapshot_can_be_taken_up_again() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    f.issue();
    let Snapshot {
        entries,
        bundles,
        svids,
    } = f.cache.snapshot();
    let next = fixture();
    next.cache.apply(Delta {
        entries,
        bundles: bundles
            .iter()
            .map(|bundle| bundle.as_ref().clone())
            .collect(),
        ..Delta::default()
    });
    next.cache.put_svids(svids);
    let taken_up = next.cache.subscribe(&selectors(&["unix:uid:1"]));
    assert_eq!(stream.borrow().x509_svids(), taken_up.borrow().x509_svids());
    assert!(next.cache.take_wanted(10).is_empty());
}

#[test]
fn an_svid_that_lives_a_few_seconds_is_not_renewed_without_end() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let _stream = f.cache.subscribe(&selectors(&["unix:uid:1"]));
    let wanted = f.cache.take_wanted(1);
    let mut short = f.svid(&wanted[0]);
    // Ten seconds of backdating and four of life.
    short.not_before = at(0) - Duration::from_secs(10);
    short.not_after = at(4);
    f.cache.put_svids(vec![short]);
    assert_eq!(
        f.cache.next_due(),
        Some(at(0) + Duration::from_millis(1600))
    );
    f.cache.tick();
    assert!(f.cache.take_wanted(1).is_empty());
}
