use spiffe::clock::ManualClock;
use spiffe::key::{KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::secret::Secret;

use super::interest::IDLE_SETS;
use super::*;

mod issuance;
mod tainted;
mod time;

use crate::testing::{at, bundle, entry, id, selectors, trust_domain};

struct Fixture {
    cache: Arc<Cache>,
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
    let cache = Arc::new(Cache::new(
        options,
        Arc::new(clock.clone()),
        Arc::new(SystemRandom),
    ));
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

    fn stream(&self, texts: &[&str]) -> Subscription {
        self.cache.subscribe(&selectors(texts), Purpose::X509Svids)
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

fn ids(update: &WorkloadUpdate) -> Vec<String> {
    let svids = update.identities.iter();
    svids
        .map(|identity| identity.svid.spiffe_id.to_string())
        .collect()
}

fn key_of(stream: &Subscription) -> Arc<Secret<Vec<u8>>> {
    Arc::clone(&stream.updates.borrow().identities[0].svid.key)
}

#[test]
fn nothing_is_issued_before_somebody_asks() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    assert!(f.cache.take_wanted(10).is_empty());
    f.cache
        .subscribe(&selectors(&["unix:uid:1"]), Purpose::Bundles);
    f.cache.current(&selectors(&["unix:uid:1"]));
    assert!(f.cache.take_wanted(10).is_empty());
    let _stream = f.stream(&["unix:uid:1"]);
    assert_eq!(f.issue(), ["a"]);
    assert!(f.cache.take_wanted(10).is_empty());
}

#[test]
fn wa_13_an_update_holds_all_svids_in_the_order_of_entry_ids_so_the_first_is_the_default() {
    let f = fixture();
    f.entries(&[
        entry("b", "/b", &["unix:uid:1"]),
        entry("a", "/z", &["unix:uid:1"]),
        entry("c", "/c", &["unix:uid:2"]),
    ]);
    let stream = f.stream(&["unix:uid:1", "unix:gid:1"]);
    f.issue();
    let update = stream.updates.borrow();
    assert_eq!(
        ids(&update),
        ["spiffe://example.org/z", "spiffe://example.org/b"]
    );
    assert_eq!(&*update.entries[0].id, "a", "the default identity");
}

#[test]
fn an_update_holds_what_is_there_until_every_svid_is() {
    let f = fixture();
    f.entries(&[
        entry("a", "/a", &["unix:uid:1"]),
        entry("b", "/b", &["unix:uid:1"]),
    ]);
    let stream = f.stream(&["unix:uid:1"]);
    assert!(stream.updates.borrow().identities.is_empty());
    let wanted = f.cache.take_wanted(1);
    f.cache.put_svids(vec![f.svid(&wanted[0])]);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Issuing);
    f.issue();
    assert_eq!(stream.updates.borrow().identities.len(), 2);
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Settled);
}

#[test]
fn streams_of_one_set_share_one_update() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let one = f.stream(&["unix:uid:1"]);
    let other = f.stream(&["unix:uid:1"]);
    f.issue();
    assert!(Arc::ptr_eq(&one.updates.borrow(), &other.updates.borrow()));
}

#[test]
fn wa_16_a_stream_hears_at_once_that_its_entry_is_gone() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let mut stream = f.stream(&["unix:uid:1"]);
    f.issue();
    stream.updates.mark_unchanged();
    f.remove("a");
    assert!(stream.updates.has_changed().unwrap());
    assert!(!stream.updates.borrow().has_identity());
    assert!(stream.updates.borrow().identities.is_empty());
    assert_eq!(f.cache.counts().x509_svids, 0);
}

#[test]
fn wa_06_others_entries_and_repeated_changes_do_not_wake_a_stream() {
    let f = fixture();
    let mine = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&mine)]);
    let mut stream = f.stream(&["unix:uid:1"]);
    f.issue();
    stream.updates.mark_unchanged();
    f.entries(&[entry("b", "/b", &["unix:uid:2"])]);
    assert!(!f.cache.apply(Delta {
        entries: vec![mine],
        bundles: vec![bundle("example.org"),],
        ..Delta::default()
    }));
    assert!(!stream.updates.has_changed().unwrap());
}

#[test]
fn a_cached_svid_is_renewed_at_half_life_and_the_stream_is_notified() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let mut stream = f.stream(&["unix:uid:1"]);
    f.issue();
    stream.updates.mark_unchanged();
    let due = f.cache.next_due().unwrap();
    assert!(due >= at(44) && due <= at(56), "half life ± 10 %");
    f.clock.set(due);
    f.cache.tick();
    assert!(
        !stream.updates.has_changed().unwrap(),
        "the old one is good until the new one is there"
    );
    assert_eq!(f.issue(), ["a"]);
    assert!(stream.updates.has_changed().unwrap());
}

#[test]
fn an_svid_that_nobody_used_since_its_issue_is_not_renewed() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.stream(&["unix:uid:1"]);
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
    let stream = f.stream(&["unix:uid:1"]);
    f.issue();
    f.clock.set(at(100));
    f.cache.tick();
    assert!(
        stream.updates.borrow().has_identity() && stream.updates.borrow().identities.is_empty()
    );
}

#[test]
fn a_revised_entry_is_issued_again_and_the_old_svid_serves_meanwhile() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.issue();
    f.entries(&[revised(&first, |entry| entry.dns_names = vec!["x".into()])]);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
    assert_eq!(f.issue(), ["a"]);
}

#[test]
fn an_entry_that_names_another_identity_loses_its_svid_at_once() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.issue();
    f.entries(&[revised(&first, |entry| entry.spiffe_id = id("/other"))]);
    assert!(stream.updates.borrow().identities.is_empty());
    f.issue();
    assert_eq!(
        ids(&stream.updates.borrow()),
        ["spiffe://example.org/other"]
    );
}

#[test]
fn an_svid_that_arrives_for_a_changed_or_removed_entry_is_dropped() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    f.entries(&[revised(&first, |entry| entry.spiffe_id = id("/other"))]);
    f.cache.put_svids(vec![f.svid(&first)]);
    assert!(stream.updates.borrow().identities.is_empty());
    // Nobody could ask for the other identity while this one was in flight.
    assert_eq!(f.issue(), ["a"]);
    assert_eq!(
        ids(&stream.updates.borrow()),
        ["spiffe://example.org/other"]
    );
    f.remove("a");
    f.cache.put_svids(vec![f.svid(&first)]);
    assert_eq!(f.cache.counts().x509_svids, 0);
}

#[test]
fn a_failed_issue_is_wanted_again_only_after_its_pause() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let set = selectors(&["unix:uid:1"]);
    let _stream = f.cache.subscribe(&set, Purpose::X509Svids);
    f.cache.take_wanted(10);
    f.cache.not_answered(&["a".into()], Duration::from_secs(5));
    let _second = f.cache.subscribe(&set, Purpose::X509Svids);
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
    let stream = f.stream(&["unix:uid:1"]);
    assert_eq!(f.issue(), ["b"]);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
}

#[test]
fn a_set_gets_its_own_bundle_and_those_that_its_entries_federate_with() {
    let f = fixture();
    f.entries(&[revised(&entry("a", "/a", &["unix:uid:1"]), |entry| {
        entry.federates_with = vec![TrustDomain::parse("other.test").unwrap()];
    })]);
    f.cache.apply(Delta {
        bundles: vec![bundle("other.test"), bundle("unrelated.test")],
        ..Delta::default()
    });
    let names = |texts: &[&str]| -> Vec<String> {
        let update = f.cache.current(&selectors(texts));
        let bundles = update.all_bundles().unwrap();
        bundles
            .map(|bundle| bundle.bundle.trust_domain.to_string())
            .collect()
    };
    assert_eq!(names(&["unix:uid:1"]), ["example.org", "other.test"]);
    assert_eq!(names(&["unix:uid:9"]), ["example.org"]);
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
    let mut stream = f.stream(&["unix:uid:1"]);
    f.issue();
    assert_eq!(stream.updates.borrow().federated.len(), 1);
    stream.updates.mark_unchanged();
    f.cache.apply(Delta {
        removed_bundles: vec![TrustDomain::parse("other.test").unwrap()],
        ..Delta::default()
    });
    assert!(stream.updates.has_changed().unwrap());
    assert!(stream.updates.borrow().federated.is_empty());
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
    let held = f.stream(&["unix:uid:0"]);
    f.issue();
    for number in 1..4 {
        drop(f.stream(&[&format!("unix:uid:{number}")]));
        f.issue();
    }
    assert_eq!(f.cache.counts().x509_svids, 2);
    assert_eq!(held.updates.borrow().identities.len(), 1);
}

#[test]
fn sets_that_nobody_listens_to_do_not_pile_up() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:gid:1"])]);
    for number in 0..3 * IDLE_SETS {
        let uid = format!("unix:uid:{number}");
        f.cache.current(&selectors(&["unix:gid:1", &uid]));
    }
    assert!((1..=IDLE_SETS).contains(&f.cache.lock().sets()));
}

#[test]
fn a_snapshot_can_be_restored() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.stream(&["unix:uid:1"]);
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
    next.cache.restore(svids);
    let taken_up = next.stream(&["unix:uid:1"]);
    assert_eq!(key_of(&stream).expose(), key_of(&taken_up).expose());
    assert!(next.cache.take_wanted(10).is_empty());
}

#[test]
fn an_svid_that_lives_a_few_seconds_is_not_renewed_without_end() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let _stream = f.stream(&["unix:uid:1"]);
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
