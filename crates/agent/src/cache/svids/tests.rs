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
    assert_eq!(rule.renew_at(at(0), at(1000), 0.0), at(550));
    let late = rule.renew_at(at(0), at(1000), 0.999);
    assert!(late >= at(450) && late < at(451));
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
        at(10)
    );
}

#[test]
fn a_kept_svid_is_renewed_then_dropped_when_it_expires() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    assert!(svids.take_due(at(49)).is_empty());
    assert!(!svids.needs_issue("a", at(49)));
    assert_eq!(svids.take_due(at(50)), [Due::Renew("a".into(), false)]);
    assert!(svids.needs_issue("a", at(50)));
    assert_eq!(svids.next_due(), Some(at(100)));
    assert_eq!(svids.take_due(at(100)), [Due::Expired("a".into())]);
    assert_eq!((svids.len(), svids.next_due()), (0, None));
}

#[test]
fn use_since_issue_is_told_at_renewal_and_forgotten_by_it() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    svids.used("a");
    assert_eq!(svids.take_due(at(50)), [Due::Renew("a".into(), true)]);
    svids.put(svid("a", 50, 150), at(100));
    assert_eq!(svids.take_due(at(100)), [Due::Renew("a".into(), false)]);
    assert_eq!(svids.queue.len(), 1);
}

#[test]
fn an_expired_svid_is_not_given_out() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    assert!(svids.valid("a", at(100)).is_none());
    assert!(svids.valid("b", at(1)).is_none());
}

#[test]
fn a_failed_issue_is_retried_when_its_time_comes() {
    let mut svids = Svids::default();
    svids.postpone(&"a".into(), at(10));
    svids.postpone(&"a".into(), at(20));
    assert!(!svids.needs_issue("a", at(15)));
    assert!(svids.take_due(at(10)).is_empty());
    assert_eq!(svids.take_due(at(20)), [Due::Retry("a".into())]);
    assert!(svids.take_due(at(30)).is_empty());
}

#[test]
fn a_removed_svid_leaves_nothing_in_the_queue() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    svids.take_due(at(60));
    assert!(svids.remove("a").is_some());
    assert!(svids.queue.is_empty());
}

#[test]
fn eviction_takes_the_least_used_and_spares_those_in_use() {
    let mut svids = Svids::default();
    for name in ["a", "b", "c", "d"] {
        svids.put(svid(name, 0, 100), at(50));
    }
    svids.used("a");
    let gone = svids.evict(2, |entry| entry == "b");
    assert_eq!(gone, ["c".into(), "d".into()]);
    assert_eq!(svids.evict(0, |_| true), Vec::<Arc<str>>::new());
    assert_eq!(svids.len(), 2);
    assert_eq!(svids.queue.len(), 2);
}

#[test]
fn stale_svids_need_issue_but_stay_valid() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    assert!(svids.mark_stale("a"));
    assert!(!svids.mark_stale("b"));
    assert!(svids.needs_issue("a", at(1)));
    assert!(svids.valid("a", at(1)).is_some());
}

#[test]
fn svids_of_a_tainted_authority_are_found() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    assert_eq!(
        svids.signed_by(&BTreeSet::from([b"authority-1".to_vec()])),
        ["a".into()]
    );
    assert!(
        svids
            .signed_by(&BTreeSet::from([b"authority-2".to_vec()]))
            .is_empty()
    );
}

#[test]
fn intermediates_are_kept_once() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    svids.put(svid("b", 0, 100), at(50));
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

#[test]
fn a_failed_renewal_is_not_repeated_before_its_time() {
    let mut svids = Svids::default();
    svids.put(svid("a", 0, 100), at(50));
    svids.mark_stale("a");
    svids.postpone(&"a".into(), at(60));
    assert!(!svids.needs_issue("a", at(55)));
    assert_eq!(svids.take_due(at(60)), [Due::Renew("a".into(), false)]);
    assert!(svids.needs_issue("a", at(60)));
}
