//! What can be wrong with a process that is looked at.

use std::path::PathBuf;

use config::fault::{Code, Fault};
use spiffe::selector::SelectorError;

use crate::blocking::Interrupted;
use crate::error::{Error, ErrorKind};
use crate::workload_attestor::credentials::MOST_SUPPLEMENTARY_GIDS;

/// Why a process could not be attested.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
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
    /// The others have no selectors.
    #[error(
        "the caller (pid {pid}) has more than {} supplementary groups",
        MOST_SUPPLEMENTARY_GIDS
    )]
    ManyGroups { pid: i32 },
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("the attestation was interrupted")]
    Interrupted,
}

impl From<Interrupted> for Problem {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl Problem {
    /// The same for an operator.
    fn to_fault(&self) -> Fault {
        let fault = |code| Fault::new(code, self.to_string());
        match self {
            Self::Changed { .. } => fault(Code::WorkloadGone),
            Self::Unreadable { .. } => {
                fault(Code::WorkloadUnreadable).hint("run the agent as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")
            }
            Self::TooLarge { .. } => fault(Code::WorkloadUnreadable)
                .hint("raise workload_size_limit of the unix workload attestor (0 is no limit), or set it to -1 to go without sha256"),
            Self::ManyGroups { .. } => fault(Code::WorkloadUnreadable)
                .hint("select the workload by other selectors, or take it out of groups that it does not need"),
            Self::Unintelligible { .. } | Self::Selector(_) | Self::Interrupted => fault(Code::Internal),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let kind = match problem {
            Problem::Changed { .. } => ErrorKind::Denied,
            Problem::TooLarge { .. } | Problem::ManyGroups { .. } => ErrorKind::Permanent,
            Problem::Unreadable { .. } | Problem::Interrupted => ErrorKind::Transient,
            Problem::Unintelligible { .. } | Problem::Selector(_) => ErrorKind::Internal,
        };
        let fault = problem.to_fault();
        Self::from_source(super::NAME, kind, problem).with_fault(fault)
    }
}
