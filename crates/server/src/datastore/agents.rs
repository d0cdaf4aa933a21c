//! Writes of attested nodes.

use std::sync::Arc;
use std::time::SystemTime;

use spiffe::clock::unix_seconds;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;

use super::draft::Draft;
use super::write_queue::WriteQueue;
use super::{DatastoreError, PRUNE_BATCH};
use crate::registry::{Agent, AgentPatch, Kind, Object};

/// Why an agent was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentWriteError {
    #[error("agent not found")]
    NotFound,
    /// The agent has been banned since the caller looked.
    #[error("agent is banned")]
    Banned,
    /// The agent has been banned, or its renewed SVID replaced, since the caller looked.
    #[error("agent SVID is not the latest one")]
    Superseded,
    #[error(transparent)]
    Store(#[from] DatastoreError),
}

/// The handle by which attested nodes are written.
#[derive(Debug, Clone)]
pub struct Agents(pub(super) Arc<WriteQueue>);

impl Agents {
    /// Writes an attested agent, new or re-attested. Attesting again does not lift a ban, not even one that came after
    /// the caller looked: the agent then stays banned and without a valid SVID.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn put(&self, agent: Agent) -> Result<Arc<Agent>, DatastoreError> {
        let agent = Arc::new(agent);
        self.0
            .submit(1, move |draft| {
                let mut agent = Arc::clone(&agent);
                if draft.agent(&agent.id).is_some_and(|known| known.banned) {
                    let banned = Arc::make_mut(&mut agent);
                    banned.banned = true;
                    banned.serial.clear();
                    banned.new_serial.clear();
                }
                draft.put(Object::Agent(Arc::clone(&agent)));
                agent
            })
            .await
    }

    /// Writes the given fields of an agent.
    ///
    /// # Errors
    /// [`AgentWriteError::NotFound`], or the store could not write.
    pub async fn update(
        &self,
        id: &SpiffeId,
        patch: AgentPatch,
    ) -> Result<Arc<Agent>, AgentWriteError> {
        self.change_agent(id, move |agent| {
            let AgentPatch {
                serial,
                expires_at,
                new_serial,
                new_expires_at,
                can_reattest,
                selectors,
                agent_version,
            } = patch.clone();
            agent.serial = serial.unwrap_or_else(|| agent.serial.clone());
            agent.expires_at = expires_at.unwrap_or(agent.expires_at);
            agent.new_serial = new_serial.unwrap_or_else(|| agent.new_serial.clone());
            agent.new_expires_at = new_expires_at.unwrap_or(agent.new_expires_at);
            agent.can_reattest = can_reattest.unwrap_or(agent.can_reattest);
            agent.selectors = selectors.unwrap_or_else(|| agent.selectors.clone());
            agent.agent_version = agent_version.unwrap_or_else(|| agent.agent_version.clone());
            Ok(())
        })
        .await
    }

    /// The agent has shown the SVID of its renewal: that one becomes the current.
    ///
    /// # Errors
    /// [`AgentWriteError::Superseded`] when `new_serial` is no longer the one of the last renewal,
    /// [`AgentWriteError::NotFound`], or the store could not write.
    pub async fn promote_serial(
        &self,
        id: &SpiffeId,
        new_serial: &str,
    ) -> Result<Arc<Agent>, AgentWriteError> {
        let new_serial = new_serial.to_owned();
        self.change_agent(id, move |agent| {
            if agent.serial == new_serial && !agent.banned {
                // Another connection of the same agent was first.
                return Ok(());
            }
            if agent.banned || agent.new_serial.is_empty() || agent.new_serial != new_serial {
                return Err(AgentWriteError::Superseded);
            }
            agent.serial = std::mem::take(&mut agent.new_serial);
            agent.expires_at = std::mem::take(&mut agent.new_expires_at);
            Ok(())
        })
        .await
    }

    /// Writes the SVID of a renewal, which counts from its first use. `held` is the serial of the SVID that the agent
    /// renewed: if it comes from the renewal before, it becomes the current one.
    ///
    /// # Errors
    /// [`AgentWriteError::Banned`], [`AgentWriteError::Superseded`] when `held` is no longer valid,
    /// [`AgentWriteError::NotFound`], or the store could not write.
    pub async fn renew(
        &self,
        id: &SpiffeId,
        held: &str,
        new_serial: &str,
        new_expires_at: i64,
    ) -> Result<Arc<Agent>, AgentWriteError> {
        let (held, new_serial) = (held.to_owned(), new_serial.to_owned());
        self.change_agent(id, move |agent| {
            if agent.banned {
                return Err(AgentWriteError::Banned);
            }
            if held.is_empty() || (agent.serial != held && agent.new_serial != held) {
                return Err(AgentWriteError::Superseded);
            }
            if agent.serial != held {
                agent.serial = std::mem::take(&mut agent.new_serial);
                agent.expires_at = agent.new_expires_at;
            }
            agent.new_serial.clone_from(&new_serial);
            agent.new_expires_at = new_expires_at;
            Ok(())
        })
        .await
    }

    /// Bans: the agent keeps its place and has no valid SVID any more.
    ///
    /// # Errors
    /// [`AgentWriteError::NotFound`], or the store could not write.
    pub async fn ban(&self, id: &SpiffeId) -> Result<Arc<Agent>, AgentWriteError> {
        self.change_agent(id, |agent| {
            agent.banned = true;
            agent.serial.clear();
            agent.new_serial.clear();
            Ok(())
        })
        .await
    }

    /// Deletes an agent, and the alias entry that its join token made for it.
    ///
    /// # Errors
    /// [`AgentWriteError::NotFound`], or the store could not write.
    pub async fn delete(&self, id: &SpiffeId) -> Result<Arc<Agent>, AgentWriteError> {
        let id = id.clone();
        self.0
            .submit(1, move |draft| {
                let agent = draft.agent(&id).ok_or(AgentWriteError::NotFound)?;
                delete(draft, &agent);
                Ok(agent)
            })
            .await?
    }

    /// Deletes agents whose SVID ended before `expired_before`, banned ones excepted; those that can't attest again
    /// only when asked. Returns the deleted; call again while there are any.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn prune(
        &self,
        expired_before: SystemTime,
        include_non_reattestable: bool,
    ) -> Result<Vec<Arc<Agent>>, DatastoreError> {
        let before = unix_seconds(expired_before);
        let expired = move |agent: &Agent| {
            agent.expires_at < before
                && !agent.banned
                && (include_non_reattestable || agent.can_reattest)
        };
        if !self
            .0
            .registry
            .read()
            .agents
            .iter()
            .any(|agent| expired(agent))
        {
            return Ok(Vec::new());
        }
        self.0
            .submit(1, move |draft| {
                let candidates = draft
                    .committed()
                    .agents
                    .iter()
                    .filter(|agent| expired(agent))
                    .take(PRUNE_BATCH);
                let mut pruned = Vec::new();
                for agent in candidates {
                    if let Some(agent) = draft.agent(&agent.id).filter(|agent| expired(agent)) {
                        delete(draft, &agent);
                        pruned.push(agent);
                    }
                }
                pruned
            })
            .await
    }

    async fn change_agent(
        &self,
        id: &SpiffeId,
        change: impl Fn(&mut Agent) -> Result<(), AgentWriteError> + Send + 'static,
    ) -> Result<Arc<Agent>, AgentWriteError> {
        let id = id.clone();
        self.0
            .submit(1, move |draft| {
                let mut agent = Agent::clone(&*draft.agent(&id).ok_or(AgentWriteError::NotFound)?);
                change(&mut agent)?;
                let agent = Arc::new(agent);
                draft.put(Object::Agent(Arc::clone(&agent)));
                Ok(agent)
            })
            .await?
    }
}

fn delete(draft: &mut Draft<'_>, agent: &Agent) {
    draft.delete(Kind::Agent, agent.id.as_str());
    if agent.attestation_type == "join_token" {
        for alias in draft.entries_under(&agent.id, |entry| is_token_alias(entry, &agent.id)) {
            draft.delete(Kind::Entry, &alias.id);
        }
    }
}

/// Whether this is the entry that creating a join token for an agent ID made: the token's agent is its parent, and
/// its one selector says the same.
fn is_token_alias(entry: &Entry, agent: &SpiffeId) -> bool {
    entry.parent_id == *agent
        && matches!(entry.selectors.as_slice(), [only] if only.kind() == "spiffe_id" && only.value() == agent.as_str())
}
