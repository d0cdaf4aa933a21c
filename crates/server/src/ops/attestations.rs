//! Node attestation: a node is attested, gets its SVID and its row is written, or none of the three happens.

use std::sync::Arc;

use plugin::node_attestor::server::Transport;
use spiffe::clock::unix_seconds;
use spiffe::secret::Secret;

use crate::attest::{Attestation, requested_key};
use crate::audit::Fields;
use crate::ca::{Ca, Grant, IssuedX509};
use crate::caller::Caller;
use crate::error::OpError;

#[derive(Debug)]
pub(crate) struct Attestations {
    pub(crate) attestation: Attestation,
    pub(crate) ca: Arc<Ca>,
}

/// What a node sends first.
pub(crate) struct AttestationRequest {
    /// Which node attestor it is to be judged by.
    pub(crate) attestor: String,
    pub(crate) payload: Secret<Vec<u8>>,
    /// SPIRE's agents sign their requests, yet only the key is used.
    pub(crate) csr: Vec<u8>,
}

/// An attested agent.
pub(crate) struct AttestedAgent {
    pub(crate) svid: IssuedX509,
    pub(crate) can_reattest: bool,
}

impl Attestations {
    /// Attests the node at the other end of `transport`, which the attestor may ask what it likes within its budget.
    ///
    /// # Errors
    /// The attestor's refusal; PermissionDenied for a banned node.
    pub(crate) async fn attest(
        &self,
        caller: &Caller,
        request: AttestationRequest,
        transport: &mut dyn Transport,
    ) -> Result<AttestedAgent, OpError> {
        let AttestationRequest {
            attestor,
            payload,
            csr,
        } = request;
        caller.describe(|| Fields::new().with("node_attestor_type", &attestor));
        // Read before the proof is spent, so that a broken request does not cost a token.
        let key = requested_key(&csr)?;
        let attested = self
            .attestation
            .attest(&attestor, payload, transport)
            .await?;
        let can_reattest = attested.can_reattest();
        let id = attested.id().clone();
        let grant = Grant::agent(&attested)
            .with_field("agent_id", &id)
            .with_field("node_attestor_type", attestor);
        let svid = self
            .ca
            .issue_x509(&grant, &key, &caller.record)
            .await
            .map_err(super::not_issued("failed to sign X509 SVID"))?;
        let expires_at = unix_seconds(svid.not_after);
        self.attestation
            .record(attested, svid.serial.clone(), expires_at)
            .await?;
        tracing::info!(agent_id = %id, "Agent attestation request completed");
        Ok(AttestedAgent { svid, can_reattest })
    }
}
