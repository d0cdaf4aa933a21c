//! SQLite: one connection on a thread of its own. WAL with synchronous=FULL, so what is acknowledged survives a
//! crash of the process and of the machine. The file belongs to one server: a lock beside it keeps others out.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, ToSql, params_from_iter};
use tokio::sync::oneshot;

use super::backend::{Backend, Column, Loader, POLL, Rows, Statement, Value};
use super::error::DatastoreError;
use super::schema::Dialect;
use crate::registry::Kind;

/// How long a write waits for another process to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that are kept prepared.
const PREPARED: usize = 64;
/// What SQLite appends to the database's path for its write-ahead log, and for the index of that.
const WAL: &str = "-wal";
const SHM: &str = "-shm";

static DIALECT: Dialect = Dialect {
    migrations: &[
        include_str!("../../migrations/0001.sqlite.sql"),
        include_str!("../../migrations/0002.sql"),
    ],
    begin_migration: "BEGIN IMMEDIATE",
    has_table: "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
    begin_snapshot: "BEGIN",
    begin_write: "BEGIN IMMEDIATE",
    look: "SELECT revision, token, 'off' FROM revision WHERE id = 1",
    take_revision: "UPDATE revision SET revision = revision + 1, previous = token, token = $1 \
                    WHERE id = 1 RETURNING revision, previous",
    // Reads are answered from the registry's memory.
    after_load: Some("PRAGMA shrink_memory"),
    similarity: None,
    upsert: |kind| {
        format!(
            "INSERT INTO {} (key, row_number, revision, body) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, body = excluded.body",
            kind.table()
        )
    },
    delete: |kind| format!("DELETE FROM {} WHERE key = $1", kind.table()),
    log: "INSERT INTO changes (revision, token, kind, key) VALUES ($1, $2, $3, $4)",
    commit: |_revision| "COMMIT".to_owned(),
};

pub(super) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Sqlite {
    jobs: mpsc::Sender<Job>,
    path: Arc<Path>,
    files: OpenFiles,
    /// Held for its lock.
    lock: Option<File>,
}

type FileId = (u64, u64);

/// Device and inode of what the connection has open.
#[derive(Debug, Clone, Copy)]
struct OpenFiles {
    /// None while a file that was replaced is not open yet.
    database: Option<FileId>,
    wal: Option<FileId>,
    shm: Option<FileId>,
}

impl Sqlite {
    /// Opens or creates the file, readable by its owner alone.
    pub(super) async fn open(path: PathBuf) -> Result<Self, DatastoreError> {
        let lock = lock(&path)?;
        let mut sqlite = Self::open_unlocked(path).await?;
        sqlite.lock = Some(lock);
        Ok(sqlite)
    }

    /// As [`open`](Self::open), beside others: what happens between servers is the same on every database, and here it
    /// is tested without one that must be started.
    pub(super) async fn open_unlocked(path: PathBuf) -> Result<Self, DatastoreError> {
        let (opened, answer) = oneshot::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let file = path.clone();
        let thread = thread::Builder::new()
            .name("datastore".to_owned())
            .spawn(move || {
                let mut connection = match connect(&file) {
                    Ok((connection, files)) => {
                        drop(opened.send(Ok(files)));
                        connection
                    }
                    Err(error) => return drop(opened.send(Err(error))),
                };
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            });
        thread.map_err(|error| DatastoreError::Open {
            at: path.display().to_string(),
            because: error.to_string(),
        })?;
        let files = answer.await.map_err(|_gone| DatastoreError::Closed)??;
        Ok(Self {
            jobs,
            path: Arc::from(path),
            files,
            lock: None,
        })
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, DatastoreError> + Send + 'static,
    ) -> Result<T, DatastoreError> {
        let (reply, answer) = oneshot::channel();
        // The writer waits for each answer, so an answer that nobody takes means that it is gone.
        let job: Job = Box::new(move |connection| drop(reply.send(work(connection))));
        self.jobs
            .send(job)
            .map_err(|_gone| DatastoreError::Closed)?;
        answer.await.map_err(|_gone| DatastoreError::Closed)?
    }

    /// Lets a test do something to the connection while a datastore uses it; a panic ends its thread.
    #[cfg(test)]
    pub(super) fn back_door(&self) -> mpsc::Sender<Job> {
        self.jobs.clone()
    }
}

impl Backend for Sqlite {
    fn dialect(&self) -> &'static Dialect {
        &DIALECT
    }

    fn at(&self) -> String {
        self.path.display().to_string()
    }

    async fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Rows>, DatastoreError> {
        let path = Arc::clone(&self.path);
        self.on_thread(move |connection| {
            let all = statements
                .into_iter()
                .map(|statement| run(connection, statement))
                .collect::<rusqlite::Result<_>>();
            all.map_err(|error| {
                abandon(connection);
                fault(&path, &error)
            })
        })
        .await
    }

    async fn scan(
        &mut self,
        kind: Kind,
        query: String,
        mut loader: Loader,
    ) -> Result<Loader, DatastoreError> {
        let path = Arc::clone(&self.path);
        self.on_thread(move |connection| {
            let fault = |error| fault(&path, &error);
            let mut statement = connection.prepare(&query).map_err(fault)?;
            let mut rows = statement.query([]).map_err(fault)?;
            while let Some(row) = rows.next().map_err(fault)? {
                let number = row.get(0).map_err(fault)?;
                let text = |column| -> Result<&str, DatastoreError> {
                    let value = row.get_ref(column).map_err(fault)?;
                    value.as_str().map_err(|error| fault(error.into()))
                };
                loader.accept(kind, number, text(1)?, text(2)?)?;
            }
            Ok(loader)
        })
        .await
    }

    async fn rollback(&mut self) {
        let ended = self.on_thread(|connection| {
            abandon(connection);
            Ok(())
        });
        // A thread that is gone has no transaction either.
        drop(ended.await);
    }

    /// A file that was moved away or replaced is still open here: what was written to it would be in no backup.
    async fn reconnect(&mut self) -> Result<bool, DatastoreError> {
        let current = identity(&self.path)?;
        if self.files.database == Some(current) {
            return Ok(false);
        }
        // The lock stays where the database alone was replaced: this process would refuse itself a second one.
        let lock = match &self.lock {
            Some(held) if !is_lock_of(held, &self.path) => Some(lock(&self.path)?),
            _ => None,
        };
        let stale = self.files;
        // Should the new file not open, the next call tries again, even if the old file is back by then.
        self.files.database = None;
        let path = Arc::clone(&self.path);
        self.files = self
            .on_thread(move |connection| {
                // Closes the old connection.
                *connection = Connection::open_in_memory().map_err(|error| fault(&path, &error))?;
                remove_stale(&path, stale)?;
                let (opened, files) = connect(&path)?;
                *connection = opened;
                Ok(files)
            })
            .await?;
        if let Some(lock) = lock {
            self.lock = Some(lock);
        }
        Ok(true)
    }

    /// Nothing tells of another process's commits to the file: it is not meant to be shared, but a ban made by one
    /// server must not pass another by.
    async fn woken(&mut self, _known: u64) {
        tokio::time::sleep(POLL).await;
    }

    /// Moves what is in the write-ahead log into the file itself, so that the file alone is a whole backup.
    async fn close(&mut self) -> Result<(), DatastoreError> {
        let path = Arc::clone(&self.path);
        self.on_thread(move |connection| {
            connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
                .map_err(|error| fault(&path, &error))
        })
        .await
    }
}

/// Takes the lock of a file for this process. It is kept on a file of its own: SQLite's locks on the database itself end
/// when any descriptor of it is closed.
fn lock(path: &Path) -> Result<File, DatastoreError> {
    let name = beside(path, ".lock");
    let open = |because: std::io::Error| DatastoreError::Open {
        at: name.display().to_string(),
        because: because.to_string(),
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&name)
        .map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DatastoreError::InUse {
            at: path.display().to_string(),
        }),
        Err(TryLockError::Error(error)) => Err(open(error)),
    }
}

/// The path of a file beside the database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether the held lock is the one that another process would ask for.
fn is_lock_of(held: &File, path: &Path) -> bool {
    let held = held.metadata().map(|file| (file.dev(), file.ino()));
    let named = std::fs::metadata(beside(path, ".lock")).map(|file| (file.dev(), file.ino()));
    matches!((held, named), (Ok(held), Ok(named)) if held == named)
}

/// Removes the write-ahead log of a file that is no longer there, and its index: SQLite leaves them behind when their
/// file has moved, and would replay the log over the file that took its place.
fn remove_stale(path: &Path, stale: OpenFiles) -> Result<(), DatastoreError> {
    for (suffix, stale) in [(WAL, stale.wal), (SHM, stale.shm)] {
        let file = beside(path, suffix);
        if stale.is_some() && identity(&file).ok() == stale {
            std::fs::remove_file(&file).map_err(|error| unavailable(&file, &error))?;
        }
    }
    Ok(())
}

fn identity(path: &Path) -> Result<FileId, DatastoreError> {
    let file = std::fs::metadata(path).map_err(|error| unavailable(path, &error))?;
    Ok((file.dev(), file.ino()))
}

fn unavailable(path: &Path, error: &std::io::Error) -> DatastoreError {
    DatastoreError::Unavailable {
        because: format!("{}: {error}", path.display()),
    }
}

fn connect(path: &Path) -> Result<(Connection, OpenFiles), DatastoreError> {
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
    let database = identity(path)?;
    let connection = Connection::open(path).map_err(fault)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(fault)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
             PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY;",
        )
        .map_err(fault)?;
    // The first read opens the write-ahead log.
    connection
        .query_row("SELECT count(*) FROM sqlite_master", [], |_row| Ok(()))
        .map_err(fault)?;
    let files = OpenFiles {
        database: Some(database),
        wal: identity(&beside(path, WAL)).ok(),
        shm: identity(&beside(path, SHM)).ok(),
    };
    Ok((connection, files))
}

/// Ends a transaction, if one is open.
fn abandon(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::warn!(%error, "could not roll back; the next write tries again");
    }
}

fn run(connection: &Connection, statement: Statement) -> rusqlite::Result<Rows> {
    match statement {
        Statement::Script(text) | Statement::LongScript(text) => {
            if text.starts_with("BEGIN") && !connection.is_autocommit() {
                // What an earlier failure to roll back left open.
                connection.execute_batch("ROLLBACK")?;
            }
            connection.execute_batch(&text)?;
            Ok(Rows::new())
        }
        Statement::Query(text, values) | Statement::Listing(text, values) => {
            let mut statement = connection.prepare_cached(&text)?;
            let mut rows = statement.query(params_from_iter(values.iter()))?;
            let mut all = Rows::new();
            while let Some(row) = rows.next()? {
                let columns = row.as_ref().column_count();
                let values = (0..columns).map(|column| row.get_ref(column).map(Value::from));
                all.push(values.collect::<rusqlite::Result<_>>()?);
            }
            Ok(all)
        }
        Statement::Bulk(text, columns) => {
            let mut statement = connection.prepare_cached(&text)?;
            let rows = columns.iter().map(Column::len).max().unwrap_or_default();
            for row in 0..rows {
                statement.execute(params_from_iter(
                    columns.iter().map(|column| column.at(row)),
                ))?;
            }
            Ok(Rows::new())
        }
    }
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Same(_) => 0,
            Self::Ints(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    fn at(&self, row: usize) -> Option<&dyn ToSql> {
        match self {
            Self::Same(value) => Some(value),
            Self::Ints(values) => values.get(row).map(|value| value as &dyn ToSql),
            Self::Texts(values) => values.get(row).map(|value| value as &dyn ToSql),
        }
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Integer(value) => Self::Int(value),
            ValueRef::Text(text) => Self::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => Self::Null,
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Self::Null => rusqlite::types::Null.to_sql(),
            Self::Int(value) => value.to_sql(),
            Self::Text(text) => text.to_sql(),
        }
    }
}

fn is_out_of_space(error: &rusqlite::Error) -> bool {
    error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

fn fault(path: &Path, error: &rusqlite::Error) -> DatastoreError {
    let at = path.display().to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DatastoreError::Locked { at },
        Some(ErrorCode::DiskFull) => DatastoreError::Full { at },
        // The shared memory beside the file is the first to find no space when a full disk is opened.
        Some(ErrorCode::SystemIoFailure) if is_out_of_space(error) => DatastoreError::Full { at },
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
            because: format!("{at}: {error}"),
        },
        _ => DatastoreError::Refused {
            because: error.to_string(),
        },
    }
}
