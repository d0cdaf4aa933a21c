//! Node attestation: from what an agent shows to who it is, and from that to its row and its SVID.
//!
//! Only `join_token` is built in so far. Of concurrent redeemers of a token exactly one wins, since the datastore deletes
//! it and says who did. Tokens are secrets until they are used: they appear in no message and no log.

use std::sync::Arc;

use proto::spire::api::server::agent::v1::attest_agent_request::Params;
use spiffe::clock::Clock;
use spiffe::id::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use crate::datastore::{Datastore, TokenError};
use crate::error::{Kind, OpError, failed, refused};
use crate::registry::{Agent, Registry};

/// SPIRE: the attestor's name, the path segment and the attestation type are the same word.
pub(crate) const JOIN_TOKEN: &str = "join_token";

/// What a node attestor found out.
#[derive(Debug)]
pub(crate) struct Attested {
    pub(crate) id: SpiffeId,
    pub(crate) attestation_type: String,
    pub(crate) selectors: Vec<Selector>,
    pub(crate) can_reattest: bool,
}

/// The server's node attestors and the rows of attested nodes.
#[derive(Debug)]
pub(crate) struct Attestation {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) datastore: Datastore,
    pub(crate) clock: Arc<dyn Clock>,
    /// SPIRE: experimental.agent_spiffe_id_as_selector.
    pub(crate) agent_id_as_selector: bool,
}

impl Attestation {
    /// Attests a node by what it sent, or says why it is not accepted.
    ///
    /// # Errors
    /// InvalidArgument for what the node sent, FailedPrecondition for an attestor that is not configured,
    /// PermissionDenied for a banned node.
    pub(crate) async fn attest(&self, params: &Params) -> Result<Attested, OpError> {
        let data = params.data.clone().unwrap_or_default();
        let mut attested = if data.r#type == JOIN_TOKEN {
            self.redeem(&data.payload).await?
        } else {
            return Err(failed(
                Kind::FailedPrecondition,
                "error getting node attestor",
                format!("could not find node attestor type \"{}\"", data.r#type),
            ));
        };
        if self.agent_id_as_selector
            && let Ok(selector) = Selector::new("spiffe_id", attested.id.as_str())
        {
            attested.selectors.push(selector);
        }
        if self
            .registry
            .agent(&attested.id)
            .is_some_and(|agent| agent.banned)
        {
            return Err(refused(
                Kind::PermissionDenied,
                "failed to attest: agent is banned",
            ));
        }
        Ok(attested)
    }

    async fn redeem(&self, payload: &[u8]) -> Result<Attested, OpError> {
        let unknown = "failed to attest: join token does not exist or has already been used";
        let Ok(token) = std::str::from_utf8(payload) else {
            return Err(refused(Kind::InvalidArgument, unknown));
        };
        // Before the token is spent: one that cannot be an ID's segment was never handed out.
        let Ok(id) =
            SpiffeId::from_segments(&self.trust_domain, &["spire", "agent", JOIN_TOKEN, token])
        else {
            return Err(refused(Kind::InvalidArgument, unknown));
        };
        match self
            .datastore
            .redeem_join_token(token, self.clock.now())
            .await
        {
            Ok(()) => {}
            Err(TokenError::Unknown) => return Err(refused(Kind::InvalidArgument, unknown)),
            Err(TokenError::Expired) => {
                return Err(refused(Kind::InvalidArgument, "join token expired"));
            }
            Err(error) => return Err(failed(Kind::Internal, "failed to fetch join token", error)),
        }
        Ok(Attested {
            id,
            attestation_type: JOIN_TOKEN.to_owned(),
            selectors: Vec::new(),
            can_reattest: false,
        })
    }

    /// Writes the node's row for its new SVID. A node that attests anew keeps nothing of its former row but the ban,
    /// which was checked.
    ///
    /// # Errors
    /// Internal when the row cannot be written: the SVID must then not be handed out.
    pub(crate) async fn record(
        &self,
        attested: Attested,
        serial: String,
        expires_at: i64,
    ) -> Result<(), OpError> {
        let agent_version = self
            .registry
            .agent(&attested.id)
            .map(|agent| agent.agent_version.clone());
        let agent = Agent {
            id: attested.id,
            attestation_type: attested.attestation_type,
            serial,
            expires_at,
            new_serial: String::new(),
            new_expires_at: 0,
            can_reattest: attested.can_reattest,
            banned: false,
            selectors: SelectorSet::from(attested.selectors),
            agent_version: agent_version.unwrap_or_default(),
        };
        self.datastore
            .put_agent(agent)
            .await
            .map_err(|error| failed(Kind::Internal, "failed to create attested agent", error))
            .and_then(|written| {
                if written.banned {
                    Err(refused(
                        Kind::PermissionDenied,
                        "failed to attest: agent is banned",
                    ))
                } else {
                    Ok(())
                }
            })
    }
}

/// The key that a node wants its SVID for. SPIRE's agents sign their requests, yet only the key is used.
///
/// # Errors
/// InvalidArgument.
pub(crate) fn requested_key(csr: &[u8]) -> Result<PublicKey, OpError> {
    match spiffe::csr::Csr::parse_and_verify(csr) {
        Ok(verified) => Ok(verified.public_key),
        Err(error) => Err(failed(Kind::InvalidArgument, "failed to parse CSR", error)),
    }
}
