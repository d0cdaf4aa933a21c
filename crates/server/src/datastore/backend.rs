//! What a database must be able to do. Everything that is made of it (schema, history, commits) is written once, in
//! `database`; another kind of database is one more file like `sqlite` or `postgres`.

use std::borrow::Cow;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::codec::Decoder;
use super::error::DatastoreError;
use super::schema::Dialect;
use crate::registry::{Kind, State};

/// The longest time between two looks at the database.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// One connection, used by the writer alone.
pub(super) trait Backend: Debug + Send + 'static {
    fn dialect(&self) -> &'static Dialect;

    /// Where the database is, for messages; no user and no password.
    fn at(&self) -> String;

    /// Runs statements in order and gives the rows of each. After an error no transaction is open.
    ///
    /// # Errors
    /// The first statement that failed; also when an answer takes longer than its kind may.
    fn run(
        &mut self,
        statements: Vec<Statement>,
    ) -> impl Future<Output = Result<Vec<Rows>, DatastoreError>> + Send;

    /// Feeds a query's rows (row number, key, body) to the loader, within the open transaction.
    ///
    /// # Errors
    /// As [`run`](Self::run), and what the loader refuses.
    fn scan(
        &mut self,
        kind: Kind,
        query: String,
        loader: Loader,
    ) -> impl Future<Output = Result<Loader, DatastoreError>> + Send;

    /// Ends the open transaction, if there is one.
    fn rollback(&mut self) -> impl Future<Output = ()> + Send;

    /// Makes sure that the connection leads to the database that the configuration names. True when it leads to
    /// another one than before: a file that was replaced.
    ///
    /// # Errors
    /// There is nothing to connect to.
    fn reconnect(&mut self) -> impl Future<Output = Result<bool, DatastoreError>> + Send;

    /// Returns when there may be others' commits to look for, after [`POLL`] at the latest.
    fn woken(&mut self, known: u64) -> impl Future<Output = ()> + Send;

    /// Leaves the database as a copy of its files should find it.
    ///
    /// # Errors
    /// The database did not do it. Nothing that was committed is lost.
    fn close(&mut self) -> impl Future<Output = Result<(), DatastoreError>> + Send;
}

/// What to run.
#[derive(Debug)]
pub(super) enum Statement {
    /// One statement or several, without parameters and rows.
    Script(Cow<'static, str>),
    /// A script that may take minutes.
    LongScript(Cow<'static, str>),
    /// A question of a row or two.
    Query(Cow<'static, str>, Vec<Value>),
    /// A question of many rows.
    Listing(Cow<'static, str>, Vec<Value>),
    /// The same statement for each row of the columns, which are of one length.
    Bulk(String, Vec<Column>),
}

impl Statement {
    pub(super) fn script(text: &'static str) -> Self {
        Self::Script(Cow::Borrowed(text))
    }

    pub(super) fn query(text: &'static str, values: Vec<Value>) -> Self {
        Self::Query(Cow::Borrowed(text), values)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
}

impl Value {
    /// A number that is never negative.
    pub(super) fn unsigned(&self) -> u64 {
        u64::try_from(self.int()).unwrap_or_default()
    }

    pub(super) fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            Self::Text(text) => text.parse().unwrap_or_default(),
            Self::Null => 0,
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Int(_) | Self::Null => "",
        }
    }
}

pub(super) type Rows = Vec<Vec<Value>>;

/// One parameter of a bulk statement.
#[derive(Debug)]
pub(super) enum Column {
    /// The same in every row.
    Same(i64),
    Ints(Vec<i64>),
    Texts(Vec<String>),
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
        let (object, unknown) = self
            .decoder
            .decode(kind, key, body)
            .map_err(|because| unreadable(kind, key, because))?;
        self.state.put(row, object);
        self.state.keep_unknown(kind, key, unknown);
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

/// One row as the change log names it.
#[derive(Debug)]
pub(super) struct ChangedRow {
    pub(super) kind: Kind,
    pub(super) key: Arc<str>,
    pub(super) revision: u64,
    /// The row number and body, or `None` when the object is gone.
    pub(super) content: Option<(i64, String)>,
}
