//! Attested nodes: finding, banning and removing them, renewing their SVIDs, and what they report of themselves.

use std::sync::Arc;

use config::fault::Code;
use spiffe::clock::unix_seconds;
use spiffe::id::SpiffeId;

use crate::attest::requested_key;
use crate::audit::Fields;
use crate::ca::{Ca, Grant, IssuedX509};
use crate::caller::Caller;
use crate::datastore::{self, AgentWriteError};
use crate::error::{AgentRefusal, Kind, OpError, failed, refused, write_failed};
use crate::registry::{Agent, AgentFilter, AgentPatch, Listing, Page, Registry};

/// SPIRE: the version's column width.
const MAX_VERSION: usize = 255;

#[derive(Debug)]
pub(crate) struct Agents {
    pub(crate) registry: Arc<Registry>,
    pub(crate) agents: datastore::Agents,
    pub(crate) ca: Arc<Ca>,
}

impl Agents {
    pub(crate) fn count(&self, filter: &AgentFilter) -> usize {
        self.registry.agent_count(filter)
    }

    /// # Errors
    /// InvalidArgument when the page token is not one of this server's.
    pub(crate) fn list(
        &self,
        filter: &AgentFilter,
        page: &Page,
    ) -> Result<Listing<Arc<Agent>>, OpError> {
        self.registry
            .agents(filter, page)
            .map_err(|error| failed(Kind::InvalidArgument, "failed to list agents", error))
    }

    /// # Errors
    /// NotFound.
    pub(crate) fn get(&self, id: &SpiffeId) -> Result<Arc<Agent>, OpError> {
        self.registry.agent(id).ok_or_else(not_found)
    }

    /// Removes an agent. It may attest again.
    ///
    /// # Errors
    /// NotFound, or the store could not write.
    pub(crate) async fn delete(&self, id: &SpiffeId) -> Result<(), OpError> {
        let deleted = self.agents.delete(id).await;
        deleted.map_err(|error| refusal(error, "failed to remove agent"))?;
        tracing::info!(spiffe_id = %id, "Agent deleted");
        Ok(())
    }

    /// Bans an agent until it is removed.
    ///
    /// # Errors
    /// NotFound, or the store could not write.
    pub(crate) async fn ban(&self, id: &SpiffeId) -> Result<(), OpError> {
        let banned = self.agents.ban(id).await;
        banned.map_err(|error| refusal(error, "failed to ban agent"))?;
        tracing::info!(spiffe_id = %id, "Agent banned");
        Ok(())
    }

    /// Issues the calling agent its next SVID, which counts from its first use. Of the CSR only the key is used.
    ///
    /// # Errors
    /// PermissionDenied for an agent that has to attest again instead.
    pub(crate) async fn renew(
        &self,
        caller: &Caller,
        csr: Option<&[u8]>,
    ) -> Result<IssuedX509, OpError> {
        let agent = caller.agent()?;
        let id = agent.id();
        caller.describe(|| Fields::new().with("spiffe_id", id));
        if self.get(id)?.can_reattest {
            let refusal = "agent must reattest instead of renew";
            return Err(refused(Kind::PermissionDenied, refusal).agent(AgentRefusal::MustReattest));
        }
        let csr = csr.ok_or_else(|| refused(Kind::InvalidArgument, "params cannot be nil"))?;
        if csr.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing CSR"));
        }
        let key = requested_key(csr)?;
        let grant = Grant::renewal(agent).with_field("csr", spiffe::digest::sha256_hex(csr));
        let issued = self
            .ca
            .issue_x509(&grant, &key, &caller.record)
            .await
            .map_err(super::not_issued("failed to sign X509 SVID"))?;
        // A ban or an eviction during the signature counts: what was signed then is thrown away.
        let renewed = self.agents.renew(
            id,
            agent.serial(),
            &issued.serial,
            unix_seconds(issued.not_after),
        );
        match renewed.await {
            Ok(_) => Ok(issued),
            Err(error) => Err(refusal(error, "failed to update agent")),
        }
    }

    /// Keeps the version that an agent says it is. Costs a write only when it is another than before, and only when
    /// `may_write` then allows it: how often it is told is the agent's choice.
    ///
    /// # Errors
    /// InvalidArgument for what is no version, since operators read it on their terminals.
    pub(crate) async fn report_version(
        &self,
        id: &SpiffeId,
        version: &str,
        may_write: impl FnOnce() -> bool,
    ) -> Result<(), OpError> {
        Self::check_version(version)?;
        let agent = self.registry.agent(id);
        let is_known = agent.is_some_and(|agent| agent.agent_version == version);
        if version.is_empty() || is_known || !may_write() {
            return Ok(());
        }
        let patch = AgentPatch {
            agent_version: Some(version.to_owned()),
            ..AgentPatch::default()
        };
        self.patch(id, patch).await
    }

    /// Refuses what is no version. Asked before a call waits for its turn, so that what waits is small.
    ///
    /// # Errors
    /// InvalidArgument.
    pub(crate) fn check_version(version: &str) -> Result<(), OpError> {
        if version.len() > MAX_VERSION {
            let what = "agent version is too long (max 255 characters)";
            return Err(refused(Kind::InvalidArgument, what));
        }
        if version.chars().any(char::is_control) {
            let what = "agent version contains control characters";
            return Err(refused(Kind::InvalidArgument, what));
        }
        Ok(())
    }

    async fn patch(&self, id: &SpiffeId, patch: AgentPatch) -> Result<(), OpError> {
        let outcome = self.agents.update(id, patch).await;
        outcome
            .map(|_| ())
            .map_err(|error| refusal(error, "failed to update agent"))
    }
}

fn not_found() -> OpError {
    refused(Kind::NotFound, "agent not found").with_code(Code::AgentNotFound)
}

fn refusal(error: AgentWriteError, what: &str) -> OpError {
    match error {
        AgentWriteError::NotFound => not_found(),
        AgentWriteError::Banned => {
            refused(Kind::PermissionDenied, error.to_string()).agent(AgentRefusal::Banned)
        }
        // As for a call that waited: the agent tries again under the SVID that it holds now.
        AgentWriteError::Superseded => refused(Kind::Unavailable, error.to_string()),
        other => write_failed(what, &other),
    }
}
