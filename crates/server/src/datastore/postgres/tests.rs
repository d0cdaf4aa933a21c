//! What only PostgreSQL does: telling the others, broken connections, TLS. Without a server to test on
//! (`PLASTRON_TEST_POSTGRES_URL`; for TLS `PLASTRON_TEST_POSTGRES_TLS_URL`, whose certificate names `localhost` and
//! whose authority its `sslrootcert` is) they pass without a look.

use std::sync::Arc;
use std::time::Duration;

use spiffe::clock::SystemClock;
use tokio::time::timeout;

use crate::datastore::contract::{Subject, content, create, entry, td};
use crate::datastore::{Datastore, DatastoreConfig, DatastoreError, DatastoreKind, PostgresConfig};
use crate::registry::Registry;

async fn reached(registry: &Registry, revision: u64) {
    let mut heard = registry.subscribe();
    let waited = timeout(
        Duration::from_secs(20),
        heard.wait_for(|now| *now >= revision),
    )
    .await;
    waited.expect("the other server's commit is seen").unwrap();
}

#[tokio::test]
async fn a_commit_reaches_the_other_servers_by_itself() {
    let Some(subject) = Subject::postgres("a_commit_reaches_the_other_servers").await else {
        return;
    };
    let (first, first_registry) = subject.open().await;
    let (second, second_registry) = subject.open().await;
    let made = create(&first, entry("/spire/agent/x", "/web", &["a:1"])).await;
    reached(&second_registry, 1).await;
    assert_eq!(second_registry.entry(&made.id), Some(Arc::clone(&made)));
    second
        .delete_entries(vec![made.id.to_string()])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    reached(&first_registry, 2).await;
    assert!(first_registry.entry(&made.id).is_none());
}

#[tokio::test]
async fn a_server_goes_on_when_its_connections_were_cut() {
    let case = "a_server_goes_on_when_cut";
    let Some(subject) = Subject::postgres(case).await else {
        return;
    };
    let (first, first_registry) = subject.open().await;
    let (second, second_registry) = subject.open().await;
    create(&first, entry("/spire/agent/x", "/before", &["a:1"])).await;
    reached(&second_registry, 1).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = 'plastron_test_a_server_goes_on_when_cut' AND pid <> pg_backend_pid()";
    subject.sql(cut).await;
    // The first write may find out that the connection is gone; it says so and the next one has another.
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        let outcome = first
            .create_entries(vec![entry("/spire/agent/x", "/after", &["a:1"])])
            .await;
        let done = outcome.is_ok();
        outcomes.push(outcome);
        if done {
            break;
        }
    }
    assert!(outcomes.last().unwrap().is_ok(), "{outcomes:?}");
    let revision = first_registry.revision();
    reached(&second_registry, revision).await;
    assert_eq!(content(&first_registry), content(&second_registry));
    drop(second);
}

#[tokio::test]
async fn an_unreachable_database_is_refused_without_its_password() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let refused = open(&format!("postgres://u:hunter2@127.0.0.1:{port}/db"))
        .await
        .unwrap_err();
    assert!(matches!(refused, DatastoreError::Unavailable { .. }));
    let text = refused.to_string();
    assert!(text.contains("127.0.0.1/db"), "{text}");
    assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
    assert!(!format!("{refused} {refused:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_named() {
    let Ok(url) = std::env::var("PLASTRON_TEST_POSTGRES_URL") else {
        return;
    };
    let (server, _) = url.split('?').next().unwrap().rsplit_once('/').unwrap();
    let refused = open(&format!("{server}/plastron_absent?sslmode=disable"))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        refused
            .matches("\"plastron_absent\" does not exist")
            .count(),
        1,
        "{refused}"
    );
}

async fn open(url: &str) -> Result<(), DatastoreError> {
    let config = DatastoreConfig {
        kind: DatastoreKind::Postgres(PostgresConfig::new(url)),
    };
    Datastore::open(config, td("example.org"), Arc::new(SystemClock))
        .await
        .map(|_| ())
}

#[tokio::test]
async fn tls_checks_what_its_mode_asks_for() {
    let Ok(url) = std::env::var("PLASTRON_TEST_POSTGRES_TLS_URL") else {
        return;
    };
    let by_address = url.replace("localhost", "127.0.0.1");
    let without_root = url.split('?').next().unwrap();
    open(&format!("{url}&sslmode=verify-full")).await.unwrap();
    open(&format!("{by_address}&sslmode=verify-ca"))
        .await
        .unwrap();
    open(&format!("{without_root}?sslmode=require"))
        .await
        .unwrap();
    for refused in [
        format!("{by_address}&sslmode=verify-full"),
        format!("{without_root}?sslmode=verify-full"),
        format!("{without_root}?sslmode=verify-ca"),
    ] {
        let error = open(&refused).await.unwrap_err();
        assert!(
            matches!(error, DatastoreError::Unavailable { .. }),
            "{refused}: {error}"
        );
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}
