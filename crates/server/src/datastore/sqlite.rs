//! SQLite: one connection on a thread of its own. WAL with synchronous=FULL, so what is acknowledged survives a
//! crash of the process and of the machine.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use tokio::sync::oneshot;

use super::backend::{Found, Loader, Meta, Missed, PROBE};
use super::codec::encode;
use super::draft::Row;
use super::error::DatastoreError;
use super::schema::{
    self, Dialect, FOREIGN_TABLES, KEPT_REVISIONS, PRUNE_EVERY, READABLE_FROM, VERSION,
};
use crate::registry::Kind;

/// How long a write waits for another process to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Sqlite {
    jobs: mpsc::Sender<Job>,
    path: Arc<Path>,
}

impl Sqlite {
    /// Opens or creates the file, readable by its owner alone, and brings its schema up to date.
    pub(super) async fn open(path: PathBuf, wanted: Meta) -> Result<(Self, Meta), DatastoreError> {
        let (opened, answer) = oneshot::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let file = path.clone();
        let thread = thread::Builder::new()
            .name("datastore".to_owned())
            .spawn(move || {
                let mut connection = match prepare(&file, &wanted) {
                    Ok((connection, meta)) => {
                        drop(opened.send(Ok(meta)));
                        connection
                    }
                    Err(error) => return drop(opened.send(Err(error))),
                };
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            });
        let at = path.display().to_string();
        thread.map_err(|error| DatastoreError::Open {
            at,
            because: error.to_string(),
        })?;
        let meta = answer.await.map_err(|_gone| DatastoreError::Closed)??;
        Ok((
            Self {
                jobs,
                path: Arc::from(path),
            },
            meta,
        ))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, DatastoreError> + Send + 'static,
    ) -> Result<T, DatastoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(reply.send(work(connection))));
        self.jobs
            .send(job)
            .map_err(|_gone| DatastoreError::Closed)?;
        answer.await.map_err(|_gone| DatastoreError::Closed)?
    }

    pub(super) async fn load(&self, mut loader: Loader) -> Result<Loader, DatastoreError> {
        let path = Arc::clone(&self.path);
        self.run(move |connection| {
            let fault = |error| fault(&path, &error);
            let snapshot = connection.transaction().map_err(fault)?;
            let revision = read_revision(&snapshot).map_err(fault)?;
            for kind in Kind::ALL {
                let table = kind.table();
                if kind == Kind::Entry {
                    let count: i64 = snapshot
                        .query_row("SELECT count(*) FROM entries", [], |row| row.get(0))
                        .map_err(fault)?;
                    loader
                        .state
                        .entries
                        .reserve(usize::try_from(count).unwrap_or_default());
                }
                let mut statement = snapshot
                    .prepare(&format!(
                        "SELECT row_number, key, body FROM {table} ORDER BY row_number"
                    ))
                    .map_err(fault)?;
                let mut rows = statement.query([]).map_err(fault)?;
                while let Some(row) = rows.next().map_err(fault)? {
                    let number = row.get(0).map_err(fault)?;
                    let key = row.get_ref(1).map_err(fault)?.as_str().unwrap_or_default();
                    let body = row.get_ref(2).map_err(fault)?.as_str().unwrap_or_default();
                    loader.accept(kind, number, key, body)?;
                }
            }
            drop(snapshot);
            // All was read once and won't be read again: reads are answered from our own memory.
            connection
                .execute_batch("PRAGMA shrink_memory")
                .map_err(fault)?;
            loader.state.starts_at(revision);
            Ok(loader)
        })
        .await
    }

    pub(super) async fn begin(&self, known: u64) -> Result<(u64, Missed), DatastoreError> {
        let path = Arc::clone(&self.path);
        self.run(move |connection| {
            let fault = |error| fault(&path, &error);
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK").map_err(fault)?;
            }
            connection.execute_batch("BEGIN IMMEDIATE").map_err(fault)?;
            let begun = take_revision(connection).and_then(|revision| {
                Ok((
                    revision,
                    missed(connection, known, revision.saturating_sub(1))?,
                ))
            });
            begun.map_err(|error| {
                abandon(connection);
                fault(error)
            })
        })
        .await
    }

    /// Moves what is in the write-ahead log into the file itself, so that the file alone is a whole backup.
    pub(super) async fn close(&self) -> Result<(), DatastoreError> {
        let path = Arc::clone(&self.path);
        self.run(move |connection| {
            connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
                .map_err(|error| fault(&path, &error))
        })
        .await
    }

    pub(super) async fn commit(&self, revision: u64, rows: Vec<Row>) -> Result<(), DatastoreError> {
        let path = Arc::clone(&self.path);
        self.run(move |connection| {
            write(connection, revision, &rows).map_err(|error| {
                abandon(connection);
                fault(&path, &error)
            })
        })
        .await
    }

    pub(super) async fn rollback(&self) {
        // A thread that is gone has no transaction either.
        let ended = self.run(|connection| {
            abandon(connection);
            Ok(())
        });
        drop(ended.await);
    }

    pub(super) async fn missed(&self, known: u64) -> Result<Missed, DatastoreError> {
        let path = Arc::clone(&self.path);
        self.run(move |connection| {
            let fault = |error| fault(&path, &error);
            // One cheap look outside any transaction: mostly there is nothing.
            if read_revision(connection).map_err(fault)? == known {
                return Ok(Missed::Nothing);
            }
            let snapshot = connection.transaction().map_err(fault)?;
            let revision = read_revision(&snapshot).map_err(fault)?;
            missed(&snapshot, known, revision).map_err(fault)
        })
        .await
    }

    pub(super) async fn probe(&self) -> Result<(), DatastoreError> {
        let path = Arc::clone(&self.path);
        self.run(move |connection| {
            connection
                .execute_batch(PROBE)
                .map_err(|error| fault(&path, &error))
        })
        .await
    }

    /// Lets a test do something to the connection while a datastore uses it; a panic ends its thread.
    #[cfg(test)]
    pub(super) fn back_door(&self) -> impl Fn(fn(&mut Connection)) + use<> {
        let jobs = self.jobs.clone();
        move |job| jobs.send(Box::new(job)).unwrap()
    }

    /// Lets a test narrow what the database may do.
    #[cfg(test)]
    pub(super) async fn tell(&self, statements: &'static str) {
        let told = self.run(move |connection| {
            connection
                .execute_batch(statements)
                .map_err(|error| DatastoreError::Refused {
                    because: error.to_string(),
                })
        });
        told.await.unwrap();
    }
}

/// Ends a transaction, if one is open.
fn abandon(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::warn!(%error, "could not roll back; the next write tries again");
    }
}

fn prepare(path: &Path, wanted: &Meta) -> Result<(Connection, Meta), DatastoreError> {
    let at = || path.display().to_string();
    // SQLite would create it readable by all.
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| DatastoreError::Open {
            at: at(),
            because: error.to_string(),
        })?;
    let fault = |error| match fault(path, &error) {
        DatastoreError::Refused { because } => DatastoreError::Open { at: at(), because },
        other => other,
    };
    let mut connection = Connection::open(path).map_err(fault)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(fault)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
             PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY;",
        )
        .map_err(fault)?;
    let meta = migrate(&mut connection, path, wanted, &fault)?;
    Ok((connection, meta))
}

fn migrate(
    connection: &mut Connection,
    path: &Path,
    wanted: &Meta,
    fault: &dyn Fn(rusqlite::Error) -> DatastoreError,
) -> Result<Meta, DatastoreError> {
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(fault)?;
    let has_table = |name: &str| {
        transaction
            .query_row(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1",
                [name],
                |_| Ok(()),
            )
            .optional()
            .map(|found| found.is_some())
            .map_err(fault)
    };
    let value = |name: &str| {
        transaction
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
                row.get::<_, String>(0)
            })
            .optional()
            .map_err(fault)
    };
    let mut version = 0;
    if has_table("meta")? {
        let number =
            |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(i64::MAX);
        version = number(value("schema_version")?);
        if number(value("readable_from")?) > VERSION {
            return Err(DatastoreError::NewerSchema {
                stored: version,
                supported: VERSION,
            });
        }
    } else {
        for table in FOREIGN_TABLES {
            if has_table(table)? {
                return Err(DatastoreError::NotOurs {
                    at: path.display().to_string(),
                    table: table.to_owned(),
                });
            }
        }
    }
    if version < VERSION {
        while let Some(statements) = schema::migration(Dialect::Sqlite, version) {
            transaction.execute_batch(statements).map_err(fault)?;
            version += 1;
        }
        let set = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        let keep = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
        transaction
            .execute(set, ["schema_version", &VERSION.to_string()])
            .map_err(fault)?;
        transaction
            .execute(set, ["readable_from", &READABLE_FROM.to_string()])
            .map_err(fault)?;
        transaction
            .execute(keep, ["trust_domain", &wanted.trust_domain])
            .map_err(fault)?;
        transaction
            .execute(keep, ["epoch", &wanted.epoch])
            .map_err(fault)?;
    }
    let meta = Meta {
        trust_domain: value("trust_domain")?.unwrap_or_default(),
        epoch: value("epoch")?.unwrap_or_default(),
    };
    transaction.commit().map_err(fault)?;
    Ok(meta)
}

fn read_revision(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT revision FROM revision WHERE id = 1")?
        .query_row([], |row| row.get(0))
}

fn take_revision(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "UPDATE revision SET revision = revision + 1 WHERE id = 1 RETURNING revision",
        )?
        .query_row([], |row| row.get(0))
}

/// What was committed after `known` up to `current`.
fn missed(connection: &Connection, known: u64, current: u64) -> rusqlite::Result<Missed> {
    if known == current {
        return Ok(Missed::Nothing);
    }
    let oldest: Option<u64> = connection
        .prepare_cached("SELECT min(revision) FROM changes")?
        .query_row([], |row| row.get(0))?;
    if known > current || oldest.is_none_or(|oldest| oldest > known + 1) {
        return Ok(Missed::Everything);
    }
    let mut statement = connection.prepare_cached(
        "SELECT max(revision), kind, key FROM changes WHERE revision > ?1 AND revision <= ?2 GROUP BY kind, key ORDER BY 1",
    )?;
    let mut rows = statement.query([known, current])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(kind) = Kind::from_table(row.get_ref(1)?.as_str().unwrap_or_default()) else {
            continue;
        };
        let key: String = row.get(2)?;
        let content = connection
            .prepare_cached(&format!(
                "SELECT row_number, body FROM {} WHERE key = ?1",
                kind.table()
            ))?
            .query_row([&key], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        found.push(Found {
            kind,
            key: Arc::from(key),
            revision: row.get(0)?,
            content,
        });
    }
    Ok(Missed::Changes {
        revision: current,
        found,
    })
}

fn write(connection: &Connection, revision: u64, rows: &[Row]) -> rusqlite::Result<()> {
    let revision = i64::try_from(revision).unwrap_or(i64::MAX);
    // Deletions first: a new object may take a deleted one's unique value.
    for row in rows.iter().filter(|row| row.object.is_none()) {
        connection
            .prepare_cached(&format!("DELETE FROM {} WHERE key = ?1", row.kind.table()))?
            .execute([&*row.key])?;
    }
    for row in rows {
        let Some(object) = &row.object else { continue };
        let mut statement = connection.prepare_cached(&schema::sqlite_upsert(row.kind))?;
        statement.execute(params![&*row.key, row.row, revision, encode(object)])?;
    }
    let mut statement = connection
        .prepare_cached("INSERT INTO changes (revision, kind, key) VALUES (?1, ?2, ?3)")?;
    for row in rows {
        statement.execute(params![revision, row.kind.table(), &*row.key])?;
    }
    if revision.unsigned_abs() % PRUNE_EVERY == 0 {
        let last = revision.saturating_sub_unsigned(KEPT_REVISIONS);
        connection.execute("DELETE FROM changes WHERE revision <= ?1", [last])?;
    }
    connection.execute_batch("COMMIT")
}

fn fault(path: &Path, error: &rusqlite::Error) -> DatastoreError {
    let at = path.display().to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DatastoreError::Locked { at },
        Some(ErrorCode::DiskFull) => DatastoreError::Full { at },
        Some(
            ErrorCode::NotADatabase
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied,
        ) => DatastoreError::Open {
            at,
            because: error.to_string(),
        },
        Some(ErrorCode::ReadOnly) => DatastoreError::ReadOnly {
            because: format!("{at}: {error}"),
        },
        Some(ErrorCode::SystemIoFailure) => DatastoreError::Unavailable {
            because: error.to_string(),
        },
        _ => DatastoreError::Refused {
            because: error.to_string(),
        },
    }
}
