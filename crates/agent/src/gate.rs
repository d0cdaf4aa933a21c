//! The gate that every call of a workload passes, whatever the service: the agent is ready, the caller is attested, and it
//! keeps to its rate. What the gate returns is what a service works with.

use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Telemetry;
use spiffe::clock::Clock;
use spiffe::random::Random;
use spiffe::selector::SelectorSet;
use tokio::sync::watch;
use tonic::Status;

mod refusal;
mod request_log;

pub(crate) use refusal::LogLimits;
#[cfg(test)]
pub(crate) use request_log::Outcome;
pub(crate) use request_log::RequestLog;

use crate::attestor::{AttestError, Attestation, Attestors, Incomplete, Workload};
use crate::cache::Cache;
use crate::metrics::{DISCOVERED_SELECTORS, RATE_LIMITED, WORKLOAD_ATTESTATION};
use crate::rate_limit::{Method, RateLimiter};
use crate::sync::SyncStatus;

/// How long a call waits for an agent that has just started.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// One for all services.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) cache: Arc<Cache>,
    pub(crate) attestors: Attestors,
    pub(crate) limiter: RateLimiter,
    pub(crate) status: watch::Receiver<SyncStatus>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) options: GateOptions,
    pub(crate) log_limits: LogLimits,
    /// The last calls that were not answered with an identity.
    pub(crate) requests: RequestLog,
    pub(crate) telemetry: Telemetry,
    /// When the entries were last searched for one that nearly matches: a caller may not make that the agent's work.
    pub(crate) searched: std::sync::Mutex<Option<tokio::time::Instant>>,
}

/// The gate's part of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct GateOptions {
    pub(crate) log_selectors: Vec<String>,
    /// The process that is held to no rate: this one, for its health probes.
    pub(crate) exempt: u32,
}

/// A caller that passed the gate.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) workload: Arc<Workload>,
    pub(crate) selectors: SelectorSet,
    /// What could not be found out: then nothing that the caller lacks is a reason to refuse it.
    pub(crate) incomplete: Vec<Incomplete>,
}

impl Gate {
    /// Waits for a starting agent, attests the caller, and holds it to the rate of `method`, if that has one.
    pub(crate) async fn admit(
        &self,
        workload: Arc<Workload>,
        method: Option<Method>,
    ) -> Result<Caller, Status> {
        self.until_ready().await?;
        let attestation = self.attest(&workload).await?;
        if let Some(method) = method
            && !self.limiter.allows(method, &attestation.selectors)
            && u32::try_from(workload.peer().pid) != Ok(self.options.exempt)
        {
            self.telemetry.count(&RATE_LIMITED, [method.name()]);
            return Err(Status::unavailable("rate limit exceeded; try again later"));
        }
        Ok(Caller {
            workload,
            selectors: attestation.selectors.clone(),
            incomplete: attestation.incomplete.clone(),
        })
    }

    /// Attests an admitted caller again, since time has passed and the process may run another program. What an attestor
    /// cannot say at the moment is taken to be as it was. Returns whether the caller's selectors are others now.
    pub(crate) async fn attest_again(&self, caller: &mut Caller) -> Result<bool, Status> {
        let attestation = self.attest(&caller.workload).await?;
        let selectors = attestation.completed_from(&caller.selectors);
        caller.incomplete.clone_from(&attestation.incomplete);
        let changed = selectors != caller.selectors;
        if changed {
            tracing::debug!(
                pid = caller.workload.peer().pid,
                "the caller's selectors changed while it was served"
            );
            caller.selectors = selectors;
        }
        Ok(changed)
    }

    async fn attest(&self, workload: &Workload) -> Result<Arc<Attestation>, Status> {
        let timer = self.telemetry.start(&WORKLOAD_ATTESTATION, []);
        let attestation = self.attestors.attest(workload).await;
        timer.end_with(&attestation);
        match &attestation {
            Ok(attestation) => {
                let selectors = attestation.selectors.len();
                self.telemetry.sample(&DISCOVERED_SELECTORS, selectors, []);
                for incomplete in &attestation.incomplete {
                    self.log_incomplete(workload.peer(), incomplete);
                }
            }
            Err(error) => self.log_refused(workload.peer(), *error),
        }
        attestation.map_err(|error| match error {
            AttestError::Gone => Status::unavailable("workload attestation failed"),
            AttestError::Denied => refusal::not_who_connected(),
        })
    }

    async fn until_ready(&self) -> Result<(), Status> {
        let mut ready = self.cache.ready();
        if *ready.borrow() {
            return Ok(());
        }
        match tokio::time::timeout(START_TIMEOUT, ready.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::unavailable(
                "the agent is starting and has not heard from its server yet",
            )),
        }
    }
}
