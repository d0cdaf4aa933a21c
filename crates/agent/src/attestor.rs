//! Who is calling: the workload attestors side by side, each with a deadline, and what they say as one set.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use plugin::workload_attestor::{Peer, WorkloadAttestor};
use spiffe::selector::{Selector, SelectorSet};

/// What one attestor may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a caller has no selectors.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestError {
    #[error("the calling process is gone")]
    Gone,
    #[error("workload attestation failed")]
    Failed,
}

/// All workload attestors of this node.
#[derive(Debug, Clone)]
pub(crate) struct Attestors(Arc<[Arc<dyn WorkloadAttestor>]>);

impl Attestors {
    pub(crate) fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        Self(attestors.into())
    }

    /// The caller's selectors. An attestor that fails or is late is logged and left out.
    ///
    /// # Errors
    /// When no attestor succeeded, or the process ended while it was looked at: what was read then may be another's.
    pub(crate) async fn attest(&self, peer: &Peer) -> Result<SelectorSet, AttestError> {
        let outcomes = match &*self.0 {
            [only] => vec![ask(&**only, peer).await],
            all => join_all(all.iter().map(|attestor| ask(&**attestor, peer))).await,
        };
        if peer.still_alive().is_err() {
            return Err(AttestError::Gone);
        }
        let failed = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        if failed == outcomes.len() {
            return Err(AttestError::Failed);
        }
        Ok(SelectorSet::from(
            outcomes.into_iter().flatten().flatten().collect::<Vec<_>>(),
        ))
    }
}

async fn ask(attestor: &dyn WorkloadAttestor, peer: &Peer) -> Option<Vec<Selector>> {
    match tokio::time::timeout(DEADLINE, attestor.attest(peer)).await {
        Ok(Ok(selectors)) => Some(selectors),
        Ok(Err(error)) => {
            tracing::warn!(attestor = attestor.name(), pid = peer.pid, %error, "workload attestor failed and is left out");
            None
        }
        Err(_elapsed) => {
            tracing::warn!(
                attestor = attestor.name(),
                pid = peer.pid,
                "workload attestor did not answer in time and is left out"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests;
