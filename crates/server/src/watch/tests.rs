use std::time::Duration;

use proto::plastron::server::v1::watch_client::WatchClient;
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, BatchUpdateEntryRequest};
use proto::spire::api::types::permission_denied_details::Reason;
use proto::spire::api::types::{self, EntryMask};
use spiffe::bundle::Bundle;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;
use tonic::{Code, Status, Streaming};

use crate::registry::AgentPatch;
use crate::testing::{Identity, TestServer, entry, reason, wire_id, wire_selector};

struct Stream(Streaming<WatchEvent>);

async fn watch(server: &TestServer, agent: &Identity, request: WatchRequest) -> Stream {
    let mut client = WatchClient::new(server.remote(Some(agent)).await);
    Stream(client.watch(request).await.unwrap().into_inner())
}

impl Stream {
    async fn next(&mut self) -> Result<Option<WatchEvent>, Status> {
        tokio::time::timeout(Duration::from_secs(10), self.0.message())
            .await
            .expect("an event within ten seconds")
    }

    async fn event(&mut self) -> WatchEvent {
        self.next().await.unwrap().expect("the stream goes on")
    }

    async fn denial(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a word"),
                Err(denied) => return denied,
            }
        }
    }
}

fn ids(event: &WatchEvent) -> Vec<&str> {
    event
        .entries
        .iter()
        .map(|entry| entry.id.as_str())
        .collect()
}

#[tokio::test]
async fn starts_with_everything_the_agent_may_have() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    let mine = server.entry(&node, "/mine").await;
    server.entry(&other, "/theirs").await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    let first = stream.event().await;
    assert!(first.reset && !first.more && !first.epoch.is_empty());
    assert_eq!(ids(&first), [mine.id.as_str()]);
    assert_eq!(first.bundles.len(), 1);
    assert_eq!(first.bundles[0].trust_domain, "example.org");
    assert!(
        first.entries[0].parent_id.is_none(),
        "only what agents are sent"
    );
}

#[tokio::test]
async fn cuts_a_long_list_into_pages() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let entries: Vec<_> = (0..1_001)
        .map(|n| entry(node.id.path(), &format!("/w/{n}")))
        .collect();
    let request = BatchCreateEntryRequest {
        entries,
        output_mask: None,
    };
    EntryClient::new(server.local().await)
        .batch_create_entry(request)
        .await
        .unwrap();
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    let first = stream.event().await;
    assert!(first.reset && first.more && first.entries.len() < 100);
    let (mut count, mut more) = (first.entries.len(), true);
    while more {
        let page = stream.event().await;
        assert!(!page.reset && page.revision == first.revision);
        count += page.entries.len();
        more = page.more;
    }
    assert_eq!(count, 1_001);
}

#[tokio::test]
async fn pushes_what_is_created_changed_and_deleted_and_nothing_of_others() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    assert!(stream.event().await.entries.is_empty());
    server.entry(&other, "/theirs").await;
    let made = server.entry(&node, "/mine").await;
    let event = stream.event().await;
    assert_eq!((ids(&event), event.reset), (vec![made.id.as_str()], false));
    let change = types::Entry {
        id: made.id.clone(),
        hint: "h".to_owned(),
        ..types::Entry::default()
    };
    let request = BatchUpdateEntryRequest {
        entries: vec![change],
        input_mask: Some(EntryMask {
            hint: true,
            ..EntryMask::default()
        }),
        output_mask: None,
    };
    EntryClient::new(server.local().await)
        .batch_update_entry(request)
        .await
        .unwrap();
    let event = stream.event().await;
    assert_eq!(
        (
            event.entries[0].hint.as_str(),
            event.entries[0].revision_number
        ),
        ("h", 1)
    );
    server
        .datastore
        .entries
        .delete(vec![made.id.clone()])
        .await
        .unwrap();
    let event = stream.event().await;
    assert_eq!(
        (event.removed_entry_ids, event.entries.len()),
        (vec![made.id], 0)
    );
}

#[tokio::test]
async fn ends_the_stream_of_an_agent_that_is_banned_or_evicted() {
    let server = TestServer::start().await;
    let (banned, evicted) = (server.agent().await, server.agent().await);
    let mut one = watch(&server, &banned, WatchRequest::default()).await;
    let mut two = watch(&server, &evicted, WatchRequest::default()).await;
    one.event().await;
    two.event().await;
    server.datastore.agents.ban(&banned.id).await.unwrap();
    assert_eq!(reason(&one.denial().await), Reason::AgentBanned);
    server.datastore.agents.delete(&evicted.id).await.unwrap();
    assert_eq!(reason(&two.denial().await), Reason::AgentNotAttested);
}

#[tokio::test]
async fn pushes_nothing_to_an_agent_whose_svid_has_expired() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    stream.event().await;
    server.advance(3_601);
    server.entry(&node, "/mine").await;
    assert_eq!(reason(&stream.denial().await), Reason::AgentExpired);
}

#[tokio::test]
async fn refuses_watchers_that_are_no_agents() {
    let server = TestServer::start().await;
    for channel in [server.local().await, server.remote(None).await] {
        let refused = WatchClient::new(channel)
            .watch(WatchRequest::default())
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn continues_at_the_cursor_with_what_the_agent_has_missed() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    server.entry(&node, "/mine").await;
    let first = watch(&server, &node, WatchRequest::default())
        .await
        .event()
        .await;
    server.entry(&other, "/theirs").await;
    let again = WatchRequest {
        cursor: first.revision,
        epoch: first.epoch.clone(),
        ..WatchRequest::default()
    };
    let mut stream = watch(&server, &node, again.clone()).await;
    let event = stream.event().await;
    assert!(!event.reset && event.entries.is_empty() && event.revision > first.revision);
    let made = server.entry(&node, "/more").await;
    assert_eq!(ids(&stream.event().await), [made.id.as_str()]);
    let event = watch(&server, &node, again).await.event().await;
    assert_eq!(
        (event.reset, ids(&event)),
        (false, vec![made.id.as_str()]),
        "what was missed and nothing else"
    );
}

#[tokio::test]
async fn starts_over_for_a_cursor_of_another_history_or_of_the_future() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    server.entry(&node, "/mine").await;
    let first = watch(&server, &node, WatchRequest::default())
        .await
        .event()
        .await;
    let foreign = WatchRequest {
        cursor: first.revision,
        epoch: "other".to_owned(),
        ..WatchRequest::default()
    };
    let future = WatchRequest {
        cursor: u64::MAX,
        epoch: first.epoch,
        ..WatchRequest::default()
    };
    for request in [foreign, future] {
        let event = watch(&server, &node, request).await.event().await;
        assert_eq!((event.reset, event.entries.len()), (true, 1));
    }
}

#[tokio::test]
async fn follows_aliases_as_they_come_and_as_the_node_changes() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    stream.event().await;
    server.create(entry("/rack", "/web")).await;
    let mut alias = entry("/spire/server", "/rack");
    alias.selectors = vec![wire_selector("zone:a")];
    server.create(alias).await;
    let selectors = SelectorSet::from(vec![Selector::new("unix", "zone:a").unwrap()]);
    let patch = AgentPatch {
        selectors: Some(selectors),
        ..AgentPatch::default()
    };
    server
        .datastore
        .agents
        .update(&node.id, patch)
        .await
        .unwrap();
    let event = stream.event().await;
    assert_eq!(event.entries.len(), 1);
    assert_eq!(event.entries[0].spiffe_id.clone().unwrap().path, "/web");
    let patch = AgentPatch {
        selectors: Some(SelectorSet::default()),
        ..AgentPatch::default()
    };
    server
        .datastore
        .agents
        .update(&node.id, patch)
        .await
        .unwrap();
    let event = stream.event().await;
    assert!(
        event.reset && event.entries.is_empty(),
        "the node starts over"
    );
}

#[tokio::test]
async fn sends_federated_bundles_with_the_entries_that_name_them() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let far = TrustDomain::parse("far.example").unwrap();
    server
        .datastore
        .bundles
        .set(Bundle::new(far.clone()))
        .await
        .unwrap();
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    assert_eq!(
        stream.event().await.bundles.len(),
        1,
        "nobody federates with it yet"
    );
    let mut federated = entry(node.id.path(), "/web");
    federated.federates_with = vec!["far.example".to_owned()];
    let made = server.create(federated).await;
    let event = stream.event().await;
    assert_eq!(
        (ids(&event), event.bundles[0].trust_domain.as_str()),
        (vec![made.id.as_str()], "far.example")
    );
    let mut changed = Bundle::new(far);
    changed.refresh_hint = 77;
    server.datastore.bundles.set(changed).await.unwrap();
    let event = stream.event().await;
    assert_eq!(
        (event.bundles[0].refresh_hint, event.entries.len()),
        (77, 0)
    );
    server
        .datastore
        .entries
        .delete(vec![made.id.clone()])
        .await
        .unwrap();
    let event = stream.event().await;
    assert_eq!(
        (event.removed_bundles, event.removed_entry_ids),
        (vec!["far.example".to_owned()], vec![made.id])
    );
}

#[tokio::test]
async fn ends_when_the_server_stops() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    stream.event().await;
    let stopped = tokio::spawn(server.stop());
    assert!(matches!(stream.next().await, Ok(None)), "a clean end");
    stopped.await.unwrap();
}

#[tokio::test]
async fn ends_without_blame_when_the_agent_goes_on_under_a_renewed_svid() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    stream.event().await;
    let patch = AgentPatch {
        serial: Some("77".to_owned()),
        ..AgentPatch::default()
    };
    server
        .datastore
        .agents
        .update(&node.id, patch)
        .await
        .unwrap();
    assert!(stream.next().await.unwrap().is_none());
}

/// Entries two levels below the node: `/mid` under the node, `/low` under `/mid`.
async fn chain(server: &TestServer, node: &Identity) -> (types::Entry, types::Entry) {
    let mid = server.entry(node, "/mid").await;
    let low = server.create(entry("/mid", "/low")).await;
    (mid, low)
}

#[tokio::test]
async fn takes_back_what_hung_below_an_entry_that_goes() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let (mid, low) = chain(&server, &node).await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    assert_eq!(stream.event().await.entries.len(), 2);
    server
        .datastore
        .entries
        .delete(vec![mid.id.clone()])
        .await
        .unwrap();
    let mut removed = stream.event().await.removed_entry_ids;
    removed.sort();
    let mut expected = vec![mid.id, low.id];
    expected.sort();
    assert_eq!(removed, expected);
}

#[tokio::test]
async fn takes_back_a_whole_branch_that_goes_in_one_commit() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let (mid, low) = chain(&server, &node).await;
    let lower = server.create(entry("/low", "/lower")).await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    assert_eq!(stream.event().await.entries.len(), 3);
    let all = vec![lower.id, low.id, mid.id];
    server.datastore.entries.delete(all).await.unwrap();
    let mut removed = 0;
    while removed < 3 {
        removed += stream.event().await.removed_entry_ids.len();
    }
    assert_eq!(removed, 3);
}

#[tokio::test]
async fn follows_an_entry_to_another_node() {
    let server = TestServer::start().await;
    let (one, two) = (server.agent().await, server.agent().await);
    let (mid, low) = chain(&server, &one).await;
    let mut from = watch(&server, &one, WatchRequest::default()).await;
    let mut to = watch(&server, &two, WatchRequest::default()).await;
    assert_eq!(from.event().await.entries.len(), 2);
    assert_eq!(to.event().await.entries.len(), 0);
    let moved = types::Entry {
        id: mid.id.clone(),
        parent_id: Some(wire_id(two.id.path())),
        ..types::Entry::default()
    };
    let request = BatchUpdateEntryRequest {
        entries: vec![moved],
        input_mask: Some(EntryMask {
            parent_id: true,
            ..EntryMask::default()
        }),
        output_mask: None,
    };
    EntryClient::new(server.local().await)
        .batch_update_entry(request)
        .await
        .unwrap();
    let (gone, come) = (from.event().await, to.event().await);
    assert_eq!((gone.removed_entry_ids.len(), gone.entries.len()), (2, 0));
    let mut ids = ids(&come);
    ids.sort_unstable();
    let mut expected = vec![mid.id.as_str(), low.id.as_str()];
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn tells_each_of_many_watchers_of_its_own() {
    let server = TestServer::start().await;
    let mut watchers = Vec::new();
    for _ in 0..8 {
        let node = server.agent().await;
        let mut stream = watch(&server, &node, WatchRequest::default()).await;
        stream.event().await;
        watchers.push((node, stream));
    }
    let mut made = Vec::new();
    for (node, _) in &watchers {
        made.push(server.entry(node, "/web").await.id);
    }
    for ((_, stream), id) in watchers.iter_mut().zip(made) {
        assert_eq!(ids(&stream.event().await), [id.as_str()]);
    }
}

/// An entry below the node that expires a minute from now.
async fn short_lived(server: &TestServer, node: &Identity, path: &str) -> types::Entry {
    let mut short = entry(node.id.path(), path);
    short.expires_at = server.unix_now() + 60;
    server.create(short).await
}

#[tokio::test]
async fn takes_back_an_entry_and_what_is_below_it_at_the_second_of_its_expiry() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    let mid = short_lived(&server, &node, "/mid").await;
    let low = server.create(entry("/mid", "/low")).await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    assert_eq!(stream.event().await.entries.len(), 2);
    server.advance(60);
    // Any commit makes the notifier look at the clock, which a test's clock does not do by itself.
    server.entry(&other, "/theirs").await;
    let mut removed = stream.event().await.removed_entry_ids;
    removed.sort();
    let mut expected = vec![mid.id, low.id];
    expected.sort();
    assert_eq!(removed, expected);
}

#[tokio::test]
async fn takes_back_what_expired_while_the_agent_was_away() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let short = short_lived(&server, &node, "/short").await;
    let first = watch(&server, &node, WatchRequest::default())
        .await
        .event()
        .await;
    assert_eq!(ids(&first), [short.id.as_str()]);
    server.advance(60);
    let again = WatchRequest {
        cursor: first.revision,
        epoch: first.epoch,
        ..WatchRequest::default()
    };
    let event = watch(&server, &node, again.clone()).await.event().await;
    assert_eq!(
        (event.reset, event.removed_entry_ids),
        (false, vec![short.id.clone()]),
        "before it is pruned"
    );
    server
        .datastore
        .entries
        .delete(vec![short.id.clone()])
        .await
        .unwrap();
    let event = watch(&server, &node, again).await.event().await;
    assert_eq!(
        (event.reset, event.removed_entry_ids),
        (false, vec![short.id]),
        "and after"
    );
}

#[tokio::test]
async fn continues_at_the_cursor_through_a_branch_that_is_gone() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let (mid, low) = chain(&server, &node).await;
    let first = watch(&server, &node, WatchRequest::default())
        .await
        .event()
        .await;
    for id in [&low.id, &mid.id] {
        server
            .datastore
            .entries
            .delete(vec![id.clone()])
            .await
            .unwrap();
    }
    let again = WatchRequest {
        cursor: first.revision,
        epoch: first.epoch,
        ..WatchRequest::default()
    };
    let event = watch(&server, &node, again).await.event().await;
    let mut expected = vec![mid.id, low.id];
    expected.sort();
    assert_eq!((event.reset, event.removed_entry_ids), (false, expected));
}

#[tokio::test]
async fn sends_the_whole_list_to_an_agent_that_missed_too_much() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    server.entry(&node, "/mine").await;
    let first = watch(&server, &node, WatchRequest::default())
        .await
        .event()
        .await;
    let entries: Vec<_> = (0..600)
        .map(|n| entry(other.id.path(), &format!("/w/{n}")))
        .collect();
    let request = BatchCreateEntryRequest {
        entries,
        output_mask: None,
    };
    EntryClient::new(server.local().await)
        .batch_create_entry(request)
        .await
        .unwrap();
    let again = WatchRequest {
        cursor: first.revision,
        epoch: first.epoch,
        ..WatchRequest::default()
    };
    let event = watch(&server, &node, again).await.event().await;
    assert_eq!((event.reset, event.entries.len()), (true, 1));
}

#[tokio::test]
async fn sends_every_node_of_an_alias_what_is_created_below_it_and_no_other_node() {
    let server = TestServer::start().await;
    let mut alias = entry("/spire/server", "/rack");
    alias.selectors = vec![wire_selector("zone:a")];
    server.create(alias).await;
    let mut streams = Vec::new();
    for zone in ["zone:a", "zone:a", "zone:b"] {
        let node = server.agent().await;
        let patch = AgentPatch {
            selectors: Some(SelectorSet::from(vec![
                Selector::new("unix", zone).unwrap(),
            ])),
            ..AgentPatch::default()
        };
        server
            .datastore
            .agents
            .update(&node.id, patch)
            .await
            .unwrap();
        let mut stream = watch(&server, &node, WatchRequest::default()).await;
        stream.event().await;
        streams.push((node, stream));
    }
    let made = server.create(entry("/rack", "/web")).await;
    let other = server.entry(&streams[2].0, "/theirs").await;
    for (_, stream) in &mut streams[..2] {
        assert_eq!(ids(&stream.event().await), [made.id.as_str()]);
    }
    assert_eq!(ids(&streams[2].1.event().await), [other.id.as_str()]);
}

#[tokio::test]
async fn ends_the_oldest_stream_of_an_agent_that_opens_too_many() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = watch(&server, &node, WatchRequest::default()).await;
        stream.event().await;
        streams.push(stream);
    }
    assert!(streams[0].next().await.unwrap().is_none());
    let made = server.entry(&node, "/mine").await;
    assert_eq!(ids(&streams[1].event().await), [made.id.as_str()]);
}

#[tokio::test]
async fn gives_back_what_has_not_expired_after_all_when_the_clock_is_set_back() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    let short = short_lived(&server, &node, "/short").await;
    let mut stream = watch(&server, &node, WatchRequest::default()).await;
    stream.event().await;
    server.advance(90);
    server.entry(&other, "/theirs").await;
    assert_eq!(
        stream.event().await.removed_entry_ids,
        std::slice::from_ref(&short.id),
        "a clock that is ahead"
    );
    let now = spiffe::clock::Clock::now(&server.clock);
    server.clock.set(now - Duration::from_secs(90));
    server.entry(&other, "/more").await;
    assert_eq!(ids(&stream.event().await), [short.id.as_str()]);
}

#[tokio::test]
async fn writes_few_of_the_versions_that_an_agent_claims_by_opening_streams() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let before = server.registry.cursor().revision();
    for number in 0..40 {
        let request = WatchRequest {
            agent_version: format!("1.{number}"),
            ..WatchRequest::default()
        };
        watch(&server, &node, request).await.event().await;
    }
    let written = server.registry.cursor().revision() - before;
    assert!((1..30).contains(&written), "{written} writes");
}

#[test]
fn a_watch_that_is_idle_needs_little_room() {
    fn room<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }
    let needed = room(super::Watcher::run);
    assert!(needed <= 1400, "{needed} bytes, of ten thousand agents");
}
