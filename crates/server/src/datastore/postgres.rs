//! PostgreSQL: one connection for the writer, one that listens for other servers' commits. A connection that breaks
//! is made anew when it is next needed, not more often than a growing pause allows.

mod connect;
mod listen;
mod options;
mod session;
#[cfg(test)]
mod tests;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::pin_mut;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row as SqlRow;

use super::backend::{Found, Loader, Look, Meta, Missed, POLL, PROBE};
use super::codec::{encode, likeness_digest};
use super::draft::Row;
use super::error::DatastoreError;
use super::schema::{
    self, CHANNEL, Dialect, FOREIGN_TABLES, KEPT_REVISIONS, PRUNE_EVERY, READABLE_FROM, VERSION,
};
use crate::registry::{Kind, Object};
use connect::Connector;
use listen::Listener;
use session::{Session, fault};

/// The first and the longest pause after a failed connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The revision, and whether the server takes writes: a standby does not, nor one whose administrator said so.
const LOOK: &str =
    "SELECT revision, current_setting('transaction_read_only') FROM revision WHERE id = 1";
/// Serialises the migrations of servers that start at once. "plastron" in ASCII, read as a number.
const MIGRATION_LOCK: i64 = 0x706c_6173_7472_6f6e;

/// Where the database is and how to prove who is who.
#[derive(Clone)]
pub struct PostgresConfig {
    /// A URL (`postgres://…`) or libpq's `key=value` form. `sslmode` (disable, prefer, require, verify-ca,
    /// verify-full), `sslrootcert`, `sslcert` and `sslkey` in it are understood; the fields below come first.
    pub url: String,
    pub root_ca_path: Option<PathBuf>,
    pub client_cert_path: Option<PathBuf>,
    pub client_key_path: Option<PathBuf>,
}

/// What would be said of a connection string, for the fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_connection_string(text: &str) -> Result<(), String> {
    let outcome = options::Options::parse(&PostgresConfig::new(text));
    outcome.map(drop).map_err(|error| error.to_string())
}

impl PostgresConfig {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            root_ca_path: None,
            client_cert_path: None,
            client_key_path: None,
        }
    }
}

impl std::fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("PostgresConfig")
            .field("root_ca_path", &self.root_ca_path)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Postgres {
    connector: Arc<Connector>,
    listener: Listener,
    session: Option<Session>,
    connecting: Option<JoinHandle<Result<Session, DatastoreError>>>,
    pause: Duration,
    not_before: Option<Instant>,
    /// The last attempt to connect failed, or a request got no answer: for this reason.
    away: Option<DatastoreError>,
}

impl Postgres {
    pub(super) async fn open(
        config: PostgresConfig,
        wanted: Meta,
    ) -> Result<(Self, Meta), DatastoreError> {
        let connector = Arc::new(Connector::new(&config)?);
        let session = connector.connect().await?;
        let meta = migrate(&session, &wanted, &connector).await?;
        let listener = Listener::start(Arc::clone(&connector));
        let postgres = Self {
            connector,
            listener,
            session: Some(session),
            connecting: None,
            pause: PAUSES.0,
            not_before: None,
            away: None,
        };
        Ok((postgres, meta))
    }

    /// The connection, or another if it broke.
    async fn session(&mut self) -> Result<&Session, DatastoreError> {
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = None;
            self.session = Some(self.connect().await?);
        }
        self.session.as_ref().ok_or(DatastoreError::Closed)
    }

    /// Connects. While the database is known to be away, the attempts go on in the background and every caller is
    /// refused at once: a write must not wait for what will not come.
    async fn connect(&mut self) -> Result<Session, DatastoreError> {
        let attempt = match &mut self.connecting {
            Some(attempt) => attempt,
            None => {
                if let Some(away) = &self.away
                    && self.not_before.is_some_and(|time| Instant::now() < time)
                {
                    return Err(away.clone());
                }
                let connector = Arc::clone(&self.connector);
                self.connecting
                    .insert(tokio::spawn(async move { connector.connect().await }))
            }
        };
        if let Some(away) = &self.away
            && !attempt.is_finished()
        {
            return Err(away.clone());
        }
        let connected = attempt.await.map_err(|_ended| DatastoreError::Unavailable {
            because: "the attempt to connect was cut short".to_owned(),
        });
        self.connecting = None;
        match connected.flatten() {
            Ok(session) => {
                tracing::debug!("connected to the database again");
                self.pause = PAUSES.0;
                self.away = None;
                Ok(session)
            }
            Err(error) => {
                self.not_before = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(PAUSES.1);
                self.away = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Ends whatever transaction is open, or gives the connection up.
    async fn recover(&mut self) {
        if let Some(session) = &self.session
            && session.run("ROLLBACK").await.is_err()
        {
            self.session = None;
        }
    }

    async fn recovered<T>(
        &mut self,
        result: Result<T, DatastoreError>,
    ) -> Result<T, DatastoreError> {
        match &result {
            Ok(_) => {}
            Err(error) if self.session.as_ref().is_none_or(Session::is_silent) => {
                // It does not answer: nor would it answer a ROLLBACK.
                self.session = None;
                self.away = Some(error.clone());
            }
            Err(_) => self.recover().await,
        }
        result
    }

    pub(super) async fn load(&mut self, loader: Loader) -> Result<Loader, DatastoreError> {
        let loaded = load(self.session().await?, loader).await;
        self.recovered(loaded).await
    }

    pub(super) async fn begin(&mut self, known: u64) -> Result<(u64, Missed), DatastoreError> {
        let begun = begin(self.session().await?, known).await;
        self.recovered(begun).await
    }

    pub(super) async fn commit(
        &mut self,
        revision: u64,
        rows: &[Row],
    ) -> Result<(), DatastoreError> {
        // Not `session()`: a transaction does not outlive its connection.
        let Some(session) = &self.session else {
            return Err(DatastoreError::Unavailable {
                because: "the connection broke".to_owned(),
            });
        };
        let committed = commit(session, revision, rows).await;
        self.recovered(committed).await
    }

    pub(super) async fn rollback(&mut self) {
        self.recover().await;
    }

    pub(super) async fn look(&mut self, known: u64) -> Result<Look, DatastoreError> {
        let session = self.session().await?;
        let looked = look(session, known).await;
        self.recovered(looked).await
    }

    pub(super) async fn probe(&mut self) -> Result<(), DatastoreError> {
        let probed = self.session().await?.run(PROBE).await;
        self.recovered(probed).await
    }

    pub(super) async fn woken(&mut self, known: u64) {
        drop(timeout(POLL, self.listener.heard_beyond(known)).await);
    }
}

fn unsigned(row: &SqlRow, column: usize) -> Result<u64, DatastoreError> {
    let value: i64 = row.try_get(column).map_err(|error| fault(&error))?;
    Ok(u64::try_from(value).unwrap_or_default())
}

async fn look(session: &Session, known: u64) -> Result<Look, DatastoreError> {
    // One cheap look outside any transaction: mostly there is nothing.
    let row = session.one(LOOK, &[]).await?;
    let missed = if unsigned(&row, 0)? == known {
        Missed::Nothing
    } else {
        missed_in_snapshot(session, known).await?
    };
    let read_only: String = row.try_get(1).map_err(|error| fault(&error))?;
    Ok(Look {
        missed,
        read_only: (read_only == "on").then(|| "transactions are read-only there".to_owned()),
    })
}

async fn begin(session: &Session, known: u64) -> Result<(u64, Missed), DatastoreError> {
    session.run("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let statement = "UPDATE revision SET revision = revision + 1 WHERE id = 1 RETURNING revision";
    let row = session.one(statement, &[]).await?;
    let revision = unsigned(&row, 0)?;
    let missed = missed(session, known, revision.saturating_sub(1)).await?;
    Ok((revision, missed))
}

async fn missed_in_snapshot(session: &Session, known: u64) -> Result<Missed, DatastoreError> {
    session
        .run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let row = session
        .one("SELECT revision FROM revision WHERE id = 1", &[])
        .await?;
    let missed = missed(session, known, unsigned(&row, 0)?).await?;
    session.run("COMMIT").await?;
    Ok(missed)
}

/// What was committed after `known` up to `current`, which must be what this transaction sees.
async fn missed(session: &Session, known: u64, current: u64) -> Result<Missed, DatastoreError> {
    if known == current {
        return Ok(Missed::Nothing);
    }
    let oldest = session
        .one("SELECT min(revision) FROM changes", &[])
        .await?;
    let oldest: Option<i64> = oldest.try_get(0).map_err(|error| fault(&error))?;
    let reaches_back =
        oldest.is_some_and(|oldest| u64::try_from(oldest).is_ok_and(|oldest| oldest <= known + 1));
    if known > current || !reaches_back {
        return Ok(Missed::Everything);
    }
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let table = kind.table();
        let statement = format!(
            "SELECT c.key, c.revision, t.row_number, t.body FROM \
             (SELECT key, max(revision) AS revision FROM changes WHERE revision > $1 AND kind = '{table}' GROUP BY key) c \
             LEFT JOIN {table} t ON t.key = c.key"
        );
        let known = i64::try_from(known).unwrap_or(i64::MAX);
        for row in session.all(&statement, &[&known]).await? {
            let key: &str = row.try_get(0).map_err(|error| fault(&error))?;
            let number: Option<i64> = row.try_get(2).map_err(|error| fault(&error))?;
            let body: Option<String> = row.try_get(3).map_err(|error| fault(&error))?;
            found.push(Found {
                kind,
                key: Arc::from(key),
                revision: unsigned(&row, 1)?,
                content: number.zip(body),
            });
        }
    }
    found.sort_by_key(|found| found.revision);
    Ok(Missed::Changes {
        revision: current,
        found,
    })
}

async fn commit(session: &Session, revision: u64, rows: &[Row]) -> Result<(), DatastoreError> {
    let revision = i64::try_from(revision).unwrap_or(i64::MAX);
    let moving: Vec<&str> = rows
        .iter()
        .filter(|row| row.moves)
        .map(|row| &*row.key)
        .collect();
    if !moving.is_empty() {
        session
            .execute(schema::MAKE_ROOM_POSTGRES, &[&moving])
            .await?;
    }
    for kind in Kind::ALL {
        let table = kind.table();
        let gone: Vec<&str> = rows
            .iter()
            .filter(|row| row.kind == kind && row.object.is_none())
            .map(|row| &*row.key)
            .collect();
        if !gone.is_empty() {
            let statement = format!("DELETE FROM {table} WHERE key = ANY($1::text[])");
            session.execute(&statement, &[&gone]).await?;
        }
        let kept: Vec<&Row> = rows
            .iter()
            .filter(|row| row.kind == kind && row.object.is_some())
            .collect();
        if kept.is_empty() {
            continue;
        }
        let keys: Vec<&str> = kept.iter().map(|row| &*row.key).collect();
        let numbers: Vec<i64> = kept.iter().map(|row| row.row).collect();
        let revisions = vec![revision; kept.len()];
        let bodies: Vec<String> = kept
            .iter()
            .filter_map(|row| row.object.as_ref())
            .map(encode)
            .collect();
        let statement = schema::postgres_upsert(kind);
        if kind == Kind::Entry {
            let entries = kept.iter().filter_map(|row| match &row.object {
                Some(Object::Entry(entry)) => Some(likeness_digest(entry)),
                _ => None,
            });
            let likenesses: Vec<String> = entries.collect();
            session
                .execute(
                    &statement,
                    &[&keys, &numbers, &revisions, &bodies, &likenesses],
                )
                .await?;
        } else {
            session
                .execute(&statement, &[&keys, &numbers, &revisions, &bodies])
                .await?;
        }
    }
    let kinds: Vec<&str> = rows.iter().map(|row| row.kind.table()).collect();
    let keys: Vec<&str> = rows.iter().map(|row| &*row.key).collect();
    let log = "INSERT INTO changes (revision, kind, key) SELECT $1, * FROM unnest($2::text[], $3::text[])";
    session.execute(log, &[&revision, &kinds, &keys]).await?;
    if revision.unsigned_abs().is_multiple_of(PRUNE_EVERY) {
        let last = revision.saturating_sub_unsigned(KEPT_REVISIONS);
        session
            .execute("DELETE FROM changes WHERE revision <= $1", &[&last])
            .await?;
    }
    session
        .commit(&format!("NOTIFY {CHANNEL}, '{revision}'; COMMIT"))
        .await
}

async fn load(session: &Session, mut loader: Loader) -> Result<Loader, DatastoreError> {
    let snapshot =
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0";
    session.run(snapshot).await?;
    let row = session
        .one("SELECT revision FROM revision WHERE id = 1", &[])
        .await?;
    let revision = unsigned(&row, 0)?;
    for kind in Kind::ALL {
        if kind == Kind::Entry {
            let count = session.one("SELECT count(*) FROM entries", &[]).await?;
            loader
                .state
                .entries
                .reserve(usize::try_from(unsigned(&count, 0)?).unwrap_or_default());
        }
        let statement = format!(
            "SELECT row_number, key, body FROM {} ORDER BY row_number",
            kind.table()
        );
        let rows = session.stream(&statement).await?;
        pin_mut!(rows);
        while let Some(row) = session.next(rows.as_mut()).await? {
            let read = |error| fault(&error);
            let (number, key, body) = (
                row.try_get(0).map_err(read)?,
                row.try_get(1).map_err(read)?,
                row.try_get(2).map_err(read)?,
            );
            loader.accept(kind, number, key, body)?;
        }
    }
    session.run("COMMIT").await?;
    loader.state.starts_at(revision);
    Ok(loader)
}

async fn migrate(
    session: &Session,
    wanted: &Meta,
    connector: &Connector,
) -> Result<Meta, DatastoreError> {
    let lock = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'; \
         SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
    );
    session.run_long(&lock).await?;
    let has_table = async |name: &str| {
        let row = session
            .one("SELECT to_regclass($1::text) IS NOT NULL", &[&name])
            .await?;
        row.try_get::<_, bool>(0).map_err(|error| fault(&error))
    };
    let value = async |name: &str| {
        let row = session
            .at_most_one("SELECT value FROM meta WHERE name = $1", &[&name])
            .await?;
        row.map(|row| row.try_get::<_, String>(0))
            .transpose()
            .map_err(|error| fault(&error))
    };
    let mut version = 0;
    if has_table("meta").await? {
        let number =
            |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(i64::MAX);
        version = number(value("schema_version").await?);
        if number(value("readable_from").await?) > VERSION {
            return Err(DatastoreError::NewerSchema {
                stored: version,
                supported: VERSION,
            });
        }
    } else {
        for table in FOREIGN_TABLES {
            if has_table(table).await? {
                return Err(DatastoreError::NotOurs {
                    at: connector.at(),
                    table: table.to_owned(),
                });
            }
        }
    }
    if version < VERSION {
        while let Some(statements) = schema::migration(Dialect::Postgres, version) {
            session.run_long(statements).await?;
            version += 1;
        }
        let set = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        let keep = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        let (version, readable) = (VERSION.to_string(), READABLE_FROM.to_string());
        session.execute(set, &[&"schema_version", &version]).await?;
        session.execute(set, &[&"readable_from", &readable]).await?;
        session
            .execute(keep, &[&"trust_domain", &wanted.trust_domain])
            .await?;
        session.execute(keep, &[&"epoch", &wanted.epoch]).await?;
    }
    let meta = Meta {
        trust_domain: value("trust_domain").await?.unwrap_or_default(),
        epoch: value("epoch").await?.unwrap_or_default(),
    };
    session.run("COMMIT").await?;
    Ok(meta)
}
