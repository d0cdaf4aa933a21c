use super::*;
use crate::testing::{at, id};

fn svid(entry: &str, from: u64, to: u64) -> IssuedSvid {
    IssuedSvid {
        entry_id: entry.into(),
        revision: 0,
        spiffe_id: id("/x"),
        chain: vec![Arc::from(entry.as_bytes()), Arc::from(&b"intermediate"[..])],
        key: Arc::new(Secret::new(vec![1])),
        not_before: at(from),
        not_after: at(to),
        issuers: vec![b"authority-1".to_vec()],
    }
}

#[test]
fn renewal_is_at_half_life_within_ten_percent() {
    let rule = RotationRule::default();
    assert_eq!(rule.renew_at(at(0), at(1000), 0.5), at(500));
    assert_eq!(rule.renew_at(at(0), at(1000), 0.0), at(450));
    let late = rule.renew_at(at(0), at(1000), 0.999);
    assert!(late > at(549) && late <= at(550));
}

#[test]
fn availability_target_counts_only_if_enough_life_is_left_over() {
    let day = 24 * 3600;
    let rule = RotationRule {
        availability_target: Some(Duration::from_secs(day)),
    };
    assert_eq!(rule.renew_at(at(0), at(3 * day), 0.0), at(2 * day));
    assert_eq!(
        rule.renew_at(at(0), at(day + day / 2), 0.5),
        at(day * 3 / 4)
    );
}

#[test]
fn an_svid_of_no_life_is_due_at_once() {
    assert_eq!(
        RotationRule::default().renew_at(at(10), at(10), 0.5),
        at(10)
    );
    assert_eq!(
        RotationRule::default().renew_at(at(20), at(10), 0.5),
        at(20)
    );
}

#[test]
fn an_svid_needs_issue_from_its_renewal_time_on_or_when_it_is_stale() {
    let mut svids = Svids::default();
    assert!(svids.needs_issue("a", at(0)));
    svids.put(svid("a", 0, 100), at(50), false);
    assert!(!svids.needs_issue("a", at(49)) && svids.needs_issue("a", at(50)));
    svids.put(svid("b", 0, 100), at(50), true);
    assert!(svids.needs_issue("b", at(1)) && svids.valid("b", at(1)).is_some());
    svids.mark_stale("a");
    svids.mark_stale("never issued");
    assert!(svids.needs_issue("a", at(1)) && svids.valid("a", at(1)).is_some());
}

#[test]
fn use_since_issue_is_forgotten_by_the_next_issue() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50), false);
    assert!(!svids.used_since_issue("a"));
    svids.count_use("a");
    assert!(svids.used_since_issue("a"));
    svids.put(svid("a", 50, 150), at(100), false);
    assert!(!svids.used_since_issue("a"));
}

#[test]
fn an_expired_svid_is_not_given_out() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50), false);
    assert!(svids.valid("a", at(100)).is_none());
    assert!(svids.valid("b", at(1)).is_none());
}

#[test]
fn eviction_takes_the_least_used_and_spares_those_that_are_held() {
    let mut svids = Svids::default();
    for name in ["a", "b", "c", "d"] {
        svids.put(svid(name, 0, 100), at(50), false);
    }
    svids.count_use("a");
    let gone = svids.evict(2, |entry| entry == "b");
    assert_eq!(gone, ["c".into(), "d".into()]);
    assert_eq!(svids.evict(0, |_| true), Vec::<Arc<str>>::new());
    assert_eq!(svids.len(), 2);
}

#[test]
fn svids_of_a_tainted_authority_are_found() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50), false);
    let signed_by = |name: &[u8]| svids.signed_by(&BTreeSet::from([name.to_vec()]));
    assert_eq!(signed_by(b"authority-1"), ["a".into()]);
    assert!(signed_by(b"authority-2").is_empty());
}

#[test]
fn intermediates_are_kept_once() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50), false);
    svids.put(svid("b", 0, 100), at(50), false);
    let (a, b) = (
        svids.valid("a", at(1)).unwrap(),
        svids.valid("b", at(1)).unwrap(),
    );
    assert!(Arc::ptr_eq(&a.chain[1], &b.chain[1]));
}

#[test]
fn debug_output_shows_no_key() {
    assert!(!format!("{:?}", svid("a", 0, 1)).contains("key"));
}
