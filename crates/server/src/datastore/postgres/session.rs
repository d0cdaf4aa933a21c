//! One connection in use: every request has a time limit, every statement is prepared once.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, RowStream, Statement};

use crate::datastore::error::DatastoreError;

/// The longest a single request may take before its connection is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

pub(super) struct Session {
    client: Client,
    statements: Mutex<HashMap<String, Statement>>,
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
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements without parameters.
    pub(super) async fn run(&self, statements: &str) -> Result<(), DatastoreError> {
        timed(self.client.batch_execute(statements)).await
    }

    pub(super) async fn execute(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<u64, DatastoreError> {
        timed(
            self.client
                .execute(&self.statement(text).await?, parameters),
        )
        .await
    }

    pub(super) async fn one(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<Row, DatastoreError> {
        timed(
            self.client
                .query_one(&self.statement(text).await?, parameters),
        )
        .await
    }

    pub(super) async fn at_most_one(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<Option<Row>, DatastoreError> {
        timed(
            self.client
                .query_opt(&self.statement(text).await?, parameters),
        )
        .await
    }

    pub(super) async fn all(
        &self,
        text: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DatastoreError> {
        timed(self.client.query(&self.statement(text).await?, parameters)).await
    }

    /// Rows as they come, for what is too much at once.
    pub(super) async fn stream(&self, text: &str) -> Result<RowStream, DatastoreError> {
        let no_parameters: [&str; 0] = [];
        timed(self.client.query_raw(text, no_parameters)).await
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
        let statement = timed(self.client.prepare(text)).await?;
        let mut statements = self
            .statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        statements.insert(text.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// Waits for a request, not for ever.
async fn timed<T>(
    request: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DatastoreError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result.map_err(|error| fault(&error)),
        Err(_elapsed) => Err(DatastoreError::Unavailable {
            because: format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
        }),
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
        &SqlState::LOCK_NOT_AVAILABLE => DatastoreError::Locked { at: because },
        code if passing.iter().any(|class| code.code().starts_with(class)) => {
            DatastoreError::Unavailable { because }
        }
        _ => DatastoreError::Refused { because },
    }
}
