//! Writes the last good state to disk, a moment after something changed and once more at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::node::{Node, NodeIdentity};
use crate::stop::Stop;

/// Changes come in bursts: one write for each.
const GATHER: Duration = Duration::from_secs(1);
/// Writing takes at most a twentieth of the time.
const SHARE: u32 = 20;

/// Runs until `stop`.
pub(crate) async fn run(
    node: Arc<Node>,
    cache: Arc<Cache>,
    identity: tokio::sync::watch::Receiver<NodeIdentity>,
    mut stop: Stop,
) {
    loop {
        let stopping = tokio::select! {
            () = cache.changed() => false,
            () = stop.stopped() => true,
        };
        let pause = write(&node, &cache, &identity, stopping).await;
        if stopping {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.stopped() => {}
        }
    }
}

/// Gives the pause to make before the next write.
async fn write(
    node: &Arc<Node>,
    cache: &Arc<Cache>,
    identity: &tokio::sync::watch::Receiver<NodeIdentity>,
    stopping: bool,
) -> Duration {
    if !stopping {
        tokio::time::sleep(GATHER / 4).await;
    }
    let mut snapshot = cache.snapshot();
    if !node.keeps_keys_on_disk() {
        // Whoever keeps the node's key in memory does not want the workloads' keys on disk.
        snapshot.svids.clear();
    }
    let agent_id = identity.borrow().id().clone();
    let started = Instant::now();
    if let Err(fault) = node.store_last_good(agent_id, snapshot).await {
        tracing::warn!(%fault, "last good state not kept");
    }
    (started.elapsed() * SHARE).max(GATHER)
}
