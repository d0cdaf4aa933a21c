//! The server's half of node attestation, and what a conversation with an unattested node may cost.
//!
//! [`attest`] is the only way to hold a [`Conversation`], and it enforces the attestor's [`Budget`]: the peer is unknown
//! until the attestor returns, so time, bytes and expensive checks are paid for in advance.

use std::time::Duration;

use async_trait::async_trait;
use spiffe::id::SpiffeId;
use spiffe::secret::Secret;
use spiffe::selector::Selector;

use super::{MAX_CHALLENGES, MAX_MESSAGE, TIME_LIMIT};
use crate::error::{Error, ErrorKind};

/// Finds out which agent a node is.
#[async_trait]
pub trait NodeAttestor: Send + Sync + std::fmt::Debug {
    /// The plugin's name, which is the attestation type and the type of its selectors, such as `join_token`.
    fn name(&self) -> &str;

    /// What one conversation may cost.
    fn budget(&self) -> Budget {
        Budget::default()
    }

    /// Attests the node at the other end of the conversation.
    ///
    /// # Errors
    /// Permanent for a malformed or unknown proof, Denied for a good proof of a node that is not accepted, Transient when a
    /// service that has to be asked is away.
    async fn attest(&self, conversation: &mut Conversation<'_>) -> Result<AgentAttributes, Error>;
}

/// What an attestor says of a node. The server checks it before anything is issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentAttributes {
    /// `spiffe://<td>/spire/agent/<attestor>/…`.
    pub agent_id: SpiffeId,
    pub selectors: Vec<Selector>,
    /// Whether the node can attest again with the same proof.
    pub can_reattest: bool,
}

/// What one conversation may cost before the peer is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// From the first message to the verdict.
    pub time: Duration,
    /// Of all messages from the peer together.
    pub bytes: usize,
    pub challenges: u32,
    /// Signatures of the peer's making that may be verified, and calls to a service that may be made on its behalf.
    pub checks: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            time: TIME_LIMIT,
            bytes: 2 * MAX_MESSAGE,
            challenges: MAX_CHALLENGES,
            checks: 8,
        }
    }
}

/// Carries messages between the attestor and its peer.
#[async_trait]
pub trait Transport: Send {
    /// Sends a challenge and waits for the answer.
    ///
    /// # Errors
    /// Gone when the peer went away or sent something other than an answer.
    async fn exchange(&mut self, challenge: Vec<u8>) -> Result<Secret<Vec<u8>>, Error>;
}

/// The conversation with one unknown node.
pub struct Conversation<'a> {
    plugin: String,
    payload: Secret<Vec<u8>>,
    transport: &'a mut dyn Transport,
    left: Budget,
}

impl std::fmt::Debug for Conversation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation")
            .field("plugin", &self.plugin)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Conversation<'_> {
    /// The node's first message.
    pub fn payload(&self) -> &[u8] {
        self.payload.expose()
    }

    /// Asks the node something.
    ///
    /// # Errors
    /// Gone when the peer went away, Denied when the budget is spent.
    pub async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Secret<Vec<u8>>, Error> {
        let Some(challenges) = self.left.challenges.checked_sub(1) else {
            return Err(self.over("challenges"));
        };
        self.left.challenges = challenges;
        let answer = self.transport.exchange(challenge).await?;
        self.receive(answer.expose().len())?;
        Ok(answer)
    }

    /// To be called before each check that costs: a signature by a key of the peer's choice, a call to a service.
    ///
    /// # Errors
    /// Denied when the budget is spent.
    pub fn pay_for_check(&mut self) -> Result<(), Error> {
        let Some(checks) = self.left.checks.checked_sub(1) else {
            return Err(self.over("checks"));
        };
        self.left.checks = checks;
        Ok(())
    }

    fn receive(&mut self, bytes: usize) -> Result<(), Error> {
        match self.left.bytes.checked_sub(bytes) {
            Some(left) if bytes <= MAX_MESSAGE => {
                self.left.bytes = left;
                Ok(())
            }
            _ => Err(self.over("bytes")),
        }
    }

    fn over(&self, what: &str) -> Error {
        let message = format!("the node attestation took more {what} than allowed");
        Error::new(self.plugin.clone(), ErrorKind::Denied, message)
    }
}

/// Runs one conversation within the attestor's budget.
///
/// # Errors
/// The attestor's, or Denied when the budget is spent.
pub async fn attest(
    attestor: &dyn NodeAttestor,
    payload: Secret<Vec<u8>>,
    transport: &mut dyn Transport,
) -> Result<AgentAttributes, Error> {
    let budget = attestor.budget();
    let mut conversation = Conversation {
        plugin: attestor.name().to_owned(),
        payload,
        transport,
        left: budget,
    };
    conversation.receive(conversation.payload().len())?;
    match tokio::time::timeout(budget.time, attestor.attest(&mut conversation)).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(conversation.over("time")),
    }
}

#[cfg(test)]
mod tests;
