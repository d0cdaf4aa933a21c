//! The one place that tells the databases apart. A backend runs one transaction at a time, for the writer.

use std::sync::Arc;
use std::time::Duration;

use super::codec::Decoder;
use super::draft::Row;
use super::error::DatastoreError;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use crate::registry::{Kind, State, Write};

/// A write that changes nothing.
pub(super) const PROBE: &str = "UPDATE meta SET value = value WHERE name = 'schema_version'";

/// The longest time between two looks for other servers' commits.
pub(super) const POLL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Backend {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
}

/// What the database says of itself.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub(super) trust_domain: String,
    pub(super) epoch: String,
}

/// One row as read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) key: Arc<str>,
    pub(super) revision: u64,
    /// The row number and body, or `None` when the object is gone.
    pub(super) content: Option<(i64, String)>,
}

/// What happened in the database since a known revision.
#[derive(Debug)]
pub(super) enum Missed {
    Nothing,
    /// The latest form of each changed object; together they lead to `revision`.
    Changes {
        revision: u64,
        found: Vec<Found>,
    },
    /// The change log does not reach back, or the database went back in time: load everything anew.
    Everything,
}

/// What a look at the database showed.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) missed: Missed,
    /// Why a write would fail, where the database says so unasked.
    pub(super) read_only: Option<String>,
}

impl From<Missed> for Look {
    fn from(missed: Missed) -> Self {
        Self {
            missed,
            read_only: None,
        }
    }
}

/// Builds a state from a snapshot, row by row.
#[derive(Debug)]
pub(super) struct Loader {
    pub(super) state: State,
    pub(super) decoder: Decoder,
}

impl Loader {
    pub(super) fn accept(
        &mut self,
        kind: Kind,
        row: i64,
        key: &str,
        body: &str,
    ) -> Result<(), DatastoreError> {
        let object = self
            .decoder
            .decode(kind, key, body)
            .map_err(|because| unreadable(kind, key, because))?;
        self.state.put(row, object);
        Ok(())
    }
}

pub(super) fn unreadable(kind: Kind, key: &str, because: String) -> DatastoreError {
    DatastoreError::Unreadable {
        table: kind.table(),
        key: key.to_owned(),
        because,
    }
}

/// Turns what was missed into the writes that the registry applies.
pub(super) fn decode_all(found: Vec<Found>) -> Result<Vec<Write>, DatastoreError> {
    let mut decoder = Decoder::default();
    let decoded = found.into_iter().map(
        |Found {
             kind,
             key,
             revision,
             content,
         }| {
            let (row, object) = match content {
                None => (0, None),
                Some((row, body)) => {
                    let object = decoder
                        .decode(kind, &key, &body)
                        .map_err(|because| unreadable(kind, &key, because))?;
                    (row, Some(object))
                }
            };
            Ok(Write {
                kind,
                key,
                row,
                object,
                revision,
            })
        },
    );
    decoded.collect()
}

impl Backend {
    /// Fills the loader from one snapshot; its state ends at the snapshot's revision.
    pub(super) async fn load(&mut self, loader: Loader) -> Result<Loader, DatastoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.load(loader).await,
            Self::Postgres(postgres) => postgres.load(loader).await,
        }
    }

    /// Opens a write transaction by taking the next revision, which keeps every other writer out until the end.
    /// `known` is the revision in memory: what others committed since is returned.
    pub(super) async fn begin(&mut self, known: u64) -> Result<(u64, Missed), DatastoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.begin(known).await,
            Self::Postgres(postgres) => postgres.begin(known).await,
        }
    }

    /// Writes the rows and their changes and commits. After an error nothing is open.
    pub(super) async fn commit(
        &mut self,
        revision: u64,
        rows: Vec<Row>,
    ) -> Result<(), DatastoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.commit(revision, rows).await,
            Self::Postgres(postgres) => postgres.commit(revision, &rows).await,
        }
    }

    pub(super) async fn rollback(&mut self) {
        match self {
            Self::Sqlite(sqlite) => sqlite.rollback().await,
            Self::Postgres(postgres) => postgres.rollback().await,
        }
    }

    /// Leaves the database as a copy of its files should find it.
    pub(super) async fn close(&mut self) -> Result<(), DatastoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.close().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Looks for others' commits since `known`.
    pub(super) async fn look(&mut self, known: u64) -> Result<Look, DatastoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.missed(known).await.map(Look::from),
            Self::Postgres(postgres) => postgres.look(known).await,
        }
    }

    /// Writes what is there already, to find out whether the database takes writes again.
    pub(super) async fn probe(&mut self) -> Result<(), DatastoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.probe().await,
            Self::Postgres(postgres) => postgres.probe().await,
        }
    }

    /// Returns when there may be others' commits to look for.
    pub(super) async fn woken(&mut self, known: u64) {
        match self {
            // Nothing tells of another process's commits to the file: it is not meant to be shared, but a ban made by
            // one server must not pass another by.
            Self::Sqlite(_) => tokio::time::sleep(POLL).await,
            Self::Postgres(postgres) => postgres.woken(known).await,
        }
    }
}
