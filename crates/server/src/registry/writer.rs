//! How the state in memory changes: by the one handle that can, which the datastore's writer owns. Everybody else who holds
//! the registry reads it.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use daemon::telemetry::Telemetry;
use spiffe::clock::Clock;
use spiffe::trust_domain::TrustDomain;
use tokio::time::Instant;

use super::{Condition, Cursor, Kind, Registry, State, Write};

/// The right to change a registry. There is one for each registry; it is not cloned, and no registry comes without it.
/// When it is gone, nothing will confirm the state any more, which counts as stale from then on.
#[derive(Debug)]
pub(crate) struct RegistryWriter {
    registry: Arc<Registry>,
}

impl RegistryWriter {
    pub(crate) fn new(
        state: State,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        max_staleness: Duration,
        telemetry: Telemetry,
    ) -> Self {
        let registry = Registry::new(state, trust_domain, clock, max_staleness, telemetry);
        Self {
            registry: Arc::new(registry),
        }
    }

    /// For those who read.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Applies the writes of the commits `passed`, then tells the subscribers.
    pub(crate) fn apply(&mut self, passed: &[Cursor], writes: Vec<Write>) {
        // What servers note for themselves concerns nobody who reads here: no agent's watch wakes for it.
        let concerns_readers = writes
            .iter()
            .any(|write| !matches!(write.kind, Kind::Lease | Kind::Journal));
        let reached = {
            let mut state = self.state();
            state.apply(passed, writes);
            state.cursor.revision()
        };
        self.registry.revision.send_if_modified(|revision| {
            *revision = reached;
            concerns_readers
        });
        self.registry.report_sizes();
    }

    /// Starts over from a snapshot, because the way to it is unknown.
    pub(crate) fn replace(&mut self, state: State) {
        let revision = state.cursor.revision();
        let old = std::mem::replace(&mut *self.state(), state);
        // A million entries take a while to free: not under the lock.
        drop(old);
        self.registry.revision.send_replace(revision);
        self.registry.report_sizes();
    }

    /// The state was current at `at`, which is when the look at the database began.
    pub(crate) fn confirm(&mut self, at: Instant) {
        self.registry.freshness.confirm(at);
    }

    pub(crate) fn set_condition(&mut self, condition: Condition) {
        self.registry.freshness.set_condition(condition);
    }

    fn state(&mut self) -> RwLockWriteGuard<'_, State> {
        let state = &self.registry.state;
        state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for RegistryWriter {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl Drop for RegistryWriter {
    fn drop(&mut self) {
        self.registry.freshness.end();
    }
}
