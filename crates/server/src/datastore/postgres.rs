//! PostgreSQL: one connection for the writer, one that listens for other servers' commits. A connection that breaks
//! is re-created when it is next needed, not more often than a growing pause allows.

mod connect;
mod conninfo;
mod environment;
mod hosts;
mod listen;
mod options;
#[cfg(test)]
mod options_tests;
mod passfile;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod tls_options;
mod unsupported;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::pin_mut;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row as SqlRow;
use tokio_postgres::types::{ToSql, Type};

use super::backend::{Backend, Column, Loader, POLL, Rows, Statement, Value};
use super::error::{DatastoreError, SettingsError};
use super::schema::{Dialect, SimilarityColumn};
use crate::registry::Kind;
use connect::Connector;
use listen::Listener;
use options::Options;
use session::{Session, fault};

pub use environment::Environment;

static DIALECT: Dialect = Dialect {
    migrations: &[
        include_str!("../../migrations/0001.postgres.sql"),
        include_str!("../../migrations/0002.sql"),
    ],
    // The lock serialises the migrations of servers that start at once: "plastron" in ASCII, read as a number.
    begin_migration: "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; \
                      SET LOCAL lock_timeout = '60s'; SELECT pg_advisory_xact_lock(8100956978235469678)",
    has_table: "SELECT (to_regclass($1::text) IS NOT NULL)::int",
    begin_snapshot: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0",
    // Said aloud: with another default for the role, every write that meets another server's would fail.
    begin_write: "BEGIN ISOLATION LEVEL READ COMMITTED",
    look: "SELECT revision, token, CASE WHEN pg_is_in_recovery() THEN 'on' \
           ELSE current_setting('transaction_read_only') END FROM revision WHERE id = 1",
    take_revision: "UPDATE revision SET revision = revision + 1, previous = token, token = $1 \
                    WHERE id = 1 RETURNING revision, previous",
    after_load: None,
    similarity: Some(SimilarityColumn {
        make_room: "UPDATE entries SET likeness = 'moving ' || key WHERE key = ANY($1::text[])",
    }),
    upsert,
    delete: |kind| format!("DELETE FROM {} WHERE key = ANY($1::text[])", kind.table()),
    log: "INSERT INTO changes (revision, token, kind, key) \
          SELECT $1::bigint, $2::bigint, * FROM unnest($3::text[], $4::text[])",
    commit: |revision| format!("NOTIFY {CHANNEL}, '{revision}'; COMMIT"),
};

/// The channel on which the other servers are notified of a new revision.
const CHANNEL: &str = "plastron_revision";

fn upsert(kind: Kind) -> String {
    let (column, value, update) = match kind {
        Kind::Entry => (
            ", likeness",
            ", $5::text[]",
            ", likeness = excluded.likeness",
        ),
        _ => ("", "", ""),
    };
    format!(
        "INSERT INTO {} (key, row_number, revision, body{column}) \
         SELECT n.key, n.row_number, $3::bigint, n.body{} \
         FROM unnest($1::text[], $2::bigint[], $4::text[]{value}) AS n(key, row_number, body{column}) \
         ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, body = excluded.body{update}",
        kind.table(),
        column.replace(' ', " n."),
    )
}

/// The first and the longest pause after a failed connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Where the database is and how to prove who is who.
#[derive(Clone)]
pub struct PostgresConfig {
    /// A URL (`postgres://…`) or `key=value` pairs, with libpq's keys as SPIRE's driver takes them. The paths below win
    /// over `sslrootcert`, `sslcert` and `sslkey` in it.
    pub url: String,
    pub root_ca_path: Option<PathBuf>,
    pub client_cert_path: Option<PathBuf>,
    pub client_key_path: Option<PathBuf>,
    /// Says what the connection string does not.
    pub environment: Environment,
}

/// What would be said of a connection string, for the fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_connection_string(text: &str) -> Result<(), String> {
    let outcome = PostgresConfig::new(text).check();
    outcome
        .map(drop)
        .map_err(|error| format!("{error} {}", error.hint))
}

impl PostgresConfig {
    /// Without an environment.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            root_ca_path: None,
            client_cert_path: None,
            client_key_path: None,
            environment: Environment::default(),
        }
    }

    /// Reads the settings without connecting. Gives what an operator should know of them.
    ///
    /// # Errors
    /// When a setting cannot be read or is not supported.
    pub fn check(&self) -> Result<Vec<String>, SettingsError> {
        Ok(Options::parse(self)?.notices())
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
    /// A transaction is open on the session.
    in_transaction: bool,
    connecting: Option<JoinHandle<Result<Session, DatastoreError>>>,
    pause: Duration,
    not_before: Option<Instant>,
    /// The last attempt to connect failed, or a request got no answer: for this reason.
    away: Option<DatastoreError>,
}

impl Postgres {
    pub(super) async fn open(config: PostgresConfig) -> Result<Self, DatastoreError> {
        let connector = Arc::new(Connector::new(&config).await?);
        let session = connector.connect().await?;
        let listener = Listener::start(Arc::clone(&connector));
        Ok(Self {
            connector,
            listener,
            session: Some(session),
            in_transaction: false,
            connecting: None,
            pause: PAUSES.0,
            not_before: None,
            away: None,
        })
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
}

impl Backend for Postgres {
    fn dialect(&self) -> &'static Dialect {
        &DIALECT
    }

    fn at(&self) -> String {
        self.connector.at()
    }

    async fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Rows>, DatastoreError> {
        let opens = matches!(statements.first(), Some(Statement::Script(text) | Statement::LongScript(text)) if text.starts_with("BEGIN"));
        let session = if self.in_transaction && !opens {
            // A transaction does not outlive its connection.
            self.session.as_ref().ok_or(DatastoreError::Unavailable {
                because: "the connection broke".to_owned(),
            })?
        } else {
            self.session().await?
        };
        let mut all = Vec::with_capacity(statements.len());
        let mut failed = None;
        for statement in &statements {
            match run(session, statement).await {
                Ok(rows) => all.push(rows),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = failed {
            self.in_transaction = false;
            return self.recovered(Err(error)).await;
        }
        let ends =
            matches!(statements.last(), Some(Statement::Script(text)) if text.ends_with("COMMIT"));
        self.in_transaction = (self.in_transaction || opens) && !ends;
        Ok(all)
    }

    async fn scan(
        &mut self,
        kind: Kind,
        query: String,
        loader: Loader,
    ) -> Result<Loader, DatastoreError> {
        let session = self.session.as_ref().ok_or(DatastoreError::Unavailable {
            because: "the connection broke".to_owned(),
        })?;
        let scanned = scan(session, kind, &query, loader).await;
        self.recovered(scanned).await
    }

    async fn rollback(&mut self) {
        self.in_transaction = false;
        self.recover().await;
    }

    async fn reconnect(&mut self) -> Result<bool, DatastoreError> {
        self.session().await.map(|_| false)
    }

    async fn woken(&mut self, known: u64) {
        // The end of the wait is what is wanted, whatever brought it.
        drop(timeout(POLL, self.listener.heard_other_than(known)).await);
    }

    async fn close(&mut self) -> Result<(), DatastoreError> {
        Ok(())
    }
}

async fn run(session: &Session, statement: &Statement) -> Result<Rows, DatastoreError> {
    match statement {
        Statement::Script(text) if text.ends_with("COMMIT") => session.commit(text).await?,
        Statement::Script(text) => session.run(text).await?,
        Statement::LongScript(text) => session.run_long(text).await?,
        Statement::Query(text, values) => {
            let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
            let rows = session.few(text, &parameters).await?;
            return rows.iter().map(values_of).collect();
        }
        Statement::Listing(text, values) => {
            let parameters: Vec<_> = values.iter().map(Value::parameter).collect();
            let rows = session.many(text, &parameters).await?;
            return rows.iter().map(values_of).collect();
        }
        Statement::Bulk(text, columns) => {
            let parameters: Vec<_> = columns.iter().map(Column::parameter).collect();
            session.execute(text, &parameters).await?;
        }
    }
    Ok(Rows::new())
}

impl Value {
    fn parameter(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Null => &None::<i64>,
            Self::Int(value) => value,
            Self::Text(text) => text,
        }
    }
}

impl Column {
    fn parameter(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Same(value) => value,
            Self::Ints(values) => values,
            Self::Texts(values) => values,
        }
    }
}

fn values_of(row: &SqlRow) -> Result<Vec<Value>, DatastoreError> {
    let values = row.columns().iter().enumerate().map(|(place, column)| {
        let read = |error| fault(&error);
        Ok(match *column.type_() {
            Type::INT8 => row
                .try_get::<_, Option<i64>>(place)
                .map_err(read)?
                .map(Value::Int),
            Type::INT4 => {
                let value = row.try_get::<_, Option<i32>>(place).map_err(read)?;
                value.map(|value| Value::Int(value.into()))
            }
            _ => row
                .try_get::<_, Option<String>>(place)
                .map_err(read)?
                .map(Value::Text),
        }
        .unwrap_or(Value::Null))
    });
    values.collect()
}

async fn scan(
    session: &Session,
    kind: Kind,
    query: &str,
    mut loader: Loader,
) -> Result<Loader, DatastoreError> {
    let rows = session.stream(query).await?;
    pin_mut!(rows);
    while let Some(row) = session.next(rows.as_mut()).await? {
        let read = |error| fault(&error);
        let number = row.try_get(0).map_err(read)?;
        let key = row.try_get(1).map_err(read)?;
        let body = row.try_get(2).map_err(read)?;
        loader.accept(kind, number, key, body)?;
    }
    Ok(loader)
}
