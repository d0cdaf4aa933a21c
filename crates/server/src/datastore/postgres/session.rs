//! One connection in use: every request has a time limit, every statement is prepared once.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, RowStream, Statement};

use crate::datastore::error::DatastoreError;

/// The longest that a question of one row may take before its connection is given up. The database's own limits
/// (`SETUP`) are a little shorter where they can be.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for statements that write a whole group, and for the next row of a long answer.
const WORK_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for a migration, which may wait for another server's.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

pub(super) struct Session {
    client: Client,
    statements: Mutex<HashMap<String, Statement>>,
    /// A request got no answer in time.
    silent: AtomicBool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("closed", &self.client.is_closed())
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            statements: Mutex::default(),
            silent: AtomicBool::new(false),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether a request has had no answer, so that another would have none either.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Runs short statements without parameters.
    pub(super) async fn run(&self, statements: &str) -> Result<(), DatastoreError> {
        self.timed(QUESTION_TIMEOUT, self.client.batch_execute(statements))
            .await
    }

    /// The same for statements that may take minutes.
    pub(super) async fn run_long(&self, statements: &str) -> Result<(), DatastoreError> {
        self.timed(MIGRATION_TIMEOUT, self.client.batch_execute(statements))
            .await
    }

    /// Runs the end of a write.
    pub(super) async fn commit(&self, statements: &str) -> Result<(), DatastoreError> {
        self.timed(WORK_TIMEOUT, self.client.batch_execute(statements))
            .await
    }

    pub(super) async fn execute(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<u64, DatastoreError> {
        let statement = self.statement(text).await?;
        self.timed(WORK_TIMEOUT, self.client.execute(&statement, parameters))
            .await
    }

    pub(super) async fn few(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DatastoreError> {
        let statement = self.statement(text).await?;
        self.timed(QUESTION_TIMEOUT, self.client.query(&statement, parameters))
            .await
    }

    pub(super) async fn many(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DatastoreError> {
        let statement = self.statement(text).await?;
        self.timed(WORK_TIMEOUT, self.client.query(&statement, parameters))
            .await
    }

    /// Rows as they come, for what is too much at once; see [`next`](Self::next).
    pub(super) async fn stream(&self, text: &str) -> Result<RowStream, DatastoreError> {
        let no_parameters: [&str; 0] = [];
        self.timed(WORK_TIMEOUT, self.client.query_raw(text, no_parameters))
            .await
    }

    /// The next row of a stream.
    pub(super) async fn next(
        &self,
        mut rows: Pin<&mut RowStream>,
    ) -> Result<Option<Row>, DatastoreError> {
        self.timed(WORK_TIMEOUT, rows.try_next()).await
    }

    async fn statement(&self, text: &str) -> Result<Statement, DatastoreError> {
        let known = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(text)
            .cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self
            .timed(QUESTION_TIMEOUT, self.client.prepare(text))
            .await?;
        let mut statements = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        statements.insert(text.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Waits for a request, not for ever.
    async fn timed<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatastoreError> {
        if let Ok(result) = timeout(limit, request).await {
            return result.map_err(|error| fault(&error));
        }
        self.silent.store(true, Ordering::Relaxed);
        Err(DatastoreError::Unavailable {
            because: format!("no answer within {} s", limit.as_secs()),
        })
    }
}

pub(super) fn fault(error: &tokio_postgres::Error) -> DatastoreError {
    let Some(refusal) = error.as_db_error() else {
        let because = std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |source| source.to_string());
        return DatastoreError::Unavailable { because };
    };
    let because = format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code());
    // Classes: connection, resources, operator intervention, system, transaction state, rollback.
    let passing = ["08", "53", "57", "58", "25", "40"];
    match refusal.code() {
        &SqlState::DISK_FULL => DatastoreError::Full { at: because },
        &SqlState::READ_ONLY_SQL_TRANSACTION => DatastoreError::ReadOnly { because },
        &SqlState::LOCK_NOT_AVAILABLE => DatastoreError::Locked { at: because },
        code if passing.iter().any(|class| code.code().starts_with(class)) => {
            DatastoreError::Unavailable { because }
        }
        _ => DatastoreError::Refused { because },
    }
}
