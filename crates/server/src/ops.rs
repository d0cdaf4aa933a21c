//! What the server does, below any wire: one file for each kind of object.
//!
//! Operations take and return domain types and refuse with an [`OpError`](crate::error::OpError). gRPC is one interface of
//! them (`api`); another one converts to and from the same types. Authorization, limits and the audit event lie around
//! operations, at the boundary of the interface.

mod batch;
pub(crate) mod entries;

pub(crate) use batch::Batch;
