//! What an operator may do to the authorities of this server: look, prepare, activate, taint, revoke.
//!
//! The rules and texts are SPIRE's (SPIRE: localauthority service), written once for all kinds. An authority that signs is
//! never tainted or revoked.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::authority::Authority;
use super::kind::Kind;
use super::slots::{AuthorityState, AuthorityStates};
use super::{Ca, CaError, OperationError};

/// Which authorities an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityKind {
    X509,
    Jwt,
}

/// The authorities of one kind, whichever it is.
#[async_trait]
pub(crate) trait AuthorityOps: Send + Sync {
    /// The kind's name, for logs.
    fn what(&self) -> &'static str;

    /// Whether something signs.
    fn is_active(&self) -> bool;

    /// Prepares and activates what is due.
    async fn tick(&self, now: SystemTime) -> Result<(), CaError>;

    /// The authorities as they are.
    ///
    /// # Errors
    /// There is no active authority yet.
    fn states(&self) -> Result<Arc<AuthorityStates>, OperationError>;

    /// Makes and publishes the next authority now. On an error the active one is not touched.
    async fn prepare(&self) -> Result<AuthorityState, OperationError>;

    /// Lets the prepared authority sign. On an error nothing has changed, here and below.
    async fn activate(&self, authority_id: &str) -> Result<AuthorityState, OperationError>;

    /// Marks the old authority as one not to be relied on: all that it signed is to be renewed.
    async fn taint(&self, authority_id: &str) -> Result<AuthorityState, OperationError>;

    /// Removes a tainted authority from the bundle: what it signed is refused from then on.
    async fn revoke(&self, authority_id: &str) -> Result<(), OperationError>;
}

#[async_trait]
impl<K: Kind> AuthorityOps for Authority<K> {
    fn what(&self) -> &'static str {
        K::WHAT
    }

    fn is_active(&self) -> bool {
        self.active().is_some()
    }

    async fn tick(&self, now: SystemTime) -> Result<(), CaError> {
        self.rotate(now).await
    }

    fn states(&self) -> Result<Arc<AuthorityStates>, OperationError> {
        let states = self.current_states();
        if states.active.is_none() {
            return Err(OperationError::Initializing);
        }
        Ok(states)
    }

    async fn prepare(&self) -> Result<AuthorityState, OperationError> {
        self.states()?;
        let prepared = self.prepare_next(self.context.clock.now()).await;
        prepared.map_err(|source| OperationError::Failed {
            what: K::FAILURES.prepare,
            source,
        })
    }

    async fn activate(&self, authority_id: &str) -> Result<AuthorityState, OperationError> {
        let states = self.states()?;
        if authority_id.is_empty() {
            return Err(OperationError::NoAuthorityId);
        }
        if AuthorityState::is(&states.old, authority_id) {
            return Err(OperationError::NotPrepared("OLD"));
        }
        let prepared = states.prepared.clone();
        let prepared = prepared.filter(|state| state.authority_id == authority_id);
        let prepared = prepared.ok_or(OperationError::UnexpectedAuthorityId)?;
        // Another call may have been quicker.
        if !self.activate_prepared(authority_id).await {
            return Err(OperationError::UnexpectedAuthorityId);
        }
        Ok(prepared)
    }

    async fn taint(&self, authority_id: &str) -> Result<AuthorityState, OperationError> {
        let states = self.states()?;
        if self.kind.is_below_upstream() {
            return Err(OperationError::TaintsBelowUpstream);
        }
        if authority_id.is_empty() {
            return Err(OperationError::NoAuthorityId);
        }
        if AuthorityState::is(&states.active, authority_id) {
            return Err(OperationError::TaintsCurrent);
        }
        if AuthorityState::is(&states.prepared, authority_id) {
            return Err(OperationError::TaintsNotOld("PREPARED"));
        }
        let old = states.old.clone();
        let old = old.filter(|old| old.authority_id == authority_id);
        let old = old.ok_or(OperationError::UnexpectedAuthorityId)?;
        let tainted = self.kind.taint(&self.context, authority_id).await;
        tainted.map_err(|error| OperationError::Failed {
            what: K::FAILURES.taint,
            source: CaError::Bundle(error),
        })?;
        self.context.server_svid_due.notify_one();
        Ok(old)
    }

    async fn revoke(&self, authority_id: &str) -> Result<(), OperationError> {
        let states = self.states()?;
        if self.kind.is_below_upstream() {
            return Err(OperationError::RevokesBelowUpstream);
        }
        let invalid = OperationError::InvalidAuthorityId;
        if authority_id.is_empty() {
            return Err(invalid("no authority ID provided"));
        }
        if AuthorityState::is(&states.active, authority_id) {
            return Err(invalid("unable to use current authority"));
        }
        let registry = &self.context.registry;
        let bundle = registry.bundle(&self.context.trust_domain);
        let revocable = self
            .kind
            .check_revocable(authority_id, &states, bundle.as_deref());
        revocable.map_err(invalid)?;
        let revoked = self.kind.revoke(&self.context, authority_id).await;
        revoked.map_err(|error| OperationError::Failed {
            what: K::FAILURES.revoke,
            source: CaError::Bundle(error),
        })
    }
}

impl Ca {
    /// The row of a kind.
    ///
    /// # Errors
    /// The kind is disabled.
    pub(crate) fn authority(
        &self,
        kind: AuthorityKind,
    ) -> Result<&dyn AuthorityOps, OperationError> {
        let mut rows = self.kinds.iter();
        let row = rows.find(|(one, _)| *one == kind);
        row.map(|(_, authority)| authority.as_ref())
            .ok_or(OperationError::JwtDisabled)
    }

    /// The authorities of a kind.
    ///
    /// # Errors
    /// The kind is disabled, or there is no active authority yet.
    pub fn authorities(&self, kind: AuthorityKind) -> Result<Arc<AuthorityStates>, OperationError> {
        self.authority(kind)?.states()
    }

    /// Makes and publishes the next authority now.
    ///
    /// # Errors
    /// [`OperationError`]; the active authority is not touched.
    pub async fn prepare(&self, kind: AuthorityKind) -> Result<AuthorityState, OperationError> {
        self.authority(kind)?.prepare().await
    }

    /// Lets the prepared authority sign.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn activate(
        &self,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<AuthorityState, OperationError> {
        self.authority(kind)?.activate(authority_id).await
    }

    /// Marks the old authority as one not to be relied on: all that it signed is to be renewed.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn taint(
        &self,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<AuthorityState, OperationError> {
        self.authority(kind)?.taint(authority_id).await
    }

    /// Removes a tainted authority from the bundle: what it signed is refused from then on.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn revoke(
        &self,
        kind: AuthorityKind,
        authority_id: &str,
    ) -> Result<(), OperationError> {
        self.authority(kind)?.revoke(authority_id).await
    }

    /// Marks the upstream root that signed the old authority. Gives the key id in lower case.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn taint_upstream(&self, subject_key_id: &str) -> Result<String, OperationError> {
        let id = self.upstream_of_old(subject_key_id, "provided subject key id is not valid")?;
        let tainted = self
            .context
            .bundles
            .taint_x509_authority(&self.trust_domain, &id)
            .await;
        tainted.map_err(|error| OperationError::Failed {
            what: "failed to taint upstream authority",
            source: CaError::Bundle(error),
        })?;
        self.context.server_svid_due.notify_one();
        Ok(id)
    }

    /// Removes the tainted upstream root that signed the old authority.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn revoke_upstream(&self, subject_key_id: &str) -> Result<String, OperationError> {
        let id = self.upstream_of_old(subject_key_id, "invalid subject key ID")?;
        let revoked = self
            .context
            .bundles
            .revoke_x509_authority(&self.trust_domain, &id)
            .await;
        revoked.map_err(|error| OperationError::Failed {
            what: "failed to revoke X.509 upstream authority",
            source: CaError::Bundle(error),
        })?;
        Ok(id)
    }

    fn upstream_of_old(
        &self,
        subject_key_id: &str,
        what: &'static str,
    ) -> Result<String, OperationError> {
        if !self.x509.kind.is_below_upstream() {
            return Err(OperationError::NoUpstream);
        }
        let invalid = |why| Err(OperationError::InvalidSubjectKeyId { what, why });
        let id = subject_key_id.to_ascii_lowercase();
        let states = self.authorities(AuthorityKind::X509)?;
        let signed = |state: &Option<AuthorityState>| {
            state
                .as_ref()
                .is_some_and(|state| state.upstream_authority_id == id)
        };
        if id.is_empty() {
            return invalid("no subject key ID provided");
        }
        if signed(&states.active) {
            return invalid("unable to use upstream authority singing current authority");
        }
        if signed(&states.prepared) {
            return invalid("only upstream authorities signing an old authority can be used");
        }
        if !signed(&states.old) {
            return invalid("upstream authority didn't sign the old local authority");
        }
        Ok(id)
    }
}
