//! A revision as a list of statements: the rows, the change log, the commit.

use super::backend::{Column, Statement, Value, unreadable};
use super::codec::{encode, similarity_digest};
use super::database::signed;
use super::draft::Row;
use super::error::DatastoreError;
use super::schema::{Dialect, KEPT_REVISIONS, PRUNE_EVERY};
use crate::registry::{Cursor, Kind, Object};

/// # Errors
/// An object that cannot be written as JSON, which none of ours is.
pub(super) fn statements(
    dialect: &Dialect,
    cursor: Cursor,
    rows: &[Row],
) -> Result<Vec<Statement>, DatastoreError> {
    let revision = signed(cursor);
    let keys = |wanted: &dyn Fn(&Row) -> bool| -> Vec<String> {
        let wanted = rows.iter().filter(|row| wanted(row));
        wanted.map(|row| row.key.to_string()).collect()
    };
    let mut statements = Vec::new();
    if let Some(similarity) = &dialect.similarity {
        let moving = keys(&|row| row.moves);
        if !moving.is_empty() {
            let make_room = similarity.make_room.to_owned();
            statements.push(Statement::Bulk(make_room, vec![Column::Texts(moving)]));
        }
    }
    // Deletions first: a new object may take a deleted one's unique value.
    for kind in Kind::ALL {
        let gone = keys(&|row| row.kind == kind && row.object.is_none());
        if !gone.is_empty() {
            let delete = (dialect.delete)(kind);
            statements.push(Statement::Bulk(delete, vec![Column::Texts(gone)]));
        }
    }
    for kind in Kind::ALL {
        let kept = rows.iter().filter(|row| row.kind == kind);
        let kept: Vec<_> = kept
            .filter_map(|row| row.object.as_ref().map(|object| (row, object)))
            .collect();
        if kept.is_empty() {
            continue;
        }
        let bodies = kept.iter().map(|(row, object)| {
            encode(object, row.unknown.as_deref())
                .map_err(|because| unreadable(kind, &row.key, because))
        });
        let mut columns = vec![
            Column::Texts(kept.iter().map(|(row, _)| row.key.to_string()).collect()),
            Column::Ints(kept.iter().map(|(row, _)| row.row).collect()),
            Column::Same(revision),
            Column::Texts(bodies.collect::<Result<_, _>>()?),
        ];
        if kind == Kind::Entry && dialect.similarity.is_some() {
            let entries = kept.iter().filter_map(|(_, object)| match object {
                Object::Entry(entry) => Some(similarity_digest(entry)),
                _ => None,
            });
            columns.push(Column::Texts(entries.collect()));
        }
        statements.push(Statement::Bulk((dialect.upsert)(kind), columns));
    }
    let kinds = rows.iter().map(|row| row.kind.table().to_owned());
    let log = vec![
        Column::Same(revision),
        Column::Same(cursor.token()),
        Column::Texts(kinds.collect()),
        Column::Texts(keys(&|_| true)),
    ];
    statements.push(Statement::Bulk(dialect.log.to_owned(), log));
    if cursor.revision().is_multiple_of(PRUNE_EVERY) {
        let last = revision.saturating_sub_unsigned(KEPT_REVISIONS);
        let prune = "DELETE FROM changes WHERE revision <= $1";
        statements.push(Statement::query(prune, vec![Value::Int(last)]));
    }
    let commit = (dialect.commit)(cursor.revision());
    statements.push(Statement::Script(commit.into()));
    Ok(statements)
}
