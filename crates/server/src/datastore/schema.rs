//! The schema's history, one script per version and only ever added to, and the SQL in which databases differ.
//! `readable_from` in `meta` says which older versions may still work on a migrated database.

use crate::registry::Kind;

/// The schema this version writes.
pub(super) const VERSION: i64 = 2;

/// The oldest schema version whose programs can work on a database of [`VERSION`]: version 1 writes no tokens.
pub(super) const READABLE_FROM: i64 = 2;

/// How many revisions the change log keeps. A server further behind reloads everything.
pub(super) const KEPT_REVISIONS: u64 = 10_000;
/// Old changes are pruned once in so many revisions.
pub(super) const PRUNE_EVERY: u64 = 500;

/// Tables by which another program's database is known; SPIRE's among them.
pub(super) const FOREIGN_TABLES: [&str; 2] = ["attested_node_entries", "registered_entries"];

/// Where one database's SQL differs from another's. Parameters are `$1`, `$2`, … in the order of their first use.
#[derive(Debug)]
pub(super) struct Dialect {
    /// The scripts that lead from version 0 to [`VERSION`], in order.
    pub(super) migrations: &'static [&'static str],
    /// Opens the transaction of a migration, alone among all servers.
    pub(super) begin_migration: &'static str,
    /// Whether the table `$1` exists, as 0 or 1.
    pub(super) has_table: &'static str,
    /// Opens a transaction that sees one revision throughout, for as long as a load takes.
    pub(super) begin_snapshot: &'static str,
    pub(super) begin_write: &'static str,
    /// Revision, token, and `on` when the server says that it takes no writes.
    pub(super) look: &'static str,
    /// Takes the next revision with the token `$1`; gives it and the token before.
    pub(super) take_revision: &'static str,
    /// Gives back memory that a load took and nothing needs again.
    pub(super) after_load: Option<&'static str>,
    /// Entries carry a digest of what no two of them may share. Where a database does not check it, the writer alone does.
    pub(super) similarity: Option<SimilarityColumn>,
    /// Inserts or replaces many objects: key, row, revision, body, and the similarity where there is one.
    pub(super) upsert: fn(Kind) -> String,
    /// Deletes objects by their keys.
    pub(super) delete: fn(Kind) -> String,
    /// Writes the change log: revision, token, kind, key.
    pub(super) log: &'static str,
    /// Ends the transaction that wrote this revision, and tells the other servers where the database can.
    pub(super) commit: fn(u64) -> String,
}

/// See [`Dialect::similarity`].
#[derive(Debug)]
pub(super) struct SimilarityColumn {
    /// Takes the similarity from entries, given by their keys, before they get another, so that two may trade theirs.
    pub(super) make_room: &'static str,
}
