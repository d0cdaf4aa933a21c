//! Where a daemon's private keys live.
//!
//! Owns the trait that both daemons use; the server keeps its authorities' keys there, the agent the keys of its own
//! SVID. Keys go in by name and come out as something that signs, never as bytes.

#[cfg(test)]
pub(crate) mod contract;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use spiffe::key::{KeyError, KeyType, Signer};

use config::fault::{Code, Fault};

/// Keys by name. The names are the caller's, such as `x509-CA-A` or `agent-svid-B` (SPIRE: the same).
#[async_trait]
pub trait KeyManager: Send + Sync + std::fmt::Debug {
    /// Makes a key and stores it under `id`, in place of one that has this name. When it returns, the key survives a
    /// restart if this key manager's keys do at all; when it fails, the former key stands.
    async fn generate_key(&self, id: &str, ty: KeyType) -> Result<Arc<dyn Signer>, Error>;

    /// The key of this name, or nothing.
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, Error>;

    /// All keys, ordered by name.
    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, Error>;
}

/// Why a key manager could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a key needs a name")]
    NoName,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot read the key file {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// `why` tells nothing of the content.
    #[error("the key file {path} is damaged: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("cannot write the key file {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the work on the key was cut off by the shutdown")]
    CutOff,
}

impl Error {
    /// The same for an operator.
    pub fn to_fault(&self) -> Fault {
        match self {
            Self::Read { path, source } => {
                let what = format!("cannot read the key file {}", path.display());
                let hint = format!(
                    "the file must be readable for the daemon's user: ls -l {}",
                    path.display()
                );
                Fault::new(Code::KeyFileUnreadable, what)
                    .because(source)
                    .hint(hint)
            }
            Self::Damaged { path, why } => {
                let what = format!("the key file {} is damaged", path.display());
                Fault::new(Code::KeyFileInvalid, what)
                    .because(why)
                    .hint("restore it from a backup, or move it away to start with new keys")
            }
            Self::Write { path, source } => {
                let code = match source.kind() {
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                        Code::DiskFull
                    }
                    _ => Code::KeyFileUnwritable,
                };
                Fault::new(
                    code,
                    format!("cannot write the key file {}", path.display()),
                )
                .because(source)
                .hint("its directory must exist and be writable for the daemon's user")
            }
            Self::NoName | Self::Key(_) | Self::CutOff => {
                Fault::new(Code::Internal, self.to_string())
            }
        }
    }
}
