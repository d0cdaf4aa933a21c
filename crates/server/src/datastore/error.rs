//! Why a store can't be opened or a write was not made. Item-level refusals are the operations' own types.

use daemon::telemetry::CallError;
use spiffe::trust_domain::TrustDomain;

use super::{AgentWriteError, BundleError, RelationshipError, TokenError};

/// A fault of the store itself. Nothing of the operation is kept, unless the connection broke while the database
/// was committing: then the next look at the database tells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatastoreError {
    #[error("the database is out of reach: {because}")]
    Unavailable { because: String },
    #[error("the database {at} is locked by another process")]
    Locked { at: String },
    #[error("another server uses the database {at}")]
    InUse { at: String },
    #[error("no space left for the database {at}")]
    Full { at: String },
    #[error("the database is read-only: {because}")]
    ReadOnly { because: String },
    #[error("the database refused: {because}")]
    Refused { because: String },
    #[error("can't open the database {at}: {because}")]
    Open { at: String, because: String },
    #[error("the database belongs to trust domain {stored}, not to {configured}")]
    WrongTrustDomain {
        stored: String,
        configured: TrustDomain,
    },
    #[error(
        "the database has schema {stored}, which needs a newer version than this one (schema {supported})"
    )]
    NewerSchema { stored: i64, supported: i64 },
    #[error("the database {at} holds tables of another program: {table}")]
    NotOurs { at: String, table: String },
    #[error("the database holds something unreadable in table {table}, key {key}: {because}")]
    Unreadable {
        table: &'static str,
        key: String,
        because: String,
    },
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("the datastore is closed")]
    Closed,
}

/// Why the settings of a connection cannot be used. Holds no secret: a value is never quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({at}): {because}")]
pub struct SettingsError {
    pub what: String,
    /// Where it was written, or the file at fault.
    pub at: String,
    pub because: String,
    pub hint: String,
}

impl CallError for DatastoreError {
    fn status(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } | Self::Locked { .. } | Self::InUse { .. } => "Unavailable",
            Self::Full { .. } => "ResourceExhausted",
            Self::ReadOnly { .. } => "FailedPrecondition",
            Self::Refused { .. } => "InvalidArgument",
            Self::Closed => "Canceled",
            _ => "Internal",
        }
    }
}

/// A refusal or failure of a write, one of whose causes is the store itself.
pub(crate) trait WriteFailure: std::fmt::Display {
    /// The store's own failure, if that is what it is.
    fn of_store(&self) -> Option<&DatastoreError>;
}

impl WriteFailure for DatastoreError {
    fn of_store(&self) -> Option<&DatastoreError> {
        Some(self)
    }
}

/// For the error types whose variant `Store` holds the store's own failure.
macro_rules! write_failure {
    ($($error:ty),*) => {$(
        impl WriteFailure for $error {
            fn of_store(&self) -> Option<&DatastoreError> {
                match self {
                    Self::Store(error) => Some(error),
                    _ => None,
                }
            }
        }
    )*};
}

write_failure!(AgentWriteError, BundleError, RelationshipError, TokenError);

impl DatastoreError {
    /// Whether the same write may well succeed later, with nothing changed by the caller.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Closed) || self.is_about_writing()
    }

    /// Whether one write of a group may have caused it, so that the others succeed without it.
    pub(super) fn is_about_content(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unreadable { .. })
    }

    /// Whether the database may well answer reads, and takes no writes.
    pub(super) fn is_about_writing(&self) -> bool {
        matches!(
            self,
            Self::ReadOnly { .. } | Self::Full { .. } | Self::Locked { .. }
        )
    }
}
