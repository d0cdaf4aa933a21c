//! What expires leaves: entries and join tokens each five minutes, attested nodes each hour when configured.
//!
//! With several servers on one database each may prune; the second finds nothing left.

use std::sync::Arc;
use std::time::Duration;

use spiffe::clock::Clock;
use spiffe::random::{Random, unit_interval};

use crate::config::PruningConfig;
use crate::datastore::Datastore;
use crate::tasks::Shutdown;

/// SPIRE: the registration manager's interval.
const ENTRIES_EVERY: Duration = Duration::from_secs(300);
/// SPIRE: the node manager's interval, 45 to 75 minutes.
const AGENTS_EVERY: Duration = Duration::from_secs(3_600);
const AGENTS_JITTER: f64 = 0.25;

#[derive(Debug)]
pub(crate) struct Pruning {
    pub(crate) datastore: Datastore,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

impl Pruning {
    /// Entries and join tokens.
    pub(crate) async fn run_entries(self, mut shutdown: Shutdown) {
        loop {
            self.prune_entries().await;
            if !shutdown.sleep(ENTRIES_EVERY).await {
                return;
            }
        }
    }

    async fn prune_entries(&self) {
        let now = self.clock.now();
        match self.datastore.prune_entries(now).await {
            Ok(pruned) => {
                for entry in pruned {
                    tracing::info!(
                        entry_id = %entry.id, spiffe_id = %entry.spiffe_id, parent_id = %entry.parent_id,
                        "pruned an expired registration entry"
                    );
                }
            }
            Err(error) => tracing::error!(%error, "failed to prune expired registration entries"),
        }
        match self.datastore.prune_join_tokens(now).await {
            Ok(0) => {}
            Ok(pruned) => tracing::info!(pruned, "pruned expired join tokens"),
            Err(error) => tracing::error!(%error, "failed to prune expired join tokens"),
        }
    }

    /// Nodes whose SVID ended long enough ago. Those that cannot attest again stay, unless configured otherwise.
    pub(crate) async fn run_agents(self, config: PruningConfig, mut shutdown: Shutdown) {
        loop {
            let jitter = 1.0 + AGENTS_JITTER * (2.0 * unit_interval(self.random.as_ref()) - 1.0);
            if !shutdown.sleep(AGENTS_EVERY.mul_f64(jitter)).await {
                return;
            }
            self.prune_agents(config).await;
        }
    }

    async fn prune_agents(&self, config: PruningConfig) {
        let Some(before) = self.clock.now().checked_sub(config.expired_for) else {
            return;
        };
        loop {
            match self.datastore.prune_agents(before, config.tofu_nodes).await {
                Ok(pruned) if pruned.is_empty() => return,
                Ok(pruned) => {
                    for agent in pruned {
                        tracing::info!(spiffe_id = %agent.id, "pruned an agent that expired");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "failed to prune expired agents");
                    return;
                }
            }
        }
    }
}
