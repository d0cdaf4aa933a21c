//! Why an authority could not be made, resumed or changed, and why a document was not issued.

use config::fault::{Code, Fault};
use daemon::telemetry::CallError;
use spiffe::id::SpiffeId;
use spiffe::svid::jwt::JwtSvidError;
use spiffe::x509::BuildError;

use crate::audit::AuditError;
use crate::datastore::{BundleError, DatastoreError};
use crate::error::Kind;

/// What can go wrong with the authorities themselves.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the key manager failed: {0}")]
    Keys(#[source] plugin::Error),
    #[error("the upstream authority failed: {0}")]
    Upstream(#[source] plugin::Error),
    #[error("the upstream authority's answer cannot be used: {0}")]
    UnfitUpstream(String),
    #[error("the key manager, or the upstream authority, took too long to make an authority")]
    TookTooLong,
    #[error("the certificate could not be made: {0}")]
    Build(#[from] BuildError),
    /// A document made by the new authority does not verify against what would be published.
    #[error("the new authority failed its trial: {0}")]
    Trial(String),
    #[error(transparent)]
    Store(#[from] DatastoreError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("the CA journal cannot be written: {0}")]
    Journal(String),
    /// The journal names an active authority that cannot sign any more.
    #[error("the key manager lacks the key of the active {what} {authority_id}")]
    KeyLost {
        what: &'static str,
        authority_id: String,
    },
}

impl CallError for CaError {
    fn status(&self) -> &'static str {
        match self {
            Self::Store(error) => error.status(),
            Self::Bundle(error) => error.status(),
            Self::Keys(_) | Self::Upstream(_) | Self::TookTooLong => "Unavailable",
            _ => "Internal",
        }
    }
}

impl CaError {
    /// The same for an operator who starts a server.
    pub fn to_fault(&self) -> Fault {
        match self {
            Self::Keys(error) => error.to_fault(),
            Self::Upstream(error) => error.to_fault(),
            Self::UnfitUpstream(_) => Fault::new(Code::UpstreamInvalid, self.to_string()).hint(
                "the upstream certificate must be a CA's, be valid now, and lead to a root of its bundle",
            ),
            Self::Store(error) | Self::Bundle(BundleError::Store(error)) => Fault::from(error),
            Self::KeyLost { .. } => Fault::new(Code::KeyLost, self.to_string()).hint(
                "restore the key manager's keys from a backup, or start once with --new-authorities to replace the lost authorities",
            ),
            _ => Fault::new(Code::Internal, "the server has no CA to issue with").because(self),
        }
    }
}

/// Why the gate did not let a document out. Nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("X509 CA is not available for signing")]
    NoX509Authority,
    #[error("JWT key is not available for signing")]
    NoJwtAuthority,
    #[error("JWT functionality is disabled")]
    JwtDisabled,
    #[error("{id:?} is not a member of trust domain {trust_domain:?}")]
    ForeignId { id: SpiffeId, trust_domain: String },
    #[error("{0:?} has no path")]
    IdWithoutPath(SpiffeId),
    #[error("the grant for {id:?} does not extend to {document}")]
    NotGranted {
        id: SpiffeId,
        document: &'static str,
    },
    #[error("invalid JWT-SVID audience: cannot be empty")]
    NoAudience,
    #[error("the signing authority has expired")]
    AuthorityExpired,
    /// The entry was deleted or changed, or has expired, while the document was made.
    #[error("entry not found or not authorized")]
    EntryWithdrawn,
    #[error("the entry was changed while the call waited; try again")]
    EntryChanged,
    #[error("the signature took too long")]
    SignatureTimedOut,
    #[error("the signature was interrupted by the shutdown")]
    SignatureInterrupted,
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Jwt(#[from] JwtSvidError),
    /// What was signed is not what was granted. It is a fault of ours, and the document is thrown away.
    #[error("BUG: the issued document does not match its grant: {0}")]
    Mismatch(&'static str),
    /// The document is thrown away: none leaves without its record.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl IssueError {
    /// The code that the caller receives, and the audit trail records.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::EntryWithdrawn => Kind::NotFound,
            Self::NoAudience
            | Self::Jwt(
                JwtSvidError::NoAudience
                | JwtSvidError::TooManyAudiences
                | JwtSvidError::LongAudience
                | JwtSvidError::TooLong,
            )
            | Self::ForeignId { .. }
            | Self::IdWithoutPath(_) => Kind::InvalidArgument,
            Self::JwtDisabled => Kind::Unimplemented,
            Self::NotGranted { .. } => Kind::PermissionDenied,
            Self::AuthorityExpired
            | Self::EntryChanged
            | Self::SignatureTimedOut
            | Self::SignatureInterrupted
            | Self::Audit(_) => Kind::Unavailable,
            // SPIRE: Internal when there is no authority yet.
            _ => Kind::Internal,
        }
    }
}

/// Why an operator's change of an authority was refused. Texts as SPIRE's, which tools match on.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    #[error("JWT functionality is disabled")]
    JwtDisabled,
    #[error("server is initializing")]
    Initializing,
    #[error("no authority ID provided")]
    NoAuthorityId,
    #[error("unexpected authority ID")]
    UnexpectedAuthorityId,
    #[error("only Prepared authorities can be activated: unsupported local authority status: {0}")]
    NotPrepared(&'static str),
    #[error("unable to taint current local authority")]
    TaintsCurrent,
    #[error("only Old local authorities can be tainted: unsupported local authority status: {0}")]
    TaintsNotOld(&'static str),
    #[error("local authority can't be tainted if there is an upstream authority")]
    TaintsBelowUpstream,
    #[error("local authority can't be revoked if there is an upstream authority")]
    RevokesBelowUpstream,
    #[error("upstream authority is not configured")]
    NoUpstream,
    #[error("invalid authority ID: {0}")]
    InvalidAuthorityId(&'static str),
    #[error("{what}: {why}")]
    InvalidSubjectKeyId {
        what: &'static str,
        why: &'static str,
    },
    #[error("{what}: {source}")]
    Failed { what: &'static str, source: CaError },
}
