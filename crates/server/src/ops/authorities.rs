//! What an operator may do to the authorities of this server: look, prepare, activate, taint, revoke.
//!
//! The rules are those of `ca`; this file gives their refusals the codes that callers know, and the audit trail its fields.

use std::sync::Arc;

use crate::audit::Fields;
use crate::ca::{AuthorityKind, AuthorityState, AuthorityStates, Ca, OperationError};
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};

#[derive(Debug)]
pub(crate) struct Authorities {
    pub(crate) ca: Arc<Ca>,
}

impl Authorities {
    /// # Errors
    /// Unavailable while there is no active authority; Unimplemented for a kind that is disabled.
    pub(crate) fn states(&self, kind: AuthorityKind) -> Result<Arc<AuthorityStates>, OpError> {
        Ok(self.ca.authorities(kind)?)
    }

    /// Makes and publishes the next authority now.
    ///
    /// # Errors
    /// As [`Self::states`]; Internal when it could not be made.
    pub(crate) async fn prepare(&self, kind: AuthorityKind) -> Result<AuthorityState, OpError> {
        Ok(self.ca.prepare(kind).await?)
    }

    /// Lets the prepared authority sign.
    ///
    /// # Errors
    /// As [`Self::states`]; InvalidArgument for an authority that does not exist, Internal for one that is not prepared.
    pub(crate) async fn activate(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<AuthorityState, OpError> {
        describe(caller, id);
        Ok(self.ca.activate(kind, id).await?)
    }

    /// Marks the old authority as one not to be relied on.
    ///
    /// # Errors
    /// As [`Self::states`]; InvalidArgument for one that is not old, FailedPrecondition below an upstream authority.
    pub(crate) async fn taint(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<AuthorityState, OpError> {
        describe(caller, id);
        Ok(self.ca.taint(kind, id).await?)
    }

    /// Removes a tainted authority from the bundle.
    ///
    /// # Errors
    /// As [`Self::taint`]; Internal for one that is not tainted.
    pub(crate) async fn revoke(
        &self,
        caller: &Caller,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<(), OpError> {
        describe(caller, id);
        Ok(self.ca.revoke(kind, id).await?)
    }

    /// Marks the upstream root that signed the old authority. Gives its subject key ID in lower case.
    ///
    /// # Errors
    /// FailedPrecondition without an upstream authority; InvalidArgument for any other root.
    pub(crate) async fn taint_upstream(
        &self,
        caller: &Caller,
        subject_key_id: &str,
    ) -> Result<String, OpError> {
        caller.describe(|| Fields::new().with("subject_key_id", subject_key_id));
        Ok(self.ca.taint_upstream(subject_key_id).await?)
    }

    /// Removes a tainted upstream root from the bundle. Gives its subject key ID in lower case.
    ///
    /// # Errors
    /// As [`Self::taint_upstream`].
    pub(crate) async fn revoke_upstream(
        &self,
        caller: &Caller,
        subject_key_id: &str,
    ) -> Result<String, OpError> {
        caller.describe(|| Fields::new().with("subject_key_id", subject_key_id));
        Ok(self.ca.revoke_upstream(subject_key_id).await?)
    }
}

fn describe(caller: &Caller, id: &str) {
    caller.describe(|| Fields::new().with("local_authority_id", id));
}

impl From<OperationError> for OpError {
    fn from(error: OperationError) -> Self {
        let kind = match &error {
            OperationError::JwtDisabled => Kind::Unimplemented,
            OperationError::Initializing => Kind::Unavailable,
            OperationError::NotPrepared(_) | OperationError::Failed { .. } => Kind::Internal,
            OperationError::TaintsBelowUpstream
            | OperationError::RevokesBelowUpstream
            | OperationError::NoUpstream => Kind::FailedPrecondition,
            OperationError::NoAuthorityId
            | OperationError::UnexpectedAuthorityId
            | OperationError::TaintsCurrent
            | OperationError::TaintsNotOld(_)
            | OperationError::InvalidAuthorityId(_)
            | OperationError::InvalidSubjectKeyId { .. } => Kind::InvalidArgument,
        };
        refused(kind, error.to_string())
    }
}
