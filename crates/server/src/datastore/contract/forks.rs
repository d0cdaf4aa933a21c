//! A database that lost the end of its history, in a fail-over to a replica that was behind or by a restored backup, and
//! then went on: nobody takes the new history for the old one, whatever their numbers.

use std::sync::Arc;
use std::time::Duration;

use super::{Subject, content, create, entry, id, on_every_database};
use crate::datastore::{Datastore, EntryWriteError};
use crate::registry::{Cursor, Registry};

on_every_database!(
    a_lost_history_is_recognised_at_the_same_number,
    a_lost_history_is_recognised_when_the_new_one_has_grown_past_it,
    a_lost_history_is_recognised_when_the_new_one_is_behind,
    a_writer_recognises_a_lost_history_before_it_writes,
    a_database_of_the_first_schema_goes_on,
);

const TABLES: [&str; 9] = [
    "revision",
    "changes",
    "entries",
    "agents",
    "bundles",
    "join_tokens",
    "federation_relationships",
    "journals",
    "leases",
];

/// Keeps a copy of everything, as a backup does.
async fn save(subject: &Subject, name: &str) {
    let copies =
        TABLES.map(|table| format!("CREATE TABLE {name}_{table} AS SELECT * FROM {table}"));
    subject.sql(&copies.join("; ")).await;
}

/// Puts such a copy in the place of what is there, at once.
async fn restore(subject: &Subject, name: &str) {
    let tables = TABLES.map(|table| {
        format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {name}_{table}")
    });
    subject
        .sql(&format!("BEGIN; {}; COMMIT", tables.join("; ")))
        .await;
}

async fn write(datastore: &Datastore, paths: &[&str]) {
    for path in paths {
        create(datastore, entry("/spire/agent/x", path, &["a:1"])).await;
    }
}

/// Two histories from one beginning: one that will be lost, in which the database is left, and one that was saved as
/// `new`. Gives a server that knows the first.
async fn fork(subject: &Subject, lost: &[&str], new: &[&str]) -> (Datastore, Arc<Registry>) {
    let (first, _) = subject.open().await;
    write(&first, &["/common"]).await;
    let revoked = create(&first, entry("/spire/agent/x", "/revoked", &["a:1"])).await;
    save(subject, "common").await;
    let deleted = first.entries.delete(vec![revoked.id.to_string()]).await;
    deleted.unwrap().remove(0).unwrap();
    write(&first, new).await;
    save(subject, "new").await;
    first.close().await;
    restore(subject, "common").await;
    let (second, registry) = subject.open().await;
    write(&second, lost).await;
    (second, registry)
}

/// Waits until memory is what a fresh load shows.
async fn follows(subject: &Subject, registry: &Registry) {
    let (_fresh, fresh) = subject.open().await;
    let mut revisions = registry.subscribe();
    let same = async {
        while content(registry) != content(&fresh) {
            revisions.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), same).await;
    waited.expect("the new history is taken");
    assert_eq!(registry.cursor(), fresh.cursor());
}

async fn recognises(subject: Subject, lost: &[&str], new: &[&str]) {
    let (_server, registry) = fork(&subject, lost, new).await;
    let cursor = registry.cursor();
    assert!(registry.changes_since(cursor).is_some());
    restore(&subject, "new").await;
    follows(&subject, &registry).await;
    assert!(
        registry.changes_since(cursor).is_none(),
        "an agent that knows the lost history starts over"
    );
    let (_fresh, fresh) = subject.open().await;
    assert!(fresh.changes_since(cursor).is_none(), "at any server");
    let another = Cursor::new(registry.revision(), cursor.token());
    assert!(registry.changes_since(another).is_none());
}

async fn a_lost_history_is_recognised_at_the_same_number(subject: Subject) {
    Box::pin(recognises(subject, &["/1", "/2"], &["/3"])).await;
}

async fn a_lost_history_is_recognised_when_the_new_one_has_grown_past_it(subject: Subject) {
    Box::pin(recognises(
        subject,
        &["/1", "/2"],
        &["/3", "/4", "/5", "/6"],
    ))
    .await;
}

async fn a_lost_history_is_recognised_when_the_new_one_is_behind(subject: Subject) {
    Box::pin(recognises(subject, &["/1", "/2", "/3", "/4"], &[])).await;
}

async fn a_writer_recognises_a_lost_history_before_it_writes(subject: Subject) {
    let (server, registry) = fork(&subject, &["/1", "/2"], &["/3", "/4", "/5"]).await;
    restore(&subject, "new").await;
    // In the lost history there is no such entry; in the new one there is.
    let made = server
        .entries
        .create(vec![entry("/spire/agent/x", "/3", &["a:1"])])
        .await
        .unwrap()
        .remove(0);
    assert!(matches!(made, Err(EntryWriteError::Similar(_))), "{made:?}");
    assert!(registry.entries_for_spiffe_id(&id("/revoked")).is_empty());
    follows(&subject, &registry).await;
}

async fn a_database_of_the_first_schema_goes_on(subject: Subject) {
    subject.sql(subject.first_schema()).await;
    let body = r#"{"spiffe_id":"spiffe://example.org/web","parent_id":"spiffe://example.org/spire/agent/x","selectors":["a:1"]}"#;
    let similarity = if subject.path().is_some() {
        ["", ""]
    } else {
        [", likeness", ", 'l'"]
    };
    subject
        .sql(&format!(
            "INSERT INTO meta VALUES ('schema_version', '1'), ('readable_from', '1'), \
             ('trust_domain', 'example.org'), ('epoch', 'e'); \
             UPDATE revision SET revision = 7; INSERT INTO changes VALUES (7, 'entries', 'k'); \
             INSERT INTO entries (row_number, key, revision, body{}) VALUES (1, 'k', 7, '{body}'{})",
            similarity[0], similarity[1]
        ))
        .await;
    let (first, first_registry) = subject.open().await;
    let (_second, second_registry) = subject.open().await;
    assert_eq!(first_registry.revision(), 7);
    assert_ne!(
        first_registry.cursor().token(),
        0,
        "the history has its identity"
    );
    assert_eq!(first_registry.cursor(), second_registry.cursor());
    let cursor = second_registry.cursor();
    assert_eq!(first_registry.entries_for_spiffe_id(&id("/web")).len(), 1);
    write(&first, &["/new"]).await;
    follows(&subject, &second_registry).await;
    assert_eq!(second_registry.changes_since(cursor).unwrap().len(), 1);
}
