//! The agent's half of node attestation.

use async_trait::async_trait;
use spiffe::secret::Secret;

use crate::error::{Error, ErrorKind};

/// Proves to a server who this node is.
#[async_trait]
pub trait NodeAttestor: Send + Sync + std::fmt::Debug {
    /// The plugin's name, which the server looks its own half up by, such as `join_token`.
    fn name(&self) -> &str;

    /// Whether the node can attest again with what it has. A join token works once.
    fn is_repeatable(&self) -> bool;

    /// Begins an attempt. Proofs on disk are read here, at each attempt, because others renew them.
    ///
    /// # Errors
    /// Transient when another attempt may succeed; otherwise the fault is what the operator gets to read.
    async fn start(&self) -> Result<Box<dyn Attempt>, Error>;
}

/// One attempt: a payload, then an answer to each challenge.
#[async_trait]
pub trait Attempt: Send + std::fmt::Debug {
    /// The first message.
    fn payload(&self) -> &Secret<Vec<u8>>;

    /// The answer to a challenge of the server. The caller bounds their number, size and time
    /// ([`super::MAX_CHALLENGES`], [`super::MAX_MESSAGE`], [`super::TIME_LIMIT`]).
    async fn answer(&mut self, challenge: &[u8]) -> Result<Secret<Vec<u8>>, Error>;
}

/// An attempt of an attestor that is never challenged.
#[derive(Debug)]
pub struct PayloadOnly {
    plugin: &'static str,
    payload: Secret<Vec<u8>>,
}

impl PayloadOnly {
    pub fn new(plugin: &'static str, payload: Secret<Vec<u8>>) -> Self {
        Self { plugin, payload }
    }
}

#[async_trait]
impl Attempt for PayloadOnly {
    fn payload(&self) -> &Secret<Vec<u8>> {
        &self.payload
    }

    async fn answer(&mut self, _challenge: &[u8]) -> Result<Secret<Vec<u8>>, Error> {
        Err(Error::new(
            self.plugin,
            ErrorKind::Permanent,
            "the server sent a challenge, and this node attestor answers none",
        ))
    }
}
