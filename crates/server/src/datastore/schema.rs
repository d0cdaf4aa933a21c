//! The schema's history: one list of statements per version, only ever added to.
//! `readable_from` in `meta` says which older versions may still work on a migrated database.

use crate::registry::Kind;

/// The schema this version writes.
pub(super) const VERSION: i64 = 1;

/// The oldest schema version whose programs can work on a database of [`VERSION`].
pub(super) const READABLE_FROM: i64 = 1;

/// The channel on which PostgreSQL tells other servers of a new revision.
pub(super) const CHANNEL: &str = "plastron_revision";

/// How many revisions the change log keeps. A server further behind loads everything anew.
pub(super) const KEPT_REVISIONS: u64 = 10_000;
/// Old changes are pruned once in so many revisions.
pub(super) const PRUNE_EVERY: u64 = 500;

/// The two databases, where their SQL differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// The statements that lead from version `from` to the next, or none when there is no next.
pub(super) fn migration(dialect: Dialect, from: i64) -> Option<&'static str> {
    match (dialect, from) {
        (Dialect::Sqlite, 0) => Some(include_str!("../../migrations/0001.sqlite.sql")),
        (Dialect::Postgres, 0) => Some(include_str!("../../migrations/0001.postgres.sql")),
        _ => None,
    }
}

/// Tables by which another program's database is known; SPIRE's among them.
pub(super) const FOREIGN_TABLES: [&str; 2] = ["attested_node_entries", "registered_entries"];

/// Takes an entry's likeness from it before it gets another, so that two entries may trade theirs.
pub(super) const MAKE_ROOM_POSTGRES: &str =
    "UPDATE entries SET likeness = 'moving ' || key WHERE key = ANY($1::text[])";

/// Inserts or replaces one object; parameters: key, row, revision, body.
pub(super) fn sqlite_upsert(kind: Kind) -> String {
    format!(
        "INSERT INTO {} (key, row_number, revision, body) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, body = excluded.body",
        kind.table()
    )
}

/// The same for many objects, each parameter an array, and with the likeness of entries.
pub(super) fn postgres_upsert(kind: Kind) -> String {
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
         SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]{value}) \
         ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, body = excluded.body{update}",
        kind.table()
    )
}
