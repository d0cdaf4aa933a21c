//! Where a daemon's private keys live.
//!
//! Owns the trait that both daemons use; the server keeps its authorities' keys there, the agent the keys of its own
//! SVID. Keys go in by name and come out as something that signs, never as bytes.

#[cfg(test)]
pub(crate) mod contract;
mod tls;

use std::sync::Arc;

use async_trait::async_trait;
use spiffe::key::{KeyType, Signer};

use crate::error::Error;
pub use tls::signing_key;

/// Keys by name. The names are the caller's, such as `x509-CA-A` or `agent-svid-B` (SPIRE: the same).
#[async_trait]
pub trait KeyManager: Send + Sync + std::fmt::Debug {
    /// Whether keys are meant to survive a restart. If so, a key that is gone was lost.
    fn is_persistent(&self) -> bool {
        true
    }

    /// Makes a key and stores it under `id`, in place of one that has this name. When it returns, the key survives a
    /// restart if this key manager's keys do at all; when it fails, the former key stands.
    async fn generate_key(&self, id: &str, ty: KeyType) -> Result<Arc<dyn Signer>, Error>;

    /// The key of this name, or nothing.
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, Error>;

    /// All keys, ordered by name.
    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, Error>;
}
