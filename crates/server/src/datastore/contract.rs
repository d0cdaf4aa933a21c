//! What a datastore must do, whichever database is under it. Each case runs on SQLite, and on PostgreSQL when
//! `PLASTRON_TEST_POSTGRES_URL` names one; there it gets a schema of its own.

mod agents;
mod bundles;
mod entries;
mod followers;
mod forks;
mod tokens;
mod versions;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use spiffe::clock::{Clock, ManualClock};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use super::{Datastore, DatastoreConfig, DatastoreError, DatastoreKind, PostgresConfig};
use crate::registry::{Object, Page, Registry};

/// The time at which every case begins, Unix seconds.
pub(super) const NOW: i64 = 1_700_000_000;

/// A database that nobody else uses, and a clock.
#[derive(Debug)]
pub(super) struct Subject {
    kind: DatastoreKind,
    pub(super) clock: ManualClock,
    _directory: tempfile::TempDir,
}

impl Subject {
    pub(super) fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kind = DatastoreKind::Sqlite {
            path: directory.path().join("datastore.sqlite3"),
        };
        Self {
            kind,
            clock: clock(),
            _directory: directory,
        }
    }

    /// A new schema named after the case, or none without a server to test on.
    pub(super) async fn postgres(case: &str) -> Option<Self> {
        let url = std::env::var("PLASTRON_TEST_POSTGRES_URL")
            .expect("PLASTRON_TEST_POSTGRES_URL names a PostgreSQL server; tests/run starts one");
        let schema = format!("plastron_test_{case}");
        let url = if url.contains("sslmode=") {
            url
        } else {
            format!(
                "{url}{}sslmode=disable",
                if url.contains('?') { '&' } else { '?' }
            )
        };
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let reset = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
        client.batch_execute(&reset).await.unwrap();
        drop(client);
        driver.await.unwrap().unwrap();
        let url = format!("{url}&options=-csearch_path%3D{schema}&application_name={schema}");
        Some(Self {
            kind: DatastoreKind::Postgres(PostgresConfig::new(url)),
            clock: clock(),
            _directory: tempfile::tempdir().unwrap(),
        })
    }

    /// The script that made the schema's first version.
    pub(super) fn first_schema(&self) -> &'static str {
        match self.kind {
            DatastoreKind::Sqlite { .. } => include_str!("../../migrations/0001.sqlite.sql"),
            DatastoreKind::Postgres(_) => include_str!("../../migrations/0001.postgres.sql"),
        }
    }

    pub(super) fn path(&self) -> Option<std::path::PathBuf> {
        match &self.kind {
            DatastoreKind::Sqlite { path } => Some(path.clone()),
            DatastoreKind::Postgres(_) => None,
        }
    }

    /// Runs statements behind the datastore's back.
    pub(super) async fn sql(&self, statements: &str) {
        match &self.kind {
            DatastoreKind::Sqlite { path } => {
                rusqlite::Connection::open(path)
                    .unwrap()
                    .execute_batch(statements)
                    .unwrap();
            }
            DatastoreKind::Postgres(config) => {
                let (client, connection) =
                    tokio_postgres::connect(&config.url, tokio_postgres::NoTls)
                        .await
                        .unwrap();
                let driver = tokio::spawn(connection);
                client.batch_execute(statements).await.unwrap();
                drop(client);
                driver.await.unwrap().unwrap();
            }
        }
    }

    /// How many rows a table has.
    pub(super) async fn count(&self, table: &str) -> i64 {
        let query = format!("SELECT count(*) FROM {table}");
        match &self.kind {
            DatastoreKind::Sqlite { path } => {
                let connection = rusqlite::Connection::open(path).unwrap();
                connection.query_row(&query, [], |row| row.get(0)).unwrap()
            }
            DatastoreKind::Postgres(config) => {
                let (client, connection) =
                    tokio_postgres::connect(&config.url, tokio_postgres::NoTls)
                        .await
                        .unwrap();
                let driver = tokio::spawn(connection);
                let count = client.query_one(&query, &[]).await.unwrap().get(0);
                drop(client);
                driver.await.unwrap().unwrap();
                count
            }
        }
    }

    pub(super) async fn try_open(
        &self,
        trust_domain: &str,
    ) -> Result<(Datastore, Arc<Registry>), DatastoreError> {
        let config = DatastoreConfig::new(self.kind.clone());
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        Box::pin(Datastore::open_beside_others(
            config,
            trust_domain,
            Arc::new(self.clock.clone()),
        ))
        .await
    }

    pub(super) async fn open(&self) -> (Datastore, Arc<Registry>) {
        self.try_open("example.org").await.unwrap()
    }

    pub(super) fn now(&self) -> std::time::SystemTime {
        self.clock.now()
    }
}

fn clock() -> ManualClock {
    ManualClock::new(UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs()))
}

pub(super) fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub(super) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&td("example.org"), path).unwrap()
}

pub(super) fn selectors(list: &[&str]) -> SelectorSet {
    SelectorSet::from(
        list.iter()
            .map(|text| Selector::parse(text).unwrap())
            .collect::<Vec<_>>(),
    )
}

pub(super) fn entry(parent: &str, path: &str, list: &[&str]) -> Entry {
    Entry {
        id: Arc::from(""),
        spiffe_id: id(path),
        parent_id: id(parent),
        selectors: selectors(list),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        hint: String::new(),
        created_at: 0,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

pub(super) async fn create(datastore: &Datastore, entry: Entry) -> Arc<Entry> {
    let mut created = datastore.entries.create(vec![entry]).await.unwrap();
    created.remove(0).unwrap().entry
}

/// Everything a registry holds, in its orders.
pub(super) fn content(registry: &Registry) -> Vec<Object> {
    let mut all: Vec<Object> = Vec::new();
    all.extend(
        registry
            .entries(&Default::default(), &Page::default())
            .unwrap()
            .items
            .into_iter()
            .map(Object::Entry),
    );
    all.extend(
        registry
            .agents(&Default::default(), &Page::default())
            .unwrap()
            .items
            .into_iter()
            .map(Object::Agent),
    );
    all.extend(registry.bundles().into_iter().map(Object::Bundle));
    all.extend(
        registry
            .federation_relationships()
            .into_iter()
            .map(Object::FederationRelationship),
    );
    all.extend(registry.journals().into_iter().map(Object::Journal));
    let state = registry.read();
    let mut tokens: Vec<_> = state.tokens.iter().cloned().collect();
    tokens.sort_by(|a, b| a.digest.cmp(&b.digest));
    all.extend(tokens.into_iter().map(Object::JoinToken));
    all.extend(state.leases.values().cloned().map(Object::Lease));
    all
}

/// Makes a test of each case for each database.
macro_rules! on_every_database {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case($crate::datastore::contract::Subject::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
            async fn $case() {
                if let Some(subject) = $crate::datastore::contract::Subject::postgres(stringify!($case)).await {
                    super::$case(subject).await;
                }
            })*
        }
    };
}
use on_every_database;
