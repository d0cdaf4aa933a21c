//! Node attestation: from what an agent shows to who it is, and from that to its row and its SVID.
//!
//! What a node sends goes to the node attestor of its type, within that plugin's budget; what the plugin answers is
//! checked before anything is issued. Of concurrent redeemers of a join token exactly one wins, since the datastore deletes
//! it and says who did. Tokens are secrets until they are used: they appear in no message and no log.

use std::sync::Arc;

use async_trait::async_trait;
use config::fault::Code;
use plugin::builtin::node_attestor::JOIN_TOKEN;
use plugin::join_token::{JoinTokens, TokenRefusal};
use plugin::node_attestor::server::{self as attestor, AgentAttributes, NodeAttestor, Transport};
use plugin::{Error as PluginError, ErrorKind};
use spiffe::clock::Clock;
use spiffe::id::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::secret::Secret;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use crate::datastore::{self, Agents, TokenError};
use crate::error::{Kind, OpError, failed, refused, write_failed};
use crate::registry::{Agent, Registry};

/// A node that a node attestor accepted and that is not banned. Only [`Attestation::attest`] makes one.
#[derive(Debug)]
pub(crate) struct Attested {
    id: SpiffeId,
    attestation_type: String,
    selectors: Vec<Selector>,
    can_reattest: bool,
}

impl Attested {
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whether the node can attest again with the same proof.
    pub(crate) fn can_reattest(&self) -> bool {
        self.can_reattest
    }

    /// As if this node had attested.
    #[cfg(test)]
    pub(crate) fn for_tests(id: SpiffeId) -> Self {
        Self {
            id,
            attestation_type: "test".to_owned(),
            selectors: Vec::new(),
            can_reattest: false,
        }
    }
}

/// The server's node attestors and the rows of attested nodes.
#[derive(Debug)]
pub(crate) struct Attestation {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) agents: Agents,
    /// One of each type.
    pub(crate) attestors: Vec<Arc<dyn NodeAttestor>>,
    /// SPIRE: experimental.agent_spiffe_id_as_selector.
    pub(crate) agent_id_as_selector: bool,
}

impl Attestation {
    /// Attests a node by what it sent, or says why it is not accepted.
    ///
    /// # Errors
    /// InvalidArgument for what the node sent, FailedPrecondition for an attestor that is not configured,
    /// PermissionDenied for a banned node.
    pub(crate) async fn attest(
        &self,
        kind: &str,
        payload: Secret<Vec<u8>>,
        transport: &mut dyn Transport,
    ) -> Result<Attested, OpError> {
        let mut by_type = self.attestors.iter();
        let Some(found) = by_type.find(|one| one.name() == kind) else {
            return Err(failed(
                Kind::FailedPrecondition,
                "error getting node attestor",
                format!("could not find node attestor type \"{kind}\""),
            ));
        };
        let attributes = attestor::attest(found.as_ref(), payload, transport).await;
        let attributes = attributes.map_err(|error| refusal(found.name(), &error))?;
        let mut attested = self.checked(found.name(), attributes)?;
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
            return Err(
                refused(Kind::PermissionDenied, "failed to attest: agent is banned")
                    .with_code(Code::AgentBanned),
            );
        }
        Ok(attested)
    }

    /// An attestor speaks for the agents of its own type alone (SPIRE: `/spire/agent/<type>/…`).
    fn checked(&self, kind: &str, attributes: AgentAttributes) -> Result<Attested, OpError> {
        let id = attributes.agent_id;
        let prefix = format!("/spire/agent/{kind}/");
        if !id.is_member_of(&self.trust_domain) || !id.path().starts_with(&prefix) {
            return Err(failed(
                Kind::Internal,
                "invalid agent ID",
                format!("\"{id}\" is not in the namespace of attestor type \"{kind}\""),
            ));
        }
        Ok(Attested {
            id,
            attestation_type: kind.to_owned(),
            selectors: attributes.selectors,
            can_reattest: attributes.can_reattest,
        })
    }

    /// Writes the node's row for its new SVID. A node that attests again keeps nothing of its former row but the ban,
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
        self.agents
            .put(agent)
            .await
            .map_err(|error| write_failed("failed to create attested agent", &error))
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

/// A refusal has the plugin's message alone: agents match on SPIRE's texts.
fn refusal(attestor: &str, error: &PluginError) -> OpError {
    let kind = match error.kind() {
        ErrorKind::Permanent => Kind::InvalidArgument,
        ErrorKind::Denied => Kind::PermissionDenied,
        ErrorKind::NotOffered => Kind::Unimplemented,
        ErrorKind::Transient => return failed(Kind::Unavailable, "failed to attest", error),
        ErrorKind::Gone | ErrorKind::Internal => {
            return failed(Kind::Internal, "failed to attest", error);
        }
    };
    let refusal = refused(kind, error.to_string());
    match (kind, attestor) {
        (Kind::InvalidArgument, JOIN_TOKEN) => refusal.with_code(Code::JoinTokenRefused),
        (Kind::InvalidArgument | Kind::PermissionDenied, _) => {
            refusal.with_code(Code::AttestationDenied)
        }
        _ => refusal,
    }
}

/// The join tokens of the datastore, for the attestor that redeems them.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) tokens: datastore::Tokens,
    pub(crate) clock: Arc<dyn Clock>,
}

#[async_trait]
impl JoinTokens for Tokens {
    async fn redeem(&self, token: &str) -> Result<(), TokenRefusal> {
        let redeemed = self.tokens.redeem(token, self.clock.now());
        redeemed.await.map_err(|error| match error {
            TokenError::Unknown => TokenRefusal::Unknown,
            TokenError::Expired => TokenRefusal::Expired,
            error => TokenRefusal::Unavailable(error.to_string()),
        })
    }
}

/// The key that a node wants its SVID for. SPIRE's agents sign their requests, yet only the key is used.
///
/// # Errors
/// InvalidArgument.
pub(crate) fn requested_key(csr: &[u8]) -> Result<PublicKey, OpError> {
    match spiffe::csr::Csr::parse_and_verify(csr) {
        Ok(verified) => Ok(verified.public_key().clone()),
        Err(error) => Err(failed(Kind::InvalidArgument, "failed to parse CSR", error)),
    }
}
