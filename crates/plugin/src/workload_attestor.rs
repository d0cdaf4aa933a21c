//! Who is on the other end of a Unix socket, and what attestors say about it.
//!
//! Owns [`Peer`], the hold on a calling process that lets nothing take its place unseen, and the trait of those who
//! turn a process into selectors. An attestor reads about the process first and asks [`Peer::still_alive`] after: only
//! then was everything it read about this process and not about another that got its number.

mod peer;

pub use peer::Peer;

use std::path::PathBuf;

use async_trait::async_trait;
use spiffe::selector::{Selector, SelectorError};

use config::fault::{Code, Fault};

/// Says what is true of a process, as selectors of the type that is the attestor's name.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync + std::fmt::Debug {
    /// The name, which is the type of its selectors, such as `unix`.
    fn name(&self) -> &str;

    /// The selectors of this process, complete or not at all.
    async fn attest(&self, peer: &Peer) -> Result<Vec<Selector>, Error>;
}

/// Why a process could not be attested.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no number for it: it lives in a PID namespace that this one does not see.
    #[error("the caller's process is not visible from the agent's PID namespace")]
    NotVisible,
    #[error("the caller (pid {pid}) ended while it was being identified")]
    Gone { pid: i32 },
    /// It runs as another user or group than the one that connected, as after starting a set-user-ID program.
    #[error("the caller (pid {pid}) changed its user or group after it connected")]
    Changed { pid: i32 },
    #[error("cannot read {what} of the caller (pid {pid}): {source}")]
    Unreadable {
        pid: i32,
        what: &'static str,
        source: std::io::Error,
    },
    #[error("cannot make sense of {what} of the caller (pid {pid})")]
    Unintelligible { pid: i32, what: &'static str },
    /// SPIRE: `workload … exceeds size limit`.
    #[error("workload {path} exceeds size limit ({size} > {limit})")]
    TooLarge {
        path: PathBuf,
        size: u64,
        limit: u64,
    },
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("cannot identify the caller: {0}")]
    Socket(#[source] std::io::Error),
    #[error("the attestation was cut off by the shutdown")]
    CutOff,
}

impl Error {
    /// The same for an operator.
    pub fn to_fault(&self) -> Fault {
        let fault = |code| Fault::new(code, self.to_string());
        match self {
            Self::NotVisible => fault(Code::WorkloadUnreadable)
                .hint("run the agent in the host's PID namespace (Kubernetes: hostPID: true)"),
            Self::Gone { .. } | Self::Changed { .. } => fault(Code::WorkloadGone),
            Self::Unreadable { .. } => {
                fault(Code::WorkloadUnreadable).hint("run the agent as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")
            }
            Self::TooLarge { .. } => fault(Code::WorkloadUnreadable)
                .hint("raise workload_size_limit of the unix workload attestor, or set it to -1 to go without sha256"),
            Self::Unintelligible { .. } | Self::Selector(_) | Self::Socket(_) | Self::CutOff => fault(Code::Internal),
        }
    }
}
