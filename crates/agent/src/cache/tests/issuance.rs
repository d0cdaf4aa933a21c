//! What is wanted, what comes of it, and when it is wanted again.

use super::*;

#[test]
fn an_entry_that_is_removed_and_created_again_does_not_get_the_answer_of_before() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    f.remove("a");
    f.entries(&[Arc::clone(&first)]);
    f.cache.put_svids(vec![f.svid(&first)]);
    assert!(stream.updates.borrow().identities.is_empty());
    assert_eq!(f.issue(), ["a"]);
}

#[test]
fn an_svid_for_an_entry_that_changed_in_flight_serves_until_the_new_one_is_there() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    f.entries(&[revised(&first, |entry| entry.dns_names = vec!["x".into()])]);
    f.cache.put_svids(vec![f.svid(&first)]);
    let before = key_of(&stream);
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Renewing);
    assert_eq!(f.issue(), ["a"]);
    assert_ne!(before.expose(), key_of(&stream).expose());
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Settled);
}

#[test]
fn an_entry_with_other_content_and_the_same_revision_is_issued_again() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let _stream = f.stream(&["unix:uid:1"]);
    f.issue();
    let mut recreated = Entry::clone(&entry("a", "/a", &["unix:uid:1"]));
    recreated.dns_names = vec!["new".into()];
    f.entries(&[Arc::new(recreated)]);
    assert_eq!(f.issue(), ["a"]);
}

#[test]
fn an_svid_that_had_expired_when_it_came_is_asked_for_again_after_pauses_that_grow() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let stream = f.stream(&["unix:uid:1"]);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let wanted = f.cache.take_wanted(10);
        assert_eq!(wanted.len(), 1);
        let mut expired = f.svid(&wanted[0]);
        expired.not_after = f.clock.now();
        f.cache.put_svids(vec![expired]);
        assert!(stream.updates.borrow().identities.is_empty());
        let due = f.cache.next_due().unwrap();
        f.cache.tick();
        let _another = f.stream(&["unix:uid:1"]);
        assert!(f.cache.take_wanted(10).is_empty(), "not before its time");
        pauses.push(due.duration_since(f.clock.now()).unwrap());
        f.clock.set(due);
        f.cache.tick();
    }
    let around =
        |pause: Duration, seconds: f64| (pause.as_secs_f64() / seconds - 1.0).abs() <= 0.11;
    assert!(
        around(pauses[0], 1.0) && around(pauses[3], 8.0),
        "{pauses:?}"
    );
    assert!(around(pauses[11], 240.0), "{pauses:?}");
    assert_eq!(f.issue(), ["a"], "the clock is right again");
    assert_eq!(stream.updates.borrow().identities.len(), 1);
}

#[test]
fn what_the_server_refused_is_not_waited_for_and_what_it_could_not_be_asked_is_for_a_while() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    let mut stream = f.stream(&["unix:uid:1"]);
    let horizon = Duration::from_secs(5);
    assert_eq!(stream.outlook(horizon), Outlook::Issuing);
    f.cache.take_wanted(10);
    stream.updates.mark_unchanged();
    f.cache.not_answered(&["a".into()], Duration::from_secs(4));
    assert!(
        stream.updates.has_changed().unwrap(),
        "who waits looks again"
    );
    assert_eq!(stream.outlook(horizon), Outlook::Issuing);
    assert_eq!(stream.outlook(Duration::from_secs(3)), Outlook::Settled);
    f.clock.advance(Duration::from_secs(4));
    f.cache.tick();
    f.cache.take_wanted(10);
    f.cache.refused(&["a".into()]);
    assert_eq!(stream.outlook(horizon), Outlook::Settled);
}

#[test]
fn an_entry_that_was_corrected_does_not_wait_out_the_pause_of_its_refusal() {
    let f = fixture();
    let first = entry("a", "/a", &["unix:uid:1"]);
    f.entries(&[Arc::clone(&first)]);
    let stream = f.stream(&["unix:uid:1"]);
    f.cache.take_wanted(10);
    f.cache.refused(&["a".into()]);
    f.entries(&[Arc::clone(&first)]);
    assert!(f.cache.take_wanted(10).is_empty(), "nothing changed");
    let corrected = revised(&first, |entry| entry.dns_names = vec!["x".into()]);
    f.entries(&[Arc::clone(&corrected)]);
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Issuing);
    let wanted = f.cache.take_wanted(10);
    assert_eq!(wanted.len(), 1);
    // While the server is being asked, another correction does not ask twice.
    f.entries(&[revised(&corrected, |entry| {
        entry.dns_names = vec!["y".into()];
    })]);
    assert!(f.cache.take_wanted(10).is_empty());
    f.cache.put_svids(vec![f.svid(&wanted[0])]);
    assert_eq!(f.issue(), ["a"]);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
}

#[test]
fn when_the_server_returns_nobody_waits_for_the_pause_of_its_absence() {
    let f = fixture();
    f.entries(&[
        entry("a", "/a", &["unix:uid:1"]),
        entry("b", "/b", &["unix:uid:1"]),
        entry("c", "/c", &["unix:uid:2"]),
    ]);
    let _stream = f.stream(&["unix:uid:1"]);
    drop(f.stream(&["unix:uid:2"]));
    f.cache.take_wanted(10);
    f.cache.refused(&["b".into()]);
    f.cache
        .not_answered(&["a".into(), "c".into()], Duration::from_secs(240));
    f.cache.server_returned();
    assert_eq!(f.issue(), ["a"], "b was refused, and nobody holds c");
}

#[test]
fn who_asks_past_half_life_waits_for_a_new_one_and_who_holds_it_does_not_wake_for_nothing() {
    let f = fixture();
    f.entries(&[entry("a", "/a", &["unix:uid:1"])]);
    drop(f.stream(&["unix:uid:1"]));
    f.issue();
    f.clock.set(at(87));
    f.cache.tick();
    assert!(f.cache.take_wanted(10).is_empty(), "nobody used it");
    let stream = f.stream(&["unix:uid:1"]);
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Renewing);
    assert_eq!(stream.updates.borrow().identities.len(), 1);
    assert_eq!(f.issue(), ["a"]);
    assert_eq!(stream.outlook(Duration::ZERO), Outlook::Settled);
}
