//! Several servers on one database: one history, without gaps, the same in every memory.

use std::sync::Arc;
use std::time::Duration;

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;

use super::agents::agent;
use super::{NOW, Subject, content, create, entry, id, on_every_database, selectors, td};
use crate::datastore::schema::{KEPT_REVISIONS, PRUNE_EVERY};
use crate::datastore::{Datastore, DatastoreError, DeleteMode, EntryPatch, JoinToken};
use crate::registry::{Cursor, EntryFilter, Kind, Page, Registry};

on_every_database!(
    what_servers_note_for_themselves_wakes_no_reader,
    a_database_of_another_trust_domain_is_refused,
    a_writer_sees_what_another_committed_before,
    a_server_that_only_reads_learns_of_others_commits,
    revisions_of_concurrent_servers_have_no_gaps,
    a_change_names_the_object_before_and_after,
    a_follower_equals_a_fresh_load,
    a_follower_lists_in_the_order_of_a_fresh_load,
    a_follower_far_behind_loads_everything,
    old_changes_are_forgotten,
);

async fn a_database_of_another_trust_domain_is_refused(subject: Subject) {
    drop(subject.open().await);
    let refused = subject.try_open("other.org").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the database belongs to trust domain example.org, not to other.org"
    );
    assert!(matches!(refused, DatastoreError::WrongTrustDomain { .. }));
    subject.open().await;
}

async fn a_writer_sees_what_another_committed_before(subject: Subject) {
    let (first, _) = subject.open().await;
    let (second, second_registry) = subject.open().await;
    let made = create(&first, entry("/spire/agent/x", "/web", &["a:1"])).await;
    let deleted = second
        .entries
        .delete(vec![made.id.to_string()])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(deleted, Ok(made));
    assert_eq!(second_registry.revision(), 2);
}

async fn a_server_that_only_reads_learns_of_others_commits(subject: Subject) {
    let (first, _) = subject.open().await;
    let (_second, second_registry) = subject.open().await;
    let mut heard = second_registry.subscribe();
    let made = create(&first, entry("/spire/agent/x", "/web", &["a:1"])).await;
    heard.wait_for(|revision| *revision == 1).await.unwrap();
    assert_eq!(second_registry.entry(&made.id), Some(made));
}

async fn revisions_of_concurrent_servers_have_no_gaps(subject: Subject) {
    let (first, first_registry) = subject.open().await;
    let start = first_registry.cursor();
    let (second, second_registry) = subject.open().await;
    let writers: Vec<_> = (0..40)
        .map(|n| {
            let datastore = if n % 2 == 0 {
                first.clone()
            } else {
                second.clone()
            };
            tokio::spawn(async move {
                create(
                    &datastore,
                    entry("/spire/agent/x", &format!("/{n}"), &["a:1"]),
                )
                .await;
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    // Each server's next write brings it up to date.
    create(&first, entry("/spire/agent/x", "/first", &["a:1"])).await;
    create(&second, entry("/spire/agent/x", "/second", &["a:1"])).await;
    let last = second_registry.revision();
    let mut seen: Vec<u64> = second_registry
        .changes_since(start)
        .unwrap()
        .iter()
        .map(|c| c.revision)
        .collect();
    assert_eq!(seen.len(), 42, "every change is reported once");
    seen.dedup();
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    let upto = first_registry.revision();
    let reported = |registry: &Registry| {
        let changes = registry
            .changes_since(start)
            .unwrap()
            .into_iter()
            .filter(|change| change.revision <= upto);
        let mut reported: Vec<_> = changes
            .map(|change| (change.revision, change.key))
            .collect();
        reported.sort();
        reported
    };
    assert_eq!(reported(&first_registry), reported(&second_registry));
}

async fn a_change_names_the_object_before_and_after(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let start = registry.cursor();
    let made = create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    let patch = EntryPatch {
        id: made.id.to_string(),
        admin: Some(true),
        ..EntryPatch::default()
    };
    let patched = datastore
        .entries
        .update(vec![patch])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    datastore
        .entries
        .delete(vec![made.id.to_string()])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    use crate::registry::Object::Entry;
    let changes = registry.changes_since(start).unwrap();
    let sides: Vec<_> = changes
        .iter()
        .map(|c| (c.revision, c.kind, c.old.clone(), c.new.clone()))
        .collect();
    assert_eq!(
        sides,
        [
            (1, Kind::Entry, None, Some(Entry(Arc::clone(&made)))),
            (
                2,
                Kind::Entry,
                Some(Entry(made)),
                Some(Entry(Arc::clone(&patched)))
            ),
            (3, Kind::Entry, Some(Entry(patched)), None),
        ]
    );
    let end = registry.cursor();
    assert_eq!(registry.changes_since(end).unwrap().len(), 0);
    assert!(
        registry
            .changes_since(Cursor::new(4, end.token()))
            .is_none(),
        "a cursor from the future is from another history"
    );
}

/// Numbers that are the same in every run (SplitMix64).
struct Rng(u64);

impl Rng {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// Does something, allowed or not. Small ranges make the operations meet.
async fn act(datastore: &Datastore, rng: &mut Rng) {
    let registry = Arc::clone(datastore.registry());
    let listed = registry
        .entries(&EntryFilter::default(), &Page::default())
        .unwrap()
        .items;
    let any = |rng: &mut Rng| {
        let place = rng.roll(listed.len().max(1) as u64);
        listed
            .get(usize::try_from(place).unwrap())
            .map_or("absent".to_owned(), |entry| entry.id.to_string())
    };
    let node = format!("/spire/agent/{}", rng.roll(4));
    let foreign = td(["one.org", "two.org"][usize::try_from(rng.roll(2)).unwrap()]);
    match rng.roll(12) {
        0..=3 => {
            let batch = (0..=rng.roll(3)).map(|_| Entry {
                federates_with: if rng.roll(3) == 0 {
                    vec![foreign.clone()]
                } else {
                    Vec::new()
                },
                expires_at: if rng.roll(5) == 0 { NOW - 1 } else { 0 },
                ..entry(
                    &node,
                    &format!("/{}", rng.roll(8)),
                    &[["a:1", "a:2"][usize::try_from(rng.roll(2)).unwrap()]],
                )
            });
            let batch = batch.collect();
            drop(datastore.entries.create(batch).await.unwrap());
        }
        4 | 5 => {
            let patch = EntryPatch {
                id: any(rng),
                parent_id: (rng.roll(2) == 0).then(|| id(&node)),
                selectors: (rng.roll(2) == 0).then(|| selectors(&["a:3"])),
                ..EntryPatch::default()
            };
            drop(datastore.entries.update(vec![patch]).await.unwrap());
        }
        6 => {
            let ids = vec![any(rng), any(rng)];
            drop(datastore.entries.delete(ids).await.unwrap());
        }
        7 => {
            let now = spiffe::clock::from_unix(NOW);
            drop(datastore.entries.prune(now).await.unwrap());
        }
        8 => drop(datastore.agents.put(agent(&node)).await.unwrap()),
        9 => drop(datastore.agents.delete(&id(&node)).await),
        10 => {
            let bundle = Bundle::new(foreign);
            drop(datastore.bundles.append(bundle).await.unwrap());
        }
        _ => {
            let mode = [
                DeleteMode::Restrict,
                DeleteMode::Delete,
                DeleteMode::Dissociate,
            ];
            let mode = mode[usize::try_from(rng.roll(3)).unwrap()];
            drop(datastore.bundles.delete(&foreign, mode).await);
            let token = JoinToken {
                token: format!("t{}", rng.roll(4)),
                expires_at: NOW,
                alias: None,
            };
            drop(datastore.tokens.create(token).await);
        }
    }
}

/// Histories of the property test. Each is short, since what goes wrong does so within a few steps of each other.
const SEEDS: u64 = 12;

async fn a_follower_equals_a_fresh_load(subject: Subject) {
    let (first, first_registry) = subject.open().await;
    let (second, second_registry) = subject.open().await;
    for seed in 0..SEEDS {
        let mut rng = Rng(0x00c0_ffee ^ (seed << 32));
        for step in 1..=30 {
            let writer = if rng.roll(3) == 0 { &second } else { &first };
            act(writer, &mut rng).await;
            if step % 10 == 0 {
                let note = u8::try_from(seed).unwrap();
                // A write of its own brings each follower to the end.
                first.journals.save("a", vec![note, step]).await.unwrap();
                second.journals.save("b", vec![note, step]).await.unwrap();
                let (_fresh, fresh_registry) = subject.open().await;
                assert_eq!(second_registry.cursor(), fresh_registry.cursor());
                same(&second_registry, &fresh_registry, seed, step);
            }
        }
    }
    assert!(first_registry.revision() > 50);
}

/// Two registries give the same answers, in the same order where there is one.
fn same(followed: &Registry, fresh: &Registry, seed: u64, step: u8) {
    assert_eq!(
        content(followed),
        content(fresh),
        "seed {seed}, step {step}"
    );
    for n in 0..4 {
        let node = id(&format!("/spire/agent/{n}"));
        let sorted = |registry: &Registry| {
            let mut entries = registry.authorized_entries(&node);
            entries.sort_by(|a, b| a.id.cmp(&b.id));
            entries
        };
        assert_eq!(sorted(followed), sorted(fresh), "seed {seed}, step {step}");
    }
}

/// What was deleted and created again between two looks has the place of the new one, as in a fresh load: page tokens are
/// places.
async fn a_follower_lists_in_the_order_of_a_fresh_load(subject: Subject) {
    let (first, _) = subject.open().await;
    let (second, followed) = subject.open().await;
    let chosen = Entry {
        id: Arc::from("chosen"),
        ..entry("/spire/agent/x", "/chosen", &["a:1"])
    };
    create(&first, chosen.clone()).await;
    create(&first, entry("/spire/agent/x", "/other", &["a:1"])).await;
    for node in ["/spire/agent/1", "/spire/agent/2"] {
        first.agents.put(agent(node)).await.unwrap();
    }
    second.journals.save("caught up", vec![1]).await.unwrap();
    let deleted = first.entries.delete(vec!["chosen".to_owned()]).await;
    deleted.unwrap().remove(0).unwrap();
    create(&first, chosen).await;
    first.agents.delete(&id("/spire/agent/1")).await.unwrap();
    first.agents.put(agent("/spire/agent/1")).await.unwrap();
    second.journals.save("caught up", vec![2]).await.unwrap();
    let (_fresh, fresh) = subject.open().await;
    assert_eq!(content(&followed), content(&fresh));
}

async fn a_follower_far_behind_loads_everything(subject: Subject) {
    let (first, first_registry) = subject.open().await;
    let start = first_registry.cursor();
    let (second, second_registry) = subject.open().await;
    // What a long absence does: the log's beginning is pruned.
    for n in 0..5 {
        create(&first, entry("/spire/agent/x", &format!("/{n}"), &["a:1"])).await;
    }
    subject
        .sql("UPDATE revision SET revision = 100; DELETE FROM changes")
        .await;
    create(&second, entry("/spire/agent/x", "/own", &["a:1"])).await;
    create(&first, entry("/spire/agent/x", "/last", &["a:1"])).await;
    second.journals.save("a", vec![1]).await.unwrap();
    assert_eq!(second_registry.revision(), 103);
    let (_fresh, fresh_registry) = subject.open().await;
    assert_eq!(content(&second_registry), content(&fresh_registry));
    assert!(
        second_registry.changes_since(start).is_none(),
        "who follows it must start over, too"
    );
    assert!(first_registry.changes_since(start).is_none());
}

async fn old_changes_are_forgotten(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    for n in 0..3 {
        create(
            &datastore,
            entry("/spire/agent/x", &format!("/{n}"), &["a:1"]),
        )
        .await;
    }
    let next = KEPT_REVISIONS + PRUNE_EVERY;
    subject
        .sql(&format!("UPDATE revision SET revision = {}", next - 2))
        .await;
    create(&datastore, entry("/spire/agent/x", "/kept", &["a:1"])).await;
    assert_eq!(subject.count("changes").await, 4);
    create(&datastore, entry("/spire/agent/x", "/last", &["a:1"])).await;
    assert_eq!(registry.revision(), next);
    assert_eq!(subject.count("changes").await, 2);
    assert_eq!(subject.count("entries").await, 5);
}

async fn what_servers_note_for_themselves_wakes_no_reader(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let mut revisions = registry.subscribe();
    revisions.mark_unchanged();
    let minute = Duration::from_secs(60);
    let taken = datastore.leases.acquire("job", "me", minute, subject.now());
    assert!(taken.await.unwrap());
    datastore.journals.save("mine", vec![1]).await.unwrap();
    assert!(!revisions.has_changed().unwrap());
    assert_eq!((registry.revision(), *revisions.borrow()), (2, 2));
    create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    assert!(revisions.has_changed().unwrap());
    assert_eq!(*revisions.borrow_and_update(), 3);
}
