//! Writes the last good state to disk: soon after the first change, then at most twice a minute, and at the end.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Cache;
use crate::config::WorkloadKeys;
use crate::node::{Node, NodeIdentity};
use crate::state::last_good::Digest;
use crate::stop::Stop;

/// Changes come in bursts: one write for each.
const GATHER: Duration = Duration::from_secs(1);
/// Between two writes. What changes meanwhile is lost only if the agent is killed and the server is away when it
/// comes back.
const PAUSE: Duration = Duration::from_secs(30);

/// Runs until `stop`.
pub(crate) async fn run(
    node: Arc<Node>,
    cache: Arc<Cache>,
    identity: tokio::sync::watch::Receiver<NodeIdentity>,
    mut stop: Stop,
) {
    let mut written = None;
    loop {
        let stopping = tokio::select! {
            () = stop.stopped() => true,
            () = cache.changed() => !stop.sleep(GATHER).await,
        };
        written = write(&node, &cache, &identity, written).await;
        if stopping || !stop.sleep(PAUSE).await {
            break;
        }
    }
    // The last changes, also those that came during a pause.
    write(&node, &cache, &identity, written).await;
}

/// Gives the digest of what is on disk now.
async fn write(
    node: &Arc<Node>,
    cache: &Cache,
    identity: &tokio::sync::watch::Receiver<NodeIdentity>,
    written: Option<Digest>,
) -> Option<Digest> {
    let mut snapshot = cache.snapshot();
    if node.config.workload_keys == WorkloadKeys::InMemory {
        snapshot.svids.clear();
    }
    let agent_id = identity.borrow().id().clone();
    node.store_last_good(agent_id, snapshot, written)
        .await
        .unwrap_or_else(|fault| {
            tracing::warn!(%fault, "last good state not stored");
            written
        })
}
