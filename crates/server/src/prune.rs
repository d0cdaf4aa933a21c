//! What expires leaves: entries and join tokens each five minutes, attested nodes each hour when configured.
//!
//! With several servers on one database each may prune; the second finds nothing left.

use std::sync::Arc;
use std::time::Duration;

use spiffe::clock::Clock;
use spiffe::random::{Random, unit_interval};

use crate::config::PruningConfig;
use crate::datastore::{Agents, Entries, Tokens};
use crate::metrics::{ENTRY_PRUNING, NODE_PRUNING};
use daemon::tasks::Shutdown;
use daemon::telemetry::Telemetry;

/// SPIRE: the registration manager's interval.
const ENTRIES_EVERY: Duration = Duration::from_secs(300);
/// SPIRE: the node manager's interval, 45 to 75 minutes.
const AGENTS_EVERY: Duration = Duration::from_secs(3_600);
const AGENTS_JITTER: f64 = 0.25;

#[derive(Debug)]
pub(crate) struct Pruning {
    pub(crate) entries: Entries,
    pub(crate) agents: Agents,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) telemetry: Telemetry,
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
        // Batch by batch: other writes find their turn in between.
        loop {
            let timer = self.telemetry.start(&ENTRY_PRUNING, []);
            let pruned = self.entries.prune(now).await;
            timer.end_with(&pruned);
            match pruned {
                Ok(pruned) if pruned.is_empty() => break,
                Ok(pruned) => {
                    for entry in pruned {
                        tracing::info!(
                            entry_id = %entry.id, spiffe_id = %entry.spiffe_id, parent_id = %entry.parent_id,
                            "pruned an expired registration entry"
                        );
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "failed to prune expired registration entries");
                    break;
                }
            }
        }
        loop {
            match self.tokens.prune(now).await {
                Ok(0) => return,
                Ok(pruned) => tracing::info!(pruned, "pruned expired join tokens"),
                Err(error) => {
                    tracing::error!(%error, "failed to prune expired join tokens");
                    return;
                }
            }
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
            let timer = self.telemetry.start(&NODE_PRUNING, []);
            let pruned = self.agents.prune(before, config.tofu_nodes).await;
            timer.end_with(&pruned);
            match pruned {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestServer, entry};

    fn pruning(server: &TestServer) -> Pruning {
        Pruning {
            entries: server.datastore.entries.clone(),
            agents: server.datastore.agents.clone(),
            tokens: server.datastore.tokens.clone(),
            clock: Arc::new(server.clock.clone()),
            random: Arc::new(spiffe::random::SystemRandom),
            telemetry: Telemetry::default(),
        }
    }

    #[tokio::test]
    async fn takes_expired_entries_and_tokens_and_leaves_the_rest() {
        let server = TestServer::start().await;
        let mut brief = entry("/spire/agent/x", "/brief");
        brief.expires_at = crate::testing::NOW + 60;
        let (brief, lasting) = (
            server.create(brief).await,
            server.create(entry("/spire/agent/x", "/lasting")).await,
        );
        let token = server.token().await;
        pruning(&server).prune_entries().await;
        assert!(server.registry.entry(&brief.id).is_some(), "not yet");
        server.advance(601);
        pruning(&server).prune_entries().await;
        assert!(server.registry.entry(&brief.id).is_none());
        assert!(server.registry.entry(&lasting.id).is_some());
        let refused = server.attest(&token).await.map(|node| node.id).unwrap_err();
        assert!(refused.message().contains("does not exist"), "{refused}");
    }

    #[tokio::test]
    async fn leaves_nodes_that_cannot_come_back_and_banned_ones() {
        let server = TestServer::start().await;
        let (node, banned) = (server.agent().await, server.agent().await);
        server.datastore.agents.ban(&banned.id).await.unwrap();
        server.advance(7_200);
        let expired_for = Duration::from_secs(60);
        let careful = PruningConfig {
            expired_for,
            tofu_nodes: false,
        };
        pruning(&server).prune_agents(careful).await;
        assert!(server.registry.agent(&node.id).is_some());
        pruning(&server)
            .prune_agents(PruningConfig {
                expired_for,
                tofu_nodes: true,
            })
            .await;
        assert!(server.registry.agent(&node.id).is_none());
        assert!(
            server.registry.agent(&banned.id).is_some(),
            "a ban is not forgotten"
        );
    }
}
