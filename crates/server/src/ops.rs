//! What the server does, below any wire: one file for each kind of object.
//!
//! Operations take and return domain types and refuse with an [`OpError`]. gRPC is one interface of
//! them (`api`); another one converts to and from the same types. Authorization, limits and the audit event lie around
//! operations, at the boundary of the interface.

pub(crate) mod agents;
pub(crate) mod attestations;
pub(crate) mod authorities;
mod batch;
pub(crate) mod bundles;
pub(crate) mod entries;
pub(crate) mod federation;
pub(crate) mod log_level;
mod page;
pub(crate) mod server_info;
pub(crate) mod svids;
pub(crate) mod tokens;

use crate::ca::IssueError;
use crate::error::{Kind, OpError, failed, refused};

pub(crate) use batch::Batch;

/// SPIRE: what an agent is answered about an entry that it may not have, whether the entry exists or not.
pub(crate) const NOT_AUTHORIZED: &str = "entry not found or not authorized";

/// For `map_err`: why the gate let no document out, as its caller sees it. What the caller asked for can be at fault, and
/// what the server lacks for the moment is no defect.
pub(crate) fn not_issued(what: &'static str) -> impl Fn(IssueError) -> OpError {
    move |error| match error {
        IssueError::EntryWithdrawn => refused(Kind::NotFound, NOT_AUTHORIZED),
        error => failed(error.kind(), what, error),
    }
}
