//! Who is calling: the workload attestors side by side, each with a deadline and a limit of its own, and what they say as
//! one set of selectors.
//!
//! An attestor that fails for a moment must not turn a running workload into one without an identity. So an
//! [`Attestation`] says what it lacks, and only a complete one is a reason to refuse a caller.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use config::fault::{Code, Fault};
use futures_util::future::join_all;
use plugin::blocking::Turns;
use plugin::error::{Error, ErrorKind};
use plugin::workload_attestor::{Attested, Peer, WorkloadAttestor};
use spiffe::selector::{Selector, SelectorSet};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// What is known of a process this long ago is known of it: the streams of one process ask together.
const FRESH: Duration = Duration::from_millis(100);

/// Why a caller is refused whatever else is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttestError {
    #[error("the calling process has exited")]
    Gone,
    /// It is not the process that connected any more, as after starting a set-user-ID program.
    #[error("the calling process is not who connected")]
    Denied,
}

/// What is known of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attestation {
    pub(crate) selectors: SelectorSet,
    /// Attestors that could not say all. The caller may have selectors of their types that are not here.
    pub(crate) incomplete: Vec<Incomplete>,
}

/// An attestor that could not say all, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Incomplete {
    pub(crate) attestor: String,
    pub(crate) fault: Fault,
}

impl Attestation {
    /// The selectors to go on with when the caller was attested before: what an attestor could not say now is what it
    /// said then. An attestor whose new word contradicts its old one is not completed from it: the process changed.
    pub(crate) fn completed_from(&self, before: &SelectorSet) -> SelectorSet {
        let of = |set: &SelectorSet, kind: &str| -> BTreeSet<Selector> {
            let all = set.iter().filter(|selector| selector.kind() == kind);
            all.cloned().collect()
        };
        let mut selectors: Vec<Selector> = self.selectors.iter().cloned().collect();
        for Incomplete { attestor, .. } in &self.incomplete {
            let (then, now) = (of(before, attestor), of(&self.selectors, attestor));
            if now.is_subset(&then) {
                selectors.extend(then);
            }
        }
        SelectorSet::from(selectors)
    }
}

/// A connected process, and what was last found out about it.
#[derive(Debug)]
pub(crate) struct Workload {
    peer: Arc<Peer>,
    /// Held while attesting, so that many streams of one process are one attestation.
    last: Mutex<Option<(Instant, Arc<Attestation>)>>,
}

impl Workload {
    pub(crate) fn new(peer: Arc<Peer>) -> Self {
        Self {
            peer,
            last: Mutex::default(),
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// All workload attestors of this node.
#[derive(Debug, Clone)]
pub(crate) struct Attestors {
    all: Arc<[Limited]>,
    fresh: Duration,
}

/// A user has one of so many parts of an attestor's turns: one whose processes are slow to attest delays nobody else's.
const PARTS: usize = 4;

/// An attestor, and how many callers it looks at at the same time.
#[derive(Debug)]
struct Limited {
    attestor: Arc<dyn WorkloadAttestor>,
    turns: Turns,
}

impl Attestors {
    pub(crate) fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        let limited = |attestor: Arc<dyn WorkloadAttestor>| {
            let overall = attestor.concurrency();
            Limited {
                turns: Turns::new(overall, (overall / PARTS).max(1)),
                attestor,
            }
        };
        Self {
            all: attestors.into_iter().map(limited).collect(),
            fresh: FRESH,
        }
    }

    /// Looks again each time.
    #[cfg(test)]
    pub(crate) fn always_fresh(self) -> Self {
        Self {
            fresh: Duration::ZERO,
            ..self
        }
    }

    /// What the attestors say of the caller now, or said a moment ago.
    ///
    /// # Errors
    /// When the process exited or became another's: then nothing that was read about it counts.
    pub(crate) async fn attest(
        &self,
        workload: &Workload,
    ) -> Result<Arc<Attestation>, AttestError> {
        let mut last = workload.last.lock().await;
        if let Some((when, attestation)) = &*last
            && when.elapsed() < self.fresh
        {
            let alive = workload.peer.still_alive();
            return alive
                .map(|()| Arc::clone(attestation))
                .map_err(|_gone| AttestError::Gone);
        }
        let attestation = Arc::new(self.attest_now(&workload.peer).await?);
        *last = Some((Instant::now(), Arc::clone(&attestation)));
        Ok(attestation)
    }

    async fn attest_now(&self, peer: &Peer) -> Result<Attestation, AttestError> {
        let outcomes = match &*self.all {
            [only] => vec![only.ask(peer).await],
            all => join_all(all.iter().map(|attestor| attestor.ask(peer))).await,
        };
        if peer.still_alive().is_err() {
            return Err(AttestError::Gone);
        }
        let mut selectors = Vec::new();
        let mut incomplete = Vec::new();
        for (limited, outcome) in self.all.iter().zip(outcomes) {
            let attestor = || limited.attestor.name().to_owned();
            let fault = match outcome {
                Ok(attested) => {
                    selectors.extend(attested.selectors);
                    attested.incomplete.map(|error| error.to_fault())
                }
                Err(Failure::Late(deadline)) => Some(
                    Fault::new(
                        Code::PluginUnavailable,
                        format!(
                            "the workload attestor {} did not answer in time",
                            attestor()
                        ),
                    )
                    .because(format!("no answer within {} s", deadline.as_secs())),
                ),
                Err(Failure::Failed(error)) => match error.kind() {
                    ErrorKind::Gone => return Err(AttestError::Gone),
                    ErrorKind::Denied => return Err(AttestError::Denied),
                    _ => Some(error.to_fault()),
                },
            };
            if let Some(fault) = fault {
                incomplete.push(Incomplete {
                    attestor: attestor(),
                    fault,
                });
            }
        }
        Ok(Attestation {
            selectors: SelectorSet::from(selectors),
            incomplete,
        })
    }
}

enum Failure {
    Late(Duration),
    Failed(Error),
}

impl Limited {
    /// Waits for a turn and for the answer, together no longer than the attestor's deadline.
    async fn ask(&self, peer: &Peer) -> Result<Attested, Failure> {
        let deadline = self.attestor.deadline();
        let answer = async {
            let turn = self.turns.take(peer.uid).await;
            let _turn =
                turn.map_err(|_shutdown| Error::interrupted(self.attestor.name().to_owned()))?;
            self.attestor.attest(peer).await
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(attested)) => Ok(attested),
            Ok(Err(error)) => Err(Failure::Failed(error)),
            Err(_elapsed) => Err(Failure::Late(deadline)),
        }
    }
}

#[cfg(test)]
mod tests;
