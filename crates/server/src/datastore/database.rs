//! The history in a database, the same over every [`Backend`]: schema, revisions with their tokens, the change log.
//!
//! A write transaction takes the next revision first, which keeps every other writer out until its end. So revisions
//! have no gaps and their order is the order of commits. Each revision carries a random token. Who knows a revision
//! by number and token can tell whether the database still contains it: a number alone comes back after a fail-over
//! to a replica that was behind, or when a backup is restored.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::trust_domain::TrustDomain;

use super::backend::{Backend, ChangedRow, Loader, Rows, Statement, Value, unreadable};
use super::codec::Decoder;
use super::commit;
use super::draft::Row;
use super::error::DatastoreError;
use super::schema::{FOREIGN_TABLES, READABLE_FROM, VERSION};
use crate::registry::{Cursor, Kind, State, Write};

/// What a probe writes and removes again: more than a group of small writes may find room for beside a full disk, and never
/// the same twice, since SQLite writes no page that does not change.
const PROBE_NAME: &str = "write_probe";
const PROBE_BYTES: usize = 64 * 1024;
const REMOVE_PROBE: &str = "DELETE FROM meta WHERE name = 'write_probe'";
const META: &str = "SELECT value FROM meta WHERE name = $1";
const SET_META: &str = "INSERT INTO meta (name, value) VALUES ($1, $2) \
                        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
const KEEP_META: &str =
    "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
const TOKEN_OF: &str = "SELECT token FROM changes WHERE revision = $1 LIMIT 1";
/// The entries that are gone, as far back as the change log reaches, and no more of them than the registry keeps.
const DELETED_ENTRIES: &str = "SELECT key FROM changes WHERE kind = 'entries' \
     AND NOT EXISTS (SELECT 1 FROM entries WHERE entries.key = changes.key) \
     GROUP BY key ORDER BY max(revision) DESC LIMIT 65536";
const FIRST_REVISION: &str = "SELECT min(revision) FROM changes";
const TOKENS: &str = "SELECT DISTINCT revision, token FROM changes \
                      WHERE revision > $1 AND revision <= $2 ORDER BY revision";
/// The first token of a database, and of one that had none.
const FIRST_TOKEN: [&str; 2] = [
    "UPDATE revision SET token = $1 WHERE id = 1",
    "UPDATE changes SET token = $1 WHERE revision = (SELECT revision FROM revision WHERE id = 1)",
];

/// What happened in the database since a known revision.
#[derive(Debug)]
pub(super) enum CatchUp {
    Nothing,
    Changes {
        /// The revisions on the way, the one that is reached last.
        passed: Vec<Cursor>,
        /// The latest form of each changed object.
        writes: Vec<Write>,
    },
    /// The change log does not reach back, or the known revision is not in this history: reload everything.
    Everything,
}

/// What a look at the database showed.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) catch_up: CatchUp,
    /// Why a write would fail, where the database reports it by itself.
    pub(super) read_only: Option<String>,
}

#[derive(Debug)]
pub(super) struct Database<B> {
    pub(super) backend: B,
    trust_domain: TrustDomain,
    /// Whether the database that is open was found to be this trust domain's, with a schema that is up to date.
    checked: bool,
}

impl<B: Backend> Database<B> {
    /// Brings the schema up to date and checks whose database it is.
    ///
    /// # Errors
    /// It can't be read or written, or is another trust domain's, another program's or a newer one's.
    pub(super) async fn open(
        backend: B,
        trust_domain: TrustDomain,
    ) -> Result<Self, DatastoreError> {
        let mut database = Self {
            backend,
            trust_domain,
            checked: false,
        };
        database.migrate().await?;
        database.checked = true;
        Ok(database)
    }

    /// Opens the database that took the place of the one that is open, if one did.
    async fn follow_replacement(&mut self) -> Result<(), DatastoreError> {
        if self.backend.reconnect().await? {
            tracing::warn!(
                at = self.backend.at(),
                "the database was replaced; opening the new one"
            );
            self.checked = false;
        }
        if !self.checked {
            self.migrate().await?;
            self.checked = true;
        }
        Ok(())
    }

    async fn migrate(&mut self) -> Result<(), DatastoreError> {
        let begin = self.backend.dialect().begin_migration;
        let begin = Statement::LongScript(begin.into());
        self.backend.run(vec![begin]).await?;
        let migrated = self.migrate_within().await;
        match migrated {
            Ok(()) => {
                let commit = Statement::script("COMMIT");
                self.backend.run(vec![commit]).await.map(|_| ())
            }
            Err(error) => {
                self.backend.rollback().await;
                Err(error)
            }
        }
    }

    async fn migrate_within(&mut self) -> Result<(), DatastoreError> {
        let stored = self.stored_version().await?;
        if stored < VERSION {
            let scripts = self.backend.dialect().migrations.iter();
            let missing = scripts.skip(usize::try_from(stored).unwrap_or_default());
            let mut statements: Vec<_> = missing
                .map(|script| Statement::LongScript((*script).into()))
                .collect();
            let text = |text: &str| Value::Text(text.to_owned());
            for (sql, name, value) in [
                (SET_META, "schema_version", VERSION.to_string()),
                (SET_META, "readable_from", READABLE_FROM.to_string()),
                (KEEP_META, "trust_domain", self.trust_domain.to_string()),
            ] {
                statements.push(Statement::query(sql, vec![text(name), Value::Text(value)]));
            }
            let token = new_token();
            for sql in FIRST_TOKEN {
                statements.push(Statement::query(sql, vec![Value::Int(token)]));
            }
            self.backend.run(statements).await?;
        }
        let stored = self.meta("trust_domain").await?.unwrap_or_default();
        if stored == self.trust_domain.as_str() {
            return Ok(());
        }
        Err(DatastoreError::WrongTrustDomain {
            stored,
            configured: self.trust_domain.clone(),
        })
    }

    /// The schema that is there; 0 in an empty database.
    async fn stored_version(&mut self) -> Result<i64, DatastoreError> {
        if !self.has_table("meta").await? {
            for table in FOREIGN_TABLES {
                if self.has_table(table).await? {
                    return Err(DatastoreError::NotOurs {
                        at: self.backend.at(),
                        table: table.to_owned(),
                    });
                }
            }
            return Ok(0);
        }
        let number =
            |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(i64::MAX);
        let stored = number(self.meta("schema_version").await?);
        if number(self.meta("readable_from").await?) > VERSION {
            return Err(DatastoreError::NewerSchema {
                stored,
                supported: VERSION,
            });
        }
        Ok(stored)
    }

    async fn has_table(&mut self, name: &str) -> Result<bool, DatastoreError> {
        let has_table = self.backend.dialect().has_table;
        let rows = self.query(has_table, vec![Value::Text(name.to_owned())]);
        Ok(first(&rows.await?).is_some_and(|row| cell(row, 0).int() != 0))
    }

    async fn meta(&mut self, name: &str) -> Result<Option<String>, DatastoreError> {
        let rows = self.query(META, vec![Value::Text(name.to_owned())]).await?;
        Ok(first(&rows).map(|row| cell(row, 0).text().to_owned()))
    }

    async fn query(
        &mut self,
        text: &'static str,
        values: Vec<Value>,
    ) -> Result<Rows, DatastoreError> {
        let rows = self.backend.run(vec![Statement::query(text, values)]).await;
        Ok(rows?.pop().unwrap_or_default())
    }

    /// Builds the state from one snapshot.
    ///
    /// # Errors
    /// The database does not answer, or holds what can't be read.
    pub(super) async fn load(&mut self) -> Result<State, DatastoreError> {
        let loaded = self.load_within().await;
        if loaded.is_err() {
            self.backend.rollback().await;
        }
        loaded
    }

    async fn load_within(&mut self) -> Result<State, DatastoreError> {
        let dialect = self.backend.dialect();
        let begin = vec![
            Statement::script(dialect.begin_snapshot),
            Statement::query(dialect.look, Vec::new()),
            Statement::query("SELECT count(*) FROM entries", Vec::new()),
        ];
        let answers = self.backend.run(begin).await?;
        let cursor = answers.get(1).and_then(|rows| first(rows)).map(cursor_of);
        let entries = answers.get(2).and_then(|rows| first(rows));
        let entries = entries.map_or(0, |row| cell(row, 0).unsigned());
        let mut loader = Loader {
            state: State::empty(&self.trust_domain, Cursor::default()),
            decoder: Decoder::default(),
        };
        let entries = usize::try_from(entries).unwrap_or_default();
        loader.state.entries.reserve(entries);
        for kind in Kind::ALL {
            let table = kind.table();
            let query = format!("SELECT row_number, key, body FROM {table} ORDER BY row_number");
            loader = self.backend.scan(kind, query, loader).await?;
        }
        let mut end = vec![
            Statement::Listing(DELETED_ENTRIES.into(), Vec::new()),
            Statement::script("COMMIT"),
        ];
        end.extend(dialect.after_load.map(Statement::script));
        let answers = self.backend.run(end).await?;
        let mut state = loader.state;
        // The latest come first, so that the limit takes the oldest away.
        for row in answers.first().into_iter().flatten().rev() {
            let id = row.first().map_or("", Value::text);
            state.deleted_entries.insert(Arc::from(id));
        }
        state.starts_at(cursor.unwrap_or_default());
        Ok(state)
    }

    /// Opens a write transaction by taking the next revision. `known` is the revision in memory: what others committed
    /// since is returned.
    ///
    /// # Errors
    /// The transaction is not open: the database does not answer, or takes no writes.
    pub(super) async fn begin(
        &mut self,
        known: Cursor,
    ) -> Result<(Cursor, CatchUp), DatastoreError> {
        // A write to a file that was replaced would be acknowledged and lost.
        self.follow_replacement().await?;
        let dialect = self.backend.dialect();
        let token = new_token();
        let begin = vec![
            Statement::script(dialect.begin_write),
            Statement::query(dialect.take_revision, vec![Value::Int(token)]),
        ];
        let answers = self.backend.run(begin).await?;
        let taken = answers.last().and_then(|rows| first(rows));
        let Some(taken) = taken else {
            self.backend.rollback().await;
            return Err(no_revision());
        };
        let next = Cursor::new(cell(taken, 0).unsigned(), token);
        let current = Cursor::new(next.revision().saturating_sub(1), cell(taken, 1).int());
        match self.catch_up(known, current).await {
            Ok(catch_up) => Ok((next, catch_up)),
            Err(error) => {
                self.backend.rollback().await;
                Err(error)
            }
        }
    }

    /// Writes the rows and their changes and commits. After an error nothing is open.
    ///
    /// # Errors
    /// Nothing is written, unless the connection broke in the commit itself: then the next look tells.
    pub(super) async fn commit(
        &mut self,
        cursor: Cursor,
        rows: &[Row],
    ) -> Result<(), DatastoreError> {
        let statements = match commit::statements(self.backend.dialect(), cursor, rows) {
            Ok(statements) => statements,
            Err(error) => {
                self.backend.rollback().await;
                return Err(error);
            }
        };
        self.backend.run(statements).await.map(|_| ())
    }

    /// Looks for others' commits since `known`.
    ///
    /// # Errors
    /// The database does not answer, or holds what can't be read, or is another one now.
    pub(super) async fn look(&mut self, known: Cursor) -> Result<Look, DatastoreError> {
        self.follow_replacement().await?;
        // One cheap look outside any transaction: mostly there is nothing.
        let rows = self.query(self.backend.dialect().look, Vec::new()).await?;
        let row = first(&rows).ok_or_else(no_revision)?;
        let read_only =
            (cell(row, 2).text() == "on").then(|| format!("{} says so", self.backend.at()));
        let catch_up = if cursor_of(row) == known {
            CatchUp::Nothing
        } else {
            let caught_up = self.catch_up_in_snapshot(known).await;
            if caught_up.is_err() {
                self.backend.rollback().await;
            }
            caught_up?
        };
        Ok(Look {
            catch_up,
            read_only,
        })
    }

    async fn catch_up_in_snapshot(&mut self, known: Cursor) -> Result<CatchUp, DatastoreError> {
        let dialect = self.backend.dialect();
        let begin = vec![
            Statement::script(dialect.begin_snapshot),
            Statement::query(dialect.look, Vec::new()),
        ];
        let answers = self.backend.run(begin).await?;
        let current = answers.last().and_then(|rows| first(rows)).map(cursor_of);
        let caught_up = self
            .catch_up(known, current.ok_or_else(no_revision)?)
            .await?;
        self.backend.run(vec![Statement::script("COMMIT")]).await?;
        Ok(caught_up)
    }

    /// What was committed after `known` up to `current`, which is what the open transaction sees.
    async fn catch_up(
        &mut self,
        known: Cursor,
        current: Cursor,
    ) -> Result<CatchUp, DatastoreError> {
        if known == current {
            return Ok(CatchUp::Nothing);
        }
        if known.revision() >= current.revision() || !self.contains(known).await? {
            return Ok(CatchUp::Everything);
        }
        let (after, upto) = (signed(known), signed(current));
        let range = || vec![Value::Int(after), Value::Int(upto)];
        let mut statements = vec![Statement::Listing(TOKENS.into(), range())];
        statements.extend(Kind::ALL.map(|kind| Statement::Listing(changed(kind).into(), range())));
        let mut answers = self.backend.run(statements).await?.into_iter();
        let passed: BTreeMap<u64, Cursor> = answers
            .next()
            .unwrap_or_default()
            .iter()
            .map(|row| (cell(row, 0).unsigned(), cursor_of(row)))
            .chain([(current.revision(), current)])
            .collect();
        let mut rows = Vec::new();
        for (kind, found) in Kind::ALL.into_iter().zip(answers) {
            rows.extend(found.into_iter().map(|row| changed_row(kind, &row)));
        }
        rows.sort_by_key(|row| row.revision);
        Ok(CatchUp::Changes {
            passed: passed.into_values().collect(),
            writes: decode_all(rows)?,
        })
    }

    /// Whether the change log goes on from this very revision.
    async fn contains(&mut self, known: Cursor) -> Result<bool, DatastoreError> {
        if known.revision() == 0 {
            // Nothing was written before it that could have been written otherwise.
            let rows = self.query(FIRST_REVISION, Vec::new()).await?;
            return Ok(first(&rows).is_some_and(|row| cell(row, 0).int() == 1));
        }
        let rows = self
            .query(TOKEN_OF, vec![Value::Int(signed(known))])
            .await?;
        Ok(first(&rows).is_some_and(|row| cell(row, 0).int() == known.token()))
    }

    /// Finds out whether the database takes writes again.
    ///
    /// # Errors
    /// It does not.
    pub(super) async fn probe(&mut self) -> Result<(), DatastoreError> {
        let name = Value::Text(PROBE_NAME.to_owned());
        let content = Value::Text("0".repeat(PROBE_BYTES));
        let probe = vec![
            // Left by a server that was killed meanwhile: with it in place the next statement might change nothing.
            Statement::script(REMOVE_PROBE),
            Statement::query(SET_META, vec![name, content]),
            Statement::script(REMOVE_PROBE),
        ];
        self.backend.run(probe).await.map(|_| ())
    }
}

pub(super) fn signed(cursor: Cursor) -> i64 {
    i64::try_from(cursor.revision()).unwrap_or(i64::MAX)
}

/// Tokens tell histories apart; they are no secret.
fn new_token() -> i64 {
    let [a, b, c, d, _, _, _, _, _, _, _, _, e, f, g, h] = uuid::Uuid::new_v4().into_bytes();
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn no_revision() -> DatastoreError {
    DatastoreError::Refused {
        because: "table revision has no row".to_owned(),
    }
}

fn first(rows: &Rows) -> Option<&[Value]> {
    rows.first().map(Vec::as_slice)
}

fn cell(row: &[Value], column: usize) -> &Value {
    row.get(column).unwrap_or(&Value::Null)
}

/// The first two columns of a row.
fn cursor_of(row: &[Value]) -> Cursor {
    Cursor::new(cell(row, 0).unsigned(), cell(row, 1).int())
}

/// The latest form of each object of a kind that changed within a range of revisions.
fn changed(kind: Kind) -> String {
    let table = kind.table();
    format!(
        "SELECT c.key, c.revision, t.row_number, t.body FROM \
         (SELECT key, max(revision) AS revision FROM changes \
          WHERE revision > $1 AND revision <= $2 AND kind = '{table}' GROUP BY key) c \
         LEFT JOIN {table} t ON t.key = c.key"
    )
}

fn changed_row(kind: Kind, row: &[Value]) -> ChangedRow {
    let content = match (cell(row, 2), cell(row, 3)) {
        (Value::Int(number), Value::Text(body)) => Some((*number, body.clone())),
        _ => None,
    };
    ChangedRow {
        kind,
        key: Arc::from(cell(row, 0).text()),
        revision: cell(row, 1).unsigned(),
        content,
    }
}

/// Turns changed rows into the writes that the registry applies.
fn decode_all(rows: Vec<ChangedRow>) -> Result<Vec<Write>, DatastoreError> {
    let mut decoder = Decoder::default();
    let decoded = rows.into_iter().map(|changed| {
        let ChangedRow {
            kind,
            key,
            revision,
            content,
        } = changed;
        let (row, object, unknown) = match content {
            None => (0, None, None),
            Some((row, body)) => {
                let (object, unknown) = decoder
                    .decode(kind, &key, &body)
                    .map_err(|because| unreadable(kind, &key, because))?;
                (row, Some(object), unknown)
            }
        };
        Ok(Write {
            kind,
            key,
            row,
            object,
            unknown,
            revision,
        })
    });
    decoded.collect()
}
