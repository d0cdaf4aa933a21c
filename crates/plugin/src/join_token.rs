//! Join tokens as a service of the host: where an agent's token comes from, and how the server redeems one.

use std::path::PathBuf;

use async_trait::async_trait;
use spiffe::secret::Secret;

/// Where an agent's token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    Given(Secret<String>),
    /// The file holds the token alone, and is read when the node attests: once it is attested, the file may be missing.
    File(PathBuf),
}

/// Why a token was not redeemed.
#[derive(Debug, thiserror::Error)]
pub enum TokenRefusal {
    #[error("join token does not exist or has already been used")]
    Unknown,
    #[error("join token expired")]
    Expired,
    /// The store could not be asked.
    #[error("failed to fetch join token: {0}")]
    Unavailable(String),
}

/// What the server offers this plugin: its tokens.
#[async_trait]
pub trait JoinTokens: Send + Sync + std::fmt::Debug {
    /// Uses the token up. Of concurrent callers with the same token one succeeds.
    async fn redeem(&self, token: &str) -> Result<(), TokenRefusal>;
}
