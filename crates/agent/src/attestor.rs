//! Who is calling: the workload attestors side by side, each with a deadline, a limit and a breaker of its own, and what
//! they say as one set of selectors.
//!
//! An attestor that fails for a moment must not turn a running workload into one without an identity. So an
//! [`Attestation`] says what it lacks, and only a complete one is a reason to refuse a caller.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use config::fault::{Code, Fault};
use daemon::telemetry::{CallError, Telemetry};
use futures_util::future::join_all;
use plugin::blocking::WorkLimits;
use plugin::error::{Error, ErrorKind};
use plugin::workload_attestor::{Attested, Peer, PeerError, Referenced, WorkloadAttestor};
use spiffe::selector::{Selector, SelectorSet};
use tokio::sync::Mutex;
use tokio::time::Instant;

mod breaker;

use crate::metrics::WORKLOAD_ATTESTOR;
use breaker::{Admission, Breaker};

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

/// Why what a broker names is not attested.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReferenceError {
    #[error(transparent)]
    Attest(#[from] AttestError),
    #[error(transparent)]
    Process(#[from] PeerError),
    #[error("no workload attestor supports references of type {0}")]
    NotSupported(String),
}

impl CallError for AttestError {
    fn status(&self) -> &'static str {
        match self {
            Self::Gone => "NotFound",
            Self::Denied => "PermissionDenied",
        }
    }
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
    telemetry: Telemetry,
}

/// A user has one of so many parts of an attestor's turns: one whose processes are slow to attest delays nobody else's.
const PARTS: usize = 4;

/// What is no process has no user: all such references share one part of the turns.
const NO_USER: u32 = u32::MAX;

/// An attestor, how many callers it looks at at the same time, and whether it is asked at all.
#[derive(Debug)]
struct Limited {
    attestor: Arc<dyn WorkloadAttestor>,
    turns: WorkLimits,
    breaker: Breaker,
}

impl Attestors {
    pub(crate) fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        let limited = |attestor: Arc<dyn WorkloadAttestor>| {
            let overall = attestor.concurrency();
            Limited {
                turns: WorkLimits::new(overall, (overall / PARTS).max(1)),
                breaker: Breaker::default(),
                attestor,
            }
        };
        Self {
            all: attestors.into_iter().map(limited).collect(),
            fresh: FRESH,
            telemetry: Telemetry::default(),
        }
    }

    /// The same, measuring what it does.
    pub(crate) fn with_telemetry(self, telemetry: Telemetry) -> Self {
        Self { telemetry, ..self }
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
            [only] => vec![only.attest(peer, &self.telemetry).await],
            all => {
                let asked = all.iter();
                join_all(asked.map(|limited| limited.attest(peer, &self.telemetry))).await
            }
        };
        if peer.still_alive().is_err() {
            return Err(AttestError::Gone);
        }
        self.collect(outcomes)
    }

    /// What the attestors say of what a broker names. A process is looked at as it is now, whatever it ran as when it was
    /// named; the hold on it is the caller's, so that it is the same process each time.
    ///
    /// # Errors
    /// When the process exited, or no attestor knows references of this type.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for the Broker API and `explain --pid`")
    )]
    pub(crate) async fn attest_reference(
        &self,
        referenced: &Referenced,
    ) -> Result<Attestation, ReferenceError> {
        let reference = match referenced {
            Referenced::Process(peer) => {
                let peer = peer.with_present_owner()?;
                return Ok(self.attest_now(&peer).await?);
            }
            Referenced::Object(reference) => reference,
        };
        let asked = self.all.iter().map(|limited| {
            let attestor = &limited.attestor;
            let question = attestor.attest_reference(reference);
            limited.ask(NO_USER, question, &self.telemetry)
        });
        let outcomes = join_all(asked).await;
        let knows_none = |outcome: &Result<Attested, Failure>| matches!(outcome, Err(Failure::Failed(error)) if error.kind() == ErrorKind::NotOffered);
        if outcomes.iter().all(knows_none) {
            return Err(ReferenceError::NotSupported(reference.type_url.clone()));
        }
        // Those that do not know this type lack nothing.
        let outcomes = outcomes.into_iter().map(|outcome| {
            if knows_none(&outcome) {
                Ok(Attested::default())
            } else {
                outcome
            }
        });
        Ok(self.collect(outcomes.collect())?)
    }

    /// One attestation of what each attestor said.
    fn collect(
        &self,
        outcomes: Vec<Result<Attested, Failure>>,
    ) -> Result<Attestation, AttestError> {
        let mut selectors = Vec::new();
        let mut incomplete = Vec::new();
        for (limited, outcome) in self.all.iter().zip(outcomes) {
            let attestor = limited.attestor.name();
            let fault = match outcome {
                Ok(attested) => {
                    selectors.extend(attested.selectors);
                    attested.incomplete.map(|error| error.to_fault())
                }
                Err(Failure::Failed(error)) => match error.kind() {
                    ErrorKind::Gone => return Err(AttestError::Gone),
                    ErrorKind::Denied => return Err(AttestError::Denied),
                    _ => Some(error.to_fault()),
                },
                Err(Failure::Late(deadline)) => Some(no_answer(
                    format!("the workload attestor {attestor} did not answer in time"),
                    format!("no answer within {} s", deadline.as_secs()),
                )),
                Err(Failure::Skipped(pause)) => Some(no_answer(
                    format!(
                        "the workload attestor {attestor} is skipped: it repeatedly did not answer in time"
                    ),
                    format!("it is asked again in {} s", pause.as_secs()),
                )),
            };
            if let Some(fault) = fault {
                incomplete.push(Incomplete {
                    attestor: attestor.to_owned(),
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

fn no_answer(what: String, because: String) -> Fault {
    Fault::new(Code::PluginUnavailable, what).because(because)
}

enum Failure {
    Late(Duration),
    /// It is not asked for this time.
    Skipped(Duration),
    Failed(Error),
}

impl CallError for Failure {
    fn status(&self) -> &'static str {
        match self {
            Self::Late(_) => "DeadlineExceeded",
            Self::Skipped(_) => "Unavailable",
            Self::Failed(error) => match error.kind() {
                ErrorKind::Denied => "PermissionDenied",
                ErrorKind::Gone => "NotFound",
                ErrorKind::Transient => "Unavailable",
                _ => "Unknown",
            },
        }
    }
}

impl Limited {
    async fn attest(&self, peer: &Peer, telemetry: &Telemetry) -> Result<Attested, Failure> {
        self.ask(peer.uid, self.attestor.attest(peer), telemetry)
            .await
    }

    /// Waits for a turn and for the answer, together no longer than the attestor's deadline.
    async fn ask(
        &self,
        user: u32,
        question: impl Future<Output = Result<Attested, Error>>,
        telemetry: &Telemetry,
    ) -> Result<Attested, Failure> {
        let name = self.attestor.name();
        let timer = telemetry.start(&WORKLOAD_ATTESTOR, [name]);
        let attempt = match self.breaker.admit(user) {
            Admission::Ask(attempt) => attempt,
            Admission::Skip(pause) => {
                timer.end("Unavailable");
                return Err(Failure::Skipped(pause));
            }
        };
        let deadline = self.attestor.deadline();
        let mut asked = false;
        let answer = async {
            let turn = self.turns.take(user).await;
            let _turn = turn.map_err(|_shutdown| Error::interrupted(name.to_owned()))?;
            asked = true;
            question.await
        };
        let outcome = tokio::time::timeout(deadline, answer).await;
        let outcome = match outcome {
            Ok(outcome) => {
                if attempt.answered() {
                    tracing::info!(
                        attestor = name,
                        uid = user,
                        "workload attestor answers again"
                    );
                }
                outcome.map_err(Failure::Failed)
            }
            Err(_elapsed) => {
                // Who waited for a turn all the time learned nothing about the attestor.
                if asked && let Some(pause) = attempt.late() {
                    let seconds = pause.as_secs();
                    tracing::warn!(
                        attestor = name,
                        uid = user,
                        seconds,
                        "workload attestor does not answer: it is skipped for this user's processes"
                    );
                }
                Err(Failure::Late(deadline))
            }
        };
        timer.end_with(&outcome);
        outcome
    }
}

#[cfg(test)]
mod tests;
