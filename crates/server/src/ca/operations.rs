//! What an operator may do to the authorities of this server: look, prepare, activate, taint, revoke.
//!
//! The rules and texts are SPIRE's (SPIRE: localauthority service). An authority that signs is never tainted or revoked.

use std::sync::Arc;

use super::authority::{AuthorityState, AuthorityStates};
use super::{Ca, CaError, OperationError};

/// Which authorities an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityKind {
    X509,
    Jwt,
}

impl Ca {
    /// The authorities of a kind.
    ///
    /// # Errors
    /// The kind is disabled, or there is no active authority yet.
    pub fn authorities(&self, kind: AuthorityKind) -> Result<Arc<AuthorityStates>, OperationError> {
        let states = match kind {
            AuthorityKind::X509 => self.x509.states(),
            AuthorityKind::Jwt => self
                .jwt
                .as_ref()
                .ok_or(OperationError::JwtDisabled)?
                .states(),
        };
        if states.active.is_none() {
            return Err(OperationError::Initializing);
        }
        Ok(states)
    }

    /// Makes and publishes the next authority now.
    ///
    /// # Errors
    /// [`OperationError`]; the active authority is not touched.
    pub async fn prepare(&self, kind: AuthorityKind) -> Result<AuthorityState, OperationError> {
        self.authorities(kind)?;
        let now = self.clock.now();
        let (prepared, what) = match (kind, &self.jwt) {
            (AuthorityKind::X509, _) => (
                self.x509.prepare(now).await,
                "failed to prepare X.509 authority",
            ),
            (AuthorityKind::Jwt, Some(jwt)) => {
                (jwt.prepare(now).await, "failed to prepare JWT authority")
            }
            (AuthorityKind::Jwt, None) => return Err(OperationError::JwtDisabled),
        };
        prepared.map_err(|source| OperationError::Failed { what, source })
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
        let states = self.authorities(kind)?;
        if authority_id.is_empty() {
            return Err(OperationError::NoAuthorityId);
        }
        if is(&states.old, authority_id) {
            return Err(OperationError::NotPrepared("OLD"));
        }
        if !is(&states.prepared, authority_id) {
            return Err(OperationError::UnexpectedAuthorityId);
        }
        let activated = match (kind, &self.jwt) {
            (AuthorityKind::X509, _) => self.x509.activate(authority_id).await,
            (AuthorityKind::Jwt, Some(jwt)) => jwt.activate(authority_id).await,
            (AuthorityKind::Jwt, None) => return Err(OperationError::JwtDisabled),
        };
        // Somebody else was quicker.
        if !activated {
            return Err(OperationError::UnexpectedAuthorityId);
        }
        self.authorities(kind)?
            .active
            .clone()
            .ok_or(OperationError::Initializing)
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
        let states = self.authorities(kind)?;
        if kind == AuthorityKind::X509 && self.has_upstream {
            return Err(OperationError::TaintsBelowUpstream);
        }
        if authority_id.is_empty() {
            return Err(OperationError::NoAuthorityId);
        }
        if is(&states.active, authority_id) {
            return Err(OperationError::TaintsCurrent);
        }
        if is(&states.prepared, authority_id) {
            return Err(OperationError::TaintsNotOld("PREPARED"));
        }
        let old = states
            .old
            .clone()
            .filter(|old| old.authority_id == authority_id);
        let old = old.ok_or(OperationError::UnexpectedAuthorityId)?;
        let (tainted, what) = match kind {
            AuthorityKind::X509 => (
                self.datastore
                    .taint_x509_authority(&self.trust_domain, authority_id)
                    .await,
                "failed to taint X.509 authority",
            ),
            AuthorityKind::Jwt => (
                self.datastore
                    .taint_jwt_authority(&self.trust_domain, authority_id)
                    .await,
                "failed to taint JWT authority",
            ),
        };
        tainted.map_err(|error| OperationError::Failed {
            what,
            source: CaError::Bundle(error),
        })?;
        self.server_svid_due.notify_one();
        Ok(old)
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
        let states = self.authorities(kind)?;
        if kind == AuthorityKind::X509 && self.has_upstream {
            return Err(OperationError::RevokesBelowUpstream);
        }
        if authority_id.is_empty() {
            return Err(OperationError::InvalidAuthorityId(
                "no authority ID provided",
            ));
        }
        if is(&states.active, authority_id) {
            return Err(OperationError::InvalidAuthorityId(
                "unable to use current authority",
            ));
        }
        let (revoked, what) = match kind {
            AuthorityKind::X509 => {
                if !is(&states.old, authority_id) {
                    return Err(OperationError::InvalidAuthorityId(
                        "only Old local authority can be revoked",
                    ));
                }
                let revoked = self
                    .datastore
                    .revoke_x509_authority(&self.trust_domain, authority_id)
                    .await;
                (revoked, "failed to revoke X.509 authority")
            }
            AuthorityKind::Jwt => {
                if is(&states.prepared, authority_id) {
                    return Err(OperationError::InvalidAuthorityId(
                        "unable to use a prepared key",
                    ));
                }
                let bundle = self.datastore.registry().bundle(&self.trust_domain);
                let known = |bundle: &spiffe::bundle::Bundle| {
                    bundle
                        .jwt_authorities
                        .iter()
                        .any(|authority| authority.key_id == authority_id)
                };
                if !bundle.is_some_and(|bundle| known(&bundle)) && !is(&states.old, authority_id) {
                    return Err(OperationError::InvalidAuthorityId(
                        "no JWT authority found with provided authority ID",
                    ));
                }
                let revoked = self
                    .datastore
                    .revoke_jwt_authority(&self.trust_domain, authority_id)
                    .await;
                (revoked, "failed to revoke JWT authority")
            }
        };
        revoked.map(|_| ()).map_err(|error| OperationError::Failed {
            what,
            source: CaError::Bundle(error),
        })
    }

    /// Marks the upstream root that signed the old authority. Gives the key id in lower case.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn taint_upstream(&self, subject_key_id: &str) -> Result<String, OperationError> {
        let id = self.upstream_of_old(subject_key_id, "provided subject key id is not valid")?;
        let tainted = self
            .datastore
            .taint_x509_authority(&self.trust_domain, &id)
            .await;
        tainted.map_err(|error| OperationError::Failed {
            what: "failed to taint upstream authority",
            source: CaError::Bundle(error),
        })?;
        self.server_svid_due.notify_one();
        Ok(id)
    }

    /// Removes the tainted upstream root that signed the old authority.
    ///
    /// # Errors
    /// [`OperationError`]; nothing has changed.
    pub async fn revoke_upstream(&self, subject_key_id: &str) -> Result<String, OperationError> {
        let id = self.upstream_of_old(subject_key_id, "invalid subject key ID")?;
        let revoked = self
            .datastore
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
        if !self.has_upstream {
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

fn is(state: &Option<AuthorityState>, authority_id: &str) -> bool {
    state
        .as_ref()
        .is_some_and(|state| state.authority_id == authority_id)
}
