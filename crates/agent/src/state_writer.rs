//! Writes the last good state to disk: soon after the first change, then at most twice a minute, and at the end.

use std::sync::Arc;
use std::time::Duration;

use config::fault::Fault;

use crate::cache::Cache;
use crate::config::WorkloadKeys;
use crate::node::{Node, NodeIdentity};
use crate::state::last_good::Digest;
use daemon::tasks::Shutdown;

/// Changes come in bursts: one write for each.
const GATHER: Duration = Duration::from_secs(1);
/// Between two writes. What changes meanwhile is lost only if the agent is killed and the server is away when it
/// comes back.
const PAUSE: Duration = Duration::from_secs(30);

/// Runs until the shutdown.
pub(crate) async fn run(
    node: Arc<Node>,
    cache: Arc<Cache>,
    identity: tokio::sync::watch::Receiver<NodeIdentity>,
    mut shutdown: Shutdown,
) {
    let mut written = None;
    let mut failed = false;
    loop {
        // What could not be written is written again after the pause, whether or not something changes.
        let due = async {
            if !failed {
                cache.changed().await;
            }
        };
        let stopping = tokio::select! {
            () = shutdown.requested() => true,
            () = due => !shutdown.sleep(GATHER).await,
        };
        failed = match write(&node, &cache, &identity, written).await {
            Ok(digest) => {
                written = digest;
                false
            }
            Err(fault) => {
                tracing::warn!(%fault, "last good state not stored");
                true
            }
        };
        if stopping || !shutdown.sleep(PAUSE).await {
            break;
        }
    }
    // The last changes, also those that came during a pause.
    if let Err(fault) = write(&node, &cache, &identity, written).await {
        tracing::warn!(%fault, "last good state not stored");
    }
}

/// Gives the digest of what is on disk now.
async fn write(
    node: &Arc<Node>,
    cache: &Cache,
    identity: &tokio::sync::watch::Receiver<NodeIdentity>,
    written: Option<Digest>,
) -> Result<Option<Digest>, Fault> {
    let mut snapshot = cache.snapshot();
    if node.config.workload_keys == WorkloadKeys::InMemory {
        snapshot.svids.clear();
    }
    let agent_id = identity.borrow().id().clone();
    node.store_last_good(agent_id, snapshot, written).await
}

#[cfg(test)]
mod tests {
    use config::Document;
    use daemon::tasks::Tasks;
    use spiffe::random::SystemRandom;

    use super::*;
    use crate::cache::svids::RotationRule;
    use crate::cache::{CacheOptions, Delta};
    use crate::config::{Config, Overrides};
    use crate::node_attestation::attest_node;
    use crate::state::StateDir;
    use crate::testing::fake_server::FakeServer;
    use crate::testing::{MovedClock, bundle, entry, node_plugins, trust_domain};

    const FILE: &str = "plastron-last-good.json";

    async fn node(server: &FakeServer, directory: &std::path::Path) -> Arc<Node> {
        let text = format!(
            "agent {{ trust_domain = \"example.org\" server_address = \"127.0.0.1\" server_port = {port}\n\
             data_dir = \"{dir}\"\n socket_path = \"{dir}/s\"\n insecure_bootstrap = true\n join_token = \"good\" }}\n\
             plugins {{\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"memory\" {{ plugin_data {{}} }}\n\
             WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n }}",
            port = server.port,
            dir = directory.display()
        );
        let document = Document::parse("agent.conf", &text, None).unwrap();
        let config = Config::from_document(&document, &Overrides::default())
            .unwrap_or_else(|faults| panic!("{faults}"));
        let plugins = node_plugins(&config).await;
        let state = StateDir::open(&config.data_dir).unwrap();
        Arc::new(Node::open(config.node, state, plugins, Arc::new(MovedClock::default())).unwrap())
    }

    #[tokio::test]
    async fn a_state_that_could_not_be_written_is_written_after_a_while_though_nothing_changed() {
        let server = FakeServer::start("example.org").await;
        let directory = tempfile::tempdir().unwrap();
        let node = node(&server, directory.path()).await;
        let tasks = Tasks::new();
        let shutdown = tasks.shutdown();
        let attested = attest_node(&node, None, Arc::new(SystemRandom), shutdown.clone()).await;
        let (_identities, identity) =
            tokio::sync::watch::channel(attested.unwrap().unwrap().identity);
        let options = CacheOptions {
            trust_domain: trust_domain(),
            x509_svids: 100,
            jwt_svids: 100,
            rotation: RotationRule::default(),
        };
        let clock = Arc::new(MovedClock::default());
        let cache = Arc::new(Cache::new(options, clock, Arc::new(SystemRandom)));
        // A directory in the place of the file: no rename can replace it.
        let file = directory.path().join(FILE);
        std::fs::create_dir(&file).unwrap();
        // From here on nobody else is asked: time passes when there is nothing to do.
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        cache.apply(Delta {
            entries: vec![entry("a", "/a", &["unix:uid:1"])],
            bundles: vec![bundle("example.org")],
            ..Delta::default()
        });
        let writing = tokio::spawn(run(node, cache, identity, shutdown));
        while begun.elapsed() < PAUSE {
            tokio::time::sleep(GATHER).await;
        }
        std::fs::remove_dir(&file).unwrap();
        while !file.is_file() {
            assert!(begun.elapsed() < 4 * PAUSE, "never written again");
            tokio::time::sleep(GATHER).await;
        }
        writing.abort();
    }
}
