//! Registration entries.

use std::sync::Arc;

use super::{NOW, Subject, content, create, entry, id, on_every_database, selectors, td};
use crate::datastore::{EntryPatch, EntryWriteError};
use crate::registry::{EntryFilter, Page};
use spiffe::bundle::Bundle;
use spiffe::entry::{Entry, EntryError};

on_every_database!(
    pruning_goes_batch_by_batch_and_takes_what_has_expired_only,
    every_field_survives_a_restart,
    an_entry_without_id_gets_one_and_a_creation_time,
    refuses_a_similar_entry_and_names_the_existing,
    refuses_a_taken_entry_id,
    refuses_an_unknown_federated_bundle,
    a_refused_item_does_not_harm_its_batch,
    one_of_many_racing_similar_creates_wins,
    an_update_writes_the_given_fields_only,
    an_update_may_not_make_two_entries_similar,
    an_update_keeps_the_place_in_listings,
    an_update_that_changes_nothing_changes_nothing,
    no_entry_of_an_id_repeats_the_revision_number_of_an_earlier_one,
    a_dns_name_given_twice_is_refused_by_name,
    a_deleted_entry_leaves_room_for_its_like,
    pruning_takes_the_expired_only,
    listing_pages_miss_and_repeat_nothing,
);

async fn every_field_survives_a_restart(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    datastore
        .bundles
        .append(Bundle::new(td("other.org")))
        .await
        .unwrap();
    let full = Entry {
        id: Arc::from("my-entry"),
        x509_svid_ttl: 60,
        jwt_svid_ttl: 30,
        federates_with: vec![td("other.org")],
        admin: true,
        downstream: true,
        expires_at: NOW + 5,
        dns_names: vec!["a.example".to_owned(), "b.example".to_owned()],
        hint: "inner \"quoted\" ü \u{1}".to_owned(),
        created_at: NOW - 1,
        disable_x509_svid_prefetch: true,
        jwt_svid_include_jti: true,
        ..entry("/spire/agent/x", "/web", &["unix:uid:1", "k8s:ns:\n\"ü"])
    };
    create(&datastore, full.clone()).await;
    create(
        &datastore,
        Entry {
            store_svid: true,
            ..entry("/spire/agent/x", "/stored", &["aws:a:1"])
        },
    )
    .await;
    assert_eq!(*registry.entry("my-entry").unwrap(), full);
    drop(datastore);

    let (_again, reloaded) = subject.open().await;
    assert_eq!(*reloaded.entry("my-entry").unwrap(), full);
    assert_eq!(content(&reloaded), content(&registry));
    assert_eq!(reloaded.revision(), registry.revision());
    assert_eq!(reloaded.cursor(), registry.cursor());
}

async fn an_entry_without_id_gets_one_and_a_creation_time(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let made = create(&datastore, entry("/spire/agent/x", "/web", &["a:b"])).await;
    assert_eq!(made.created_at, NOW);
    assert_eq!(made.id.len(), 36);
    assert_eq!(registry.entry(&made.id).unwrap(), made);
}

async fn refuses_a_similar_entry_and_names_the_existing(subject: Subject) {
    let (datastore, _) = subject.open().await;
    let first = create(&datastore, entry("/spire/agent/x", "/web", &["a:1", "a:2"])).await;
    let again = Entry {
        hint: "other".to_owned(),
        ..entry("/spire/agent/x", "/web", &["a:2", "a:1"])
    };
    let outcome = datastore
        .entries
        .create(vec![again])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(outcome, Err(EntryWriteError::Similar(first)));
    for different in [
        entry("/spire/agent/y", "/web", &["a:1", "a:2"]),
        entry("/spire/agent/x", "/web2", &["a:1", "a:2"]),
        entry("/spire/agent/x", "/web", &["a:1"]),
    ] {
        create(&datastore, different).await;
    }
}

async fn refuses_a_taken_entry_id(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    create(
        &datastore,
        Entry {
            id: Arc::from("one"),
            ..entry("/spire/agent/x", "/web", &["a:1"])
        },
    )
    .await;
    let taken = Entry {
        id: Arc::from("one"),
        ..entry("/spire/agent/x", "/db", &["a:1"])
    };
    let outcome = datastore
        .entries
        .create(vec![taken])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(outcome, Err(EntryWriteError::IdTaken("one".to_owned())));
    assert_eq!(registry.entry("one").unwrap().spiffe_id, id("/web"));
}

async fn refuses_an_unknown_federated_bundle(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let federated = Entry {
        federates_with: vec![td("other.org")],
        ..entry("/spire/agent/x", "/web", &["a:1"])
    };
    let outcome = datastore
        .entries
        .create(vec![federated])
        .await
        .unwrap()
        .remove(0)
        .unwrap_err();
    assert_eq!(
        outcome.to_string(),
        "unable to find federated bundle \"other.org\""
    );
    let made = create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    let patch = EntryPatch {
        id: made.id.to_string(),
        federates_with: Some(vec![td("other.org")]),
        ..EntryPatch::default()
    };
    let outcome = datastore
        .entries
        .update(vec![patch])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(
        outcome,
        Err(EntryWriteError::UnknownFederatedBundle(td("other.org")))
    );
    assert_eq!(registry.entry(&made.id).unwrap(), made);
}

async fn a_refused_item_does_not_harm_its_batch(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let batch = vec![
        entry("/spire/agent/x", "/a", &["a:1"]),
        entry("/spire/agent/x", "/b", &[]),
        entry("/spire/agent/x", "/a", &["a:1"]),
        entry("/spire/agent/x", "/spire/reserved", &["a:1"]),
        entry("/spire/agent/x", "/c", &["a:1"]),
    ];
    let outcomes = datastore.entries.create(batch).await.unwrap();
    assert!(outcomes[0].is_ok() && outcomes[4].is_ok());
    assert_eq!(
        outcomes[1],
        Err(EntryWriteError::Invalid(EntryError::MissingSelectors))
    );
    assert!(matches!(outcomes[2], Err(EntryWriteError::Similar(_))));
    assert!(matches!(outcomes[3], Err(EntryWriteError::Invalid(_))));
    assert_eq!(registry.entry_count(&EntryFilter::default()), 2);
}

async fn one_of_many_racing_similar_creates_wins(subject: Subject) {
    let (first, _) = subject.open().await;
    let (second, _) = subject.open().await;
    let racers: Vec<_> = (0..32)
        .map(|n| {
            let datastore = if n % 2 == 0 {
                first.clone()
            } else {
                second.clone()
            };
            tokio::spawn(async move {
                datastore
                    .entries
                    .create(vec![entry("/spire/agent/x", "/web", &["a:1"])])
                    .await
                    .unwrap()
                    .remove(0)
            })
        })
        .collect();
    let mut won = Vec::new();
    let mut named = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(created) => won.push(created.entry.id.to_string()),
            Err(EntryWriteError::Similar(existing)) => named.push(existing.id.to_string()),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert!(named.iter().all(|id| *id == won[0]));
}

async fn an_update_writes_the_given_fields_only(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let made = create(
        &datastore,
        Entry {
            hint: "h".to_owned(),
            ..entry("/spire/agent/x", "/web", &["a:1"])
        },
    )
    .await;
    let patch = EntryPatch {
        id: made.id.to_string(),
        admin: Some(true),
        selectors: Some(selectors(&["b:2"])),
        ..EntryPatch::default()
    };
    let absent = EntryPatch {
        id: "absent".to_owned(),
        ..EntryPatch::default()
    };
    let invalid = EntryPatch {
        id: made.id.to_string(),
        x509_svid_ttl: Some(-1),
        ..EntryPatch::default()
    };
    let outcomes = datastore
        .entries
        .update(vec![patch, absent, invalid])
        .await
        .unwrap();
    let expected = Entry {
        admin: true,
        selectors: selectors(&["b:2"]),
        revision_number: 1,
        ..Entry::clone(&made)
    };
    assert_eq!(**outcomes[0].as_ref().unwrap(), expected);
    assert_eq!(outcomes[1], Err(EntryWriteError::NotFound));
    assert!(matches!(outcomes[2], Err(EntryWriteError::Invalid(_))));
    assert_eq!(*registry.entry(&made.id).unwrap(), expected);
}

async fn an_update_may_not_make_two_entries_similar(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let first = create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    let second = create(&datastore, entry("/spire/agent/x", "/web", &["a:2"])).await;
    let patch = |id: &str, list| EntryPatch {
        id: id.to_owned(),
        selectors: Some(selectors(&[list])),
        ..EntryPatch::default()
    };
    let outcome = datastore
        .entries
        .update(vec![patch(&second.id, "a:1")])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(outcome, Err(EntryWriteError::Similar(Arc::clone(&first))));
    // What one of a batch gives up, the next may take, and back again.
    let steps = vec![
        patch(&first.id, "a:3"),
        patch(&second.id, "a:1"),
        patch(&first.id, "a:2"),
    ];
    assert!(
        datastore
            .entries
            .update(steps)
            .await
            .unwrap()
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(
        registry.entry(&first.id).unwrap().selectors,
        selectors(&["a:2"])
    );
    let (_again, reloaded) = subject.open().await;
    assert_eq!(content(&reloaded), content(&registry));
}

async fn an_update_keeps_the_place_in_listings(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(
            create(
                &datastore,
                entry("/spire/agent/x", &format!("/{n}"), &["a:1"]),
            )
            .await
            .id
            .to_string(),
        );
    }
    let patch = EntryPatch {
        id: ids[1].clone(),
        parent_id: Some(id("/spire/agent/y")),
        ..EntryPatch::default()
    };
    datastore
        .entries
        .update(vec![patch])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let listed = registry
        .entries(&EntryFilter::default(), &Page::default())
        .unwrap()
        .items;
    assert_eq!(
        listed
            .iter()
            .map(|entry| entry.id.to_string())
            .collect::<Vec<_>>(),
        ids
    );
    let moved = EntryFilter {
        by_parent_id: Some(id("/spire/agent/y")),
        ..EntryFilter::default()
    };
    assert_eq!(registry.entry_count(&moved), 1);
}

async fn a_deleted_entry_leaves_room_for_its_like(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let first = create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    let ids = vec![
        first.id.to_string(),
        "absent".to_owned(),
        first.id.to_string(),
    ];
    let outcomes = datastore.entries.delete(ids).await.unwrap();
    assert_eq!(
        outcomes,
        [
            Ok(first),
            Err(EntryWriteError::NotFound),
            Err(EntryWriteError::NotFound)
        ]
    );
    let second = create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    let (_again, reloaded) = subject.open().await;
    assert_eq!(content(&reloaded), content(&registry));
    assert_eq!(registry.entries_for_spiffe_id(&id("/web")), [second]);
}

async fn pruning_takes_the_expired_only(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    for (path, expires_at) in [
        ("/never", 0),
        ("/past", NOW - 1),
        ("/now", NOW),
        ("/later", NOW + 1),
    ] {
        create(
            &datastore,
            Entry {
                expires_at,
                ..entry("/spire/agent/x", path, &["a:1"])
            },
        )
        .await;
    }
    let pruned = datastore.entries.prune(subject.now()).await.unwrap();
    assert_eq!(
        pruned
            .iter()
            .map(|entry| entry.spiffe_id.path())
            .collect::<Vec<_>>(),
        ["/past", "/now"]
    );
    assert_eq!(registry.entry_count(&EntryFilter::default()), 2);
    let revision = registry.revision();
    assert!(
        datastore
            .entries
            .prune(subject.now())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        registry.revision(),
        revision,
        "nothing to prune is no write"
    );
}

async fn listing_pages_miss_and_repeat_nothing(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let batch = (0..25).map(|n| {
        entry(
            "/spire/agent/x",
            &format!("/{n}"),
            &[["a:odd", "a:even"][n % 2]],
        )
    });
    datastore.entries.create(batch.collect()).await.unwrap();
    let filter = EntryFilter {
        by_selectors: Some((selectors(&["a:odd"]), crate::registry::SetMatch::Exact)),
        ..EntryFilter::default()
    };
    let mut paths = Vec::new();
    let mut page = Page {
        size: 4,
        token: String::new(),
    };
    loop {
        let listing = registry.entries(&filter, &page).unwrap();
        assert!(!listing.items.is_empty(), "no page is empty");
        paths.extend(
            listing
                .items
                .iter()
                .map(|entry| entry.spiffe_id.path().to_owned()),
        );
        if listing.next_token.is_empty() {
            break;
        }
        // A deletion before the token moves no page.
        let gone = listing.items[0].id.to_string();
        datastore
            .entries
            .delete(vec![gone])
            .await
            .unwrap()
            .remove(0)
            .unwrap();
        page.token = listing.next_token;
    }
    let expected: Vec<_> = (0..25).step_by(2).map(|n| format!("/{n}")).collect();
    assert_eq!(paths, expected);
    let wrong = Page {
        size: 4,
        token: "x1".to_owned(),
    };
    assert_eq!(
        registry.entries(&filter, &wrong).unwrap_err().to_string(),
        "could not parse token 'x1'"
    );
}

async fn an_update_that_changes_nothing_changes_nothing(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let made = create(
        &datastore,
        Entry {
            hint: "h".to_owned(),
            ..entry("/spire/agent/x", "/web", &["unix:uid:1"])
        },
    )
    .await;
    let before = registry.entry(&made.id).unwrap();
    let patch = EntryPatch {
        id: made.id.to_string(),
        hint: Some("h".to_owned()),
        selectors: Some(selectors(&["unix:uid:1"])),
        ..EntryPatch::default()
    };
    let updated = datastore.entries.update(vec![patch]).await.unwrap();
    assert_eq!(updated[0].as_ref().unwrap(), &made);
    assert!(Arc::ptr_eq(&before, &registry.entry(&made.id).unwrap()));
}

async fn no_entry_of_an_id_repeats_the_revision_number_of_an_earlier_one(subject: Subject) {
    let chosen = || Entry {
        id: Arc::from("chosen"),
        ..entry("/spire/agent/x", "/web", &["unix:uid:1"])
    };
    let hint = |hint: &str| EntryPatch {
        id: "chosen".to_owned(),
        hint: Some(hint.to_owned()),
        ..EntryPatch::default()
    };
    let mut highest = -1;
    let (mut datastore, _) = subject.open().await;
    for round in 0..4 {
        if round == 2 {
            // Not even after a restart.
            datastore.close().await;
            (datastore, _) = subject.open().await;
        }
        let made = create(&datastore, chosen()).await;
        assert!(highest >= 0 || made.revision_number == 0, "{made:?}");
        assert!(made.revision_number > highest, "{made:?} after {highest}");
        // Several updates in one commit count once.
        let updates = (0..9).map(|round| hint(&format!("h{round}"))).collect();
        let updated = datastore.entries.update(updates).await.unwrap();
        highest = updated[8].as_ref().unwrap().revision_number;
        assert!(highest > made.revision_number);
        let deleted = datastore.entries.delete(vec!["chosen".to_owned()]).await;
        deleted.unwrap()[0].as_ref().unwrap();
    }
}

async fn a_dns_name_given_twice_is_refused_by_name(subject: Subject) {
    let (datastore, _) = subject.open().await;
    let twice = || vec!["a.b".to_owned(), "c.d".to_owned(), "a.b".to_owned()];
    let refused = EntryWriteError::Invalid(EntryError::DuplicateDnsName("a.b".to_owned()));
    let made = datastore
        .entries
        .create(vec![Entry {
            dns_names: twice(),
            ..entry("/spire/agent/x", "/web", &["unix:uid:1"])
        }])
        .await
        .unwrap();
    assert_eq!(made[0].as_ref().unwrap_err(), &refused);
    let good = create(&datastore, entry("/spire/agent/x", "/web", &["unix:uid:1"])).await;
    let patch = EntryPatch {
        id: good.id.to_string(),
        dns_names: Some(twice()),
        ..EntryPatch::default()
    };
    let updated = datastore.entries.update(vec![patch]).await.unwrap();
    assert_eq!(updated[0].as_ref().unwrap_err(), &refused);
}

async fn pruning_goes_batch_by_batch_and_takes_what_has_expired_only(subject: Subject) {
    let (datastore, registry) = subject.open().await;
    let entries = (0..1_003).map(|n| Entry {
        expires_at: match n {
            0 => 0,
            1 => NOW + 1,
            _ => NOW,
        },
        ..entry("/spire/agent/x", &format!("/w{n}"), &["a:1"])
    });
    datastore.entries.create(entries.collect()).await.unwrap();
    let mut pruned = Vec::new();
    for _ in 0..3 {
        pruned.push(datastore.entries.prune(subject.now()).await.unwrap().len());
    }
    assert_eq!(pruned, [1_000, 1, 0]);
    let paths: Vec<_> = registry
        .entries(&EntryFilter::default(), &Page::default())
        .unwrap()
        .items
        .iter()
        .map(|entry| entry.spiffe_id.path().to_owned())
        .collect();
    assert_eq!(paths, ["/w0", "/w1"]);
}
