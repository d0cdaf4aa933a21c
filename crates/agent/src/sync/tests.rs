use std::path::Path;

use config::Document;
use config::fault::Code;
use daemon::tasks::Tasks;
use plugin::blocking::WorkLimits;
use plugin::key_manager::KeyManager;
use plugin::node_attestor::agent::NodeAttestor;
use proto::spire::api::types::permission_denied_details::Reason;
use spiffe::key::{KeyType, PublicKey, SignError, SignatureScheme, Signer};
use spiffe::random::SystemRandom;
use spiffe::trust_domain::TrustDomain;
use tokio::task::JoinHandle;
use tonic::Status;

use super::*;
use crate::cache::svids::RotationRule;
use crate::cache::update::{Identity, WorkloadUpdate};
use crate::cache::{CacheOptions, Purpose};
use crate::config::{Config, Overrides, TrustSource};
use crate::node::NodePlugins;
use crate::node_attestation;
use crate::state::StateDir;
use crate::testing::fake_server::{FakeServer, denied};
use crate::testing::{
    MovedClock, Repeatable, bundle, ed25519_bundle, entry, selectors, trust_domain,
};

mod full_disk;
mod unsupported_authorities;

const LONG: Duration = Duration::from_secs(20);

struct Fixture {
    server: FakeServer,
    cache: Arc<Cache>,
    ends: SyncEnds,
    clock: MovedClock,
    running: JoinHandle<Result<(), Fault>>,
    directory: tempfile::TempDir,
    tasks: Tasks,
}

fn config(server: &FakeServer, directory: &Path) -> Config {
    let text = format!(
        "agent {{ trust_domain = \"example.org\" server_address = \"127.0.0.1\" server_port = {port}\n\
         data_dir = \"{dir}\"\n socket_path = \"{dir}/s\"\n insecure_bootstrap = true\n join_token = \"good\"\n experimental {{ sync_interval = \"100ms\" }} }}\n\
         plugins {{\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"disk\" {{ plugin_data {{ directory = \"{dir}\" }} }}\n\
         WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n }}",
        port = server.port,
        dir = directory.display()
    );
    let document = Document::parse("agent.conf", &text, None).unwrap();
    Config::from_document(&document, &Overrides::default())
        .unwrap_or_else(|faults| panic!("{faults}"))
}

/// An attested node that follows the server.
async fn start(prepare: impl FnOnce(&FakeServer)) -> Fixture {
    start_with(None, prepare).await
}

/// The same with another attestor than join_token.
async fn start_with(
    attestor: Option<Arc<dyn NodeAttestor>>,
    prepare: impl FnOnce(&FakeServer),
) -> Fixture {
    start_in(tempfile::tempdir().unwrap(), attestor, prepare).await
}

/// The same with its state in a directory that was made for it.
async fn start_in(
    directory: tempfile::TempDir,
    attestor: Option<Arc<dyn NodeAttestor>>,
    prepare: impl FnOnce(&FakeServer),
) -> Fixture {
    let change = |_: &mut Config, plugins: &mut NodePlugins| {
        if let Some(attestor) = attestor {
            plugins.attestor = attestor;
        }
    };
    start_changed(directory, change, prepare).await
}

/// The same with a configuration and plugins of its own.
async fn start_changed(
    directory: tempfile::TempDir,
    change: impl FnOnce(&mut Config, &mut NodePlugins),
    prepare: impl FnOnce(&FakeServer),
) -> Fixture {
    let server = FakeServer::start("example.org").await;
    prepare(&server);
    let mut config = config(&server, directory.path());
    let clock = MovedClock::default();
    let mut plugins = crate::testing::node_plugins(&config).await;
    change(&mut config, &mut plugins);
    let state = StateDir::open(&config.data_dir).unwrap();
    let sync_config = config.sync;
    let node = Arc::new(Node::open(config.node, state, plugins, Arc::new(clock.clone())).unwrap());
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let attested =
        node_attestation::attest_node(&node, None, Arc::clone(&random), shutdown.clone()).await;
    let attested = attested.unwrap().unwrap();
    let options = CacheOptions {
        trust_domain: trust_domain(),
        x509_svids: 100,
        jwt_svids: 100,
        rotation: RotationRule::default(),
    };
    let cache = Arc::new(Cache::new(
        options,
        Arc::new(clock.clone()),
        Arc::clone(&random),
    ));
    let (sync, ends) = Sync::new(
        node,
        Arc::clone(&cache),
        attested,
        sync_config,
        random,
        shutdown,
    )
    .unwrap();
    let running = tokio::spawn(sync.run());
    Fixture {
        server,
        cache,
        ends,
        clock,
        running,
        directory,
        tasks,
    }
}

fn all_issued(update: &WorkloadUpdate) -> bool {
    update.has_identity() && update.identities.len() == update.entries.len()
}

fn add(server: &FakeServer, entry: &Arc<spiffe::entry::Entry>) {
    server.change(|state| {
        drop(
            state
                .entries
                .insert(entry.id.to_string(), Arc::clone(entry)),
        );
    });
}

impl Fixture {
    async fn until(
        &self,
        texts: &[&str],
        good: impl Fn(&WorkloadUpdate) -> bool,
    ) -> Arc<WorkloadUpdate> {
        let mut stream = self.cache.subscribe(&selectors(texts), Purpose::X509Svids);
        let found = tokio::time::timeout(LONG, stream.updates.wait_for(|update| good(update)))
            .await
            .expect("in time")
            .unwrap();
        Arc::clone(&found)
    }

    /// Waits until the node opened this many streams of changes.
    async fn streams(&self, number: usize) {
        let opened = async {
            while self.server.state.lock().unwrap().streams < number {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, opened).await.expect("in time");
    }

    async fn ends_with(self) -> Fault {
        tokio::time::timeout(LONG, self.running)
            .await
            .expect("in time")
            .unwrap()
            .unwrap_err()
    }

    async fn status(&mut self, good: impl Fn(&SyncStatus) -> bool) -> SyncStatus {
        let found = tokio::time::timeout(LONG, self.ends.status.wait_for(|status| good(status)))
            .await
            .expect("in time")
            .unwrap();
        found.clone()
    }

    async fn token(&self, entry: &Arc<spiffe::entry::Entry>, audience: &str) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.ends
            .jwt
            .send(JwtRequest {
                entry: Arc::clone(entry),
                audience: vec![audience.into()],
                reply,
                turn: WorkLimits::new(1, 1).take(0).await.unwrap(),
            })
            .await
            .map_err(|_ended| JwtError::Unavailable("ended".to_owned()))?;
        tokio::time::timeout(LONG, answer)
            .await
            .expect("in time")
            .unwrap_or_else(|_ended| Err(JwtError::Unavailable("ended".to_owned())))
    }
}

#[tokio::test]
async fn a_server_without_our_stream_is_synced_page_by_page() {
    let f = start(|server| {
        for number in 0..5 {
            add(
                server,
                &entry(
                    &format!("e{number}"),
                    &format!("/{number}"),
                    &["unix:uid:1"],
                ),
            );
        }
    })
    .await;
    let update = f
        .until(&["unix:uid:1"], |update| update.identities.len() == 5)
        .await;
    assert!(update.own.is_some());
    assert!(f.server.calls("Watch") >= 1 && f.server.calls("SyncAuthorizedEntries") >= 1);
    assert_eq!(f.server.calls("PostStatus"), 1);
    f.server.change(|state| drop(state.entries.remove("e1")));
    f.until(&["unix:uid:1"], |update| update.identities.len() == 4)
        .await;
}

#[tokio::test]
async fn our_stream_brings_changes_without_any_sync() {
    let f = start(|server| server.change(|state| state.watch = true)).await;
    f.until(&["unix:uid:1"], |update| update.own.is_some())
        .await;
    let made = entry("a", "/a", &["unix:uid:1"]);
    add(&f.server, &made);
    let event = |revision, entries, removed: &[&str], more| WatchEvent {
        revision,
        epoch: "e1".into(),
        entries,
        removed_entry_ids: removed.iter().map(|id| (*id).to_owned()).collect(),
        more,
        ..Default::default()
    };
    let wire = proto::convert::entry_to_wire(&made, None);
    f.server
        .events
        .send(event(2, vec![wire], &[], false))
        .unwrap();
    f.until(&["unix:uid:1"], all_issued).await;
    // A change in two messages counts when its last one is there.
    f.server
        .events
        .send(event(3, vec![], &["a"], true))
        .unwrap();
    f.server.events.send(event(3, vec![], &[], false)).unwrap();
    f.until(&["unix:uid:1"], |update| !update.has_identity())
        .await;
    assert_eq!(f.server.calls("SyncAuthorizedEntries"), 0);
}

#[tokio::test]
async fn a_reset_forgets_what_it_does_not_name() {
    let f = start(|server| {
        server.change(|state| state.watch = true);
        add(server, &entry("a", "/a", &["unix:uid:1"]));
    })
    .await;
    f.until(&["unix:uid:1"], |update| update.has_identity())
        .await;
    f.server
        .events
        .send(WatchEvent {
            revision: 9,
            epoch: "e2".into(),
            reset: true,
            ..Default::default()
        })
        .unwrap();
    let update = f
        .until(&["unix:uid:1"], |update| !update.has_identity())
        .await;
    assert!(
        update.own.is_some(),
        "the own bundle stays whatever happens"
    );
}

#[tokio::test]
async fn a_broken_stream_is_resumed() {
    let f = start(|server| {
        server.fault("Watch", Status::unavailable("restarting"));
        server.change(|state| state.watch = true);
        add(server, &entry("a", "/a", &["unix:uid:1"]));
    })
    .await;
    f.until(&["unix:uid:1"], all_issued).await;
    assert!(f.server.calls("Watch") >= 2);
}

#[tokio::test]
async fn federated_bundles_come_and_go_with_the_entries_that_name_them() {
    let f = start(|server| {
        let mut federated = spiffe::entry::Entry::clone(&entry("a", "/a", &["unix:uid:1"]));
        federated.federates_with = vec![
            bundle("other.test").trust_domain,
            bundle("unknown.test").trust_domain,
        ];
        add(server, &Arc::new(federated));
        server.change(|state| {
            drop(
                state
                    .federated
                    .insert("other.test".into(), bundle("other.test")),
            );
        });
    })
    .await;
    f.until(&["unix:uid:1"], |update| update.federated.len() == 1)
        .await;
    f.server.change(|state| state.federated.clear());
    f.until(&["unix:uid:1"], |update| {
        update.has_identity() && update.federated.is_empty()
    })
    .await;
}

/// An entry of two partners beside one of its own.
fn add_with_partners(server: &FakeServer) {
    let mut federated = spiffe::entry::Entry::clone(&entry("a", "/a", &["unix:uid:1"]));
    federated.federates_with = ["partner.test", "other.test"]
        .map(|name| TrustDomain::parse(name).unwrap())
        .into();
    add(server, &Arc::new(federated));
    add(server, &entry("b", "/b", &["unix:uid:2"]));
    server.change(|state| {
        for name in ["partner.test", "other.test"] {
            drop(state.federated.insert(name.into(), bundle(name)));
        }
    });
}

fn add_authority(server: &FakeServer) {
    let next = crate::testing::Authority::new(&trust_domain());
    server.change(|state| state.bundle.add_x509_authority(next.certificate.clone()));
}

#[tokio::test]
async fn a_partners_bundle_that_cannot_be_read_holds_up_nobody_else() {
    let f = start(|server| {
        add_with_partners(server);
        server.change(|state| {
            let unknown = ed25519_bundle("partner.test");
            proto::convert::bundle_from_wire(&unknown).unwrap_err();
            state
                .federated_as_sent
                .insert("partner.test".into(), unknown);
        });
    })
    .await;
    let update = f.until(&["unix:uid:1"], all_issued).await;
    let partners: Vec<_> = update
        .federated
        .iter()
        .map(|partner| partner.bundle.trust_domain.as_str())
        .collect();
    assert_eq!(partners, ["other.test"]);
    f.until(&["unix:uid:2"], |update| update.has_identity())
        .await;
    assert!(*f.cache.ready().borrow());
    add_authority(&f.server);
    f.until(&["unix:uid:2"], |update| own_authorities(update) == 2)
        .await;
}

#[tokio::test]
async fn the_last_good_bundle_of_a_partner_stays_while_the_next_one_cannot_be_read() {
    let f = start(add_with_partners).await;
    f.until(&["unix:uid:1"], |update| update.federated.len() == 2)
        .await;
    f.server.change(|state| {
        state
            .federated_as_sent
            .insert("partner.test".into(), ed25519_bundle("partner.test"));
        state.federated.remove("other.test");
    });
    f.server
        .fault("GetFederatedBundle", Status::internal("cannot say"));
    add_authority(&f.server);
    let update = f
        .until(&["unix:uid:1"], |update| {
            own_authorities(update) == 2 && update.federated.len() == 1
        })
        .await;
    assert_eq!(*update.federated[0].bundle, bundle("partner.test"));
}

#[tokio::test]
async fn a_partners_bundle_under_another_name_is_not_taken() {
    let f = start(|server| {
        add_with_partners(server);
        let own = proto::convert::bundle_to_wire(&bundle("example.org"), None);
        server.change(|state| drop(state.federated_as_sent.insert("partner.test".into(), own)));
    })
    .await;
    let update = f
        .until(&["unix:uid:1"], |update| update.federated.len() == 1)
        .await;
    assert_eq!(own_authorities(&update), 1);
    assert_eq!(*update.federated[0].bundle, bundle("other.test"));
    let own = update.own.as_ref().unwrap();
    assert_eq!(*own.bundle, f.server.state.lock().unwrap().bundle);
}

#[tokio::test]
async fn a_stream_with_a_bundle_that_cannot_be_read_keeps_the_last_good_one() {
    let f = start(|server| {
        server.change(|state| state.watch = true);
        add_with_partners(server);
    })
    .await;
    f.until(&["unix:uid:1"], |update| update.has_identity())
        .await;
    let (entries, own) = {
        let state = f.server.state.lock().unwrap();
        let wire = |entry: &Arc<spiffe::entry::Entry>| proto::convert::entry_to_wire(entry, None);
        let entries: Vec<_> = state.entries.values().map(wire).collect();
        (entries, proto::convert::bundle_to_wire(&state.bundle, None))
    };
    let everything = |revision, partner| WatchEvent {
        revision,
        epoch: "e1".into(),
        reset: true,
        entries: entries.clone(),
        bundles: vec![own.clone(), partner],
        ..Default::default()
    };
    let good = proto::convert::bundle_to_wire(&bundle("partner.test"), None);
    f.server.events.send(everything(2, good)).unwrap();
    f.until(&["unix:uid:1"], |update| update.federated.len() == 1)
        .await;
    let mut next = everything(3, ed25519_bundle("partner.test"));
    next.entries.retain(|entry| entry.id == "a");
    f.server.events.send(next).unwrap();
    f.until(&["unix:uid:2"], |update| update.entries.is_empty())
        .await;
    let update = f
        .until(&["unix:uid:1"], |update| update.has_identity())
        .await;
    assert_eq!(*update.federated[0].bundle, bundle("partner.test"));
}

#[tokio::test]
async fn a_ban_is_not_missed_among_the_bundles() {
    let f = start(add_with_partners).await;
    f.server
        .fault("GetFederatedBundle", denied(Reason::AgentBanned));
    assert_eq!(f.ends_with().await.code, Code::AgentBanned);
}

fn own_authorities(update: &WorkloadUpdate) -> usize {
    update
        .own
        .as_ref()
        .map_or(0, |own| own.bundle.x509_authorities.len())
}

#[tokio::test]
async fn one_refused_entry_does_not_hold_up_the_others() {
    let f = start(|server| {
        add(server, &entry("a", "/a", &["unix:uid:1"]));
        add(server, &entry("b", "/b", &["unix:uid:1"]));
        server.change(|state| state.refused.extend(["a".to_owned()]));
    })
    .await;
    let update = f
        .until(&["unix:uid:1"], |update| update.identities.len() == 1)
        .await;
    assert_eq!(&*update.identities[0].entry.id, "b");
    assert!(!all_issued(&update));
}

#[tokio::test]
async fn a_failed_batch_is_repeated() {
    let f = start(|server| {
        server.fault("BatchNewX509SVID", Status::unavailable("busy"));
        server.fault("BatchNewX509SVID", Status::resource_exhausted("slow down"));
        add(server, &entry("a", "/a", &["unix:uid:1"]));
    })
    .await;
    f.until(&["unix:uid:1"], all_issued).await;
    assert!(f.server.calls("BatchNewX509SVID") >= 2);
}

#[tokio::test]
async fn a_banned_node_forgets_itself_and_ends() {
    let f = start(|_| {}).await;
    f.server
        .change(|state| state.verdict = Some(denied(Reason::AgentBanned)));
    let directory = f.directory.path().to_owned();
    let server = f.server.clone();
    let kept = f.directory.path().join("agent-data.json");
    let (fault, text) = {
        let Fixture {
            running,
            directory: _keep,
            ..
        } = f;
        let fault = tokio::time::timeout(LONG, running)
            .await
            .expect("in time")
            .unwrap()
            .unwrap_err();
        (fault, std::fs::read_to_string(kept).unwrap())
    };
    drop((directory, server));
    assert_eq!(fault.code, Code::AgentBanned);
    assert!(fault.what.contains("this node was banned"));
    assert!(text.contains("\"svid\":null"), "{text}");
}

#[tokio::test]
async fn an_evicted_node_that_cannot_attest_again_ends() {
    for reason in [
        Reason::AgentNotAttested,
        Reason::AgentNotActive,
        Reason::AgentMustReattest,
    ] {
        let f = start(|server| server.change(|state| state.watch = true)).await;
        f.server
            .change(|state| state.verdict = Some(denied(reason)));
        f.server.events.send(WatchEvent::default()).ok();
        // The stream is open: the verdict is met by the next call.
        let made = entry("a", "/a", &["unix:uid:1"]);
        let answer = f.token(&made, "x").await;
        answer.unwrap_err();
        let fault = f.ends_with().await;
        assert_eq!(fault.code, Code::AgentMustReattest, "{reason:?}");
    }
}

const HOUR: Duration = Duration::from_secs(3600);

impl Fixture {
    fn stored(&self) -> crate::state::AgentData {
        StateDir::open(self.directory.path())
            .unwrap()
            .load()
            .unwrap()
    }

    /// What the log says of a connection that does not recover.
    async fn broken(&mut self, text: &str) {
        let status = self
            .status(|status| {
                status.broken
                    && status
                        .last_error
                        .as_ref()
                        .is_some_and(|error| error.contains(text))
            })
            .await;
        assert!(!status.connected);
        assert!(!self.running.is_finished(), "the agent goes on");
        assert!(!self.stored().svid.is_empty(), "the identity is kept");
    }
}

#[tokio::test]
async fn a_clock_that_jumps_two_hours_ahead_and_back_costs_the_node_nothing() {
    for (watch, cut) in [(true, true), (true, false), (false, true)] {
        let mut f = start(|server| {
            server.change(|state| state.watch = watch);
            add(server, &entry("a", "/a", &["unix:uid:1"]));
        })
        .await;
        f.status(|status| status.connected).await;
        f.clock.advance(2 * HOUR);
        if cut {
            f.server.cut_connections();
        }
        f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await.ok();
        f.broken("this node's clock is ahead of the server's by at least")
            .await;
        f.clock.set_back(2 * HOUR);
        f.status(|status| status.connected && !status.broken).await;
        f.until(&["unix:uid:1"], all_issued).await;
        assert!(!f.stored().svid.is_empty());
    }
}

#[tokio::test]
async fn a_clock_that_is_behind_is_named() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.clock.set_back(2 * HOUR);
    f.server.cut_connections();
    f.broken("this node's clock is behind the server's by at least 1h59m")
        .await;
    f.clock.advance(2 * HOUR);
    f.status(|status| status.connected && !status.broken).await;
}

#[tokio::test]
async fn an_outage_longer_than_the_nodes_svid_lives_does_not_cost_its_identity() {
    let mut f = start(|server| add(server, &entry("a", "/a", &["unix:uid:1"]))).await;
    f.until(&["unix:uid:1"], all_issued).await;
    let down = Status::unavailable("down");
    f.server.change(|state| state.verdict = Some(down));
    f.status(|status| !status.connected).await;
    f.clock.advance(65 * HOUR / 60);
    f.server.clock.advance(65 * HOUR / 60);
    f.broken("meanwhile the node's SVID expired at").await;
    // The server is back, and its TLS does not take the expired SVID.
    f.server.change(|state| state.verdict = None);
    f.server.cut_connections();
    f.broken("the server refuses the node's SVID, which expired at")
        .await;
}

#[tokio::test]
async fn a_server_whose_clock_is_ahead_is_named() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.server.clock.advance(65 * HOUR / 60);
    f.server.cut_connections();
    f.broken("the server says that the node's SVID is expired, but by this node's clock")
        .await;
    f.server.clock.set_back(65 * HOUR / 60);
    f.status(|status| status.connected && !status.broken).await;
}

#[tokio::test]
async fn a_node_that_is_expired_by_the_servers_clock_keeps_its_identity_and_comes_back() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.server
        .change(|state| state.verdict = Some(denied(Reason::AgentExpired)));
    f.broken("the server says that the node's SVID is expired, but by this node's clock")
        .await;
    f.server.change(|state| state.verdict = None);
    f.status(|status| status.connected && !status.broken).await;
}

#[tokio::test]
async fn a_clock_that_jumps_beyond_the_svids_life_and_back_does_not_put_off_its_renewal() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    let jump = 70 * HOUR / 60;
    f.clock.advance(jump);
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await.ok();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let expired_when_it_came = f.ends.identity.borrow_and_update().clone();
    f.clock.set_back(jump);
    f.clock.advance(Duration::from_secs(1900));
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let renewed = f.ends.identity.borrow_and_update().clone();
    assert_ne!(
        expired_when_it_came.svid.chain[0].der(),
        renewed.svid.chain[0].der()
    );
}

#[tokio::test]
async fn a_trust_bundle_that_cannot_be_written_is_written_later() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    // A directory in the place of the file: no rename can replace it.
    let file = f.directory.path().join("agent-data.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    add_authority(&f.server);
    let own_authorities = |update: &WorkloadUpdate| {
        let own = update.own.as_ref();
        own.map_or(0, |own| own.bundle.x509_authorities.len())
    };
    f.until(&["unix:uid:1"], |update| own_authorities(update) == 2)
        .await;
    let syncs = f.server.calls("SyncAuthorizedEntries");
    let later = async {
        while f.server.calls("SyncAuthorizedEntries") < syncs + 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, later).await.expect("in time");
    std::fs::remove_dir(&file).unwrap();
    let written = async {
        while f.stored().bundle.len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, written).await.expect("in time");
    assert!(!f.stored().svid.is_empty());
}

#[tokio::test]
async fn an_own_bundle_without_x509_authorities_is_not_taken_from_the_stream() {
    let f = start(|server| server.change(|state| state.watch = true)).await;
    f.until(&["unix:uid:1"], |update| update.own.is_some())
        .await;
    let empty = proto::spire::api::types::Bundle {
        trust_domain: "example.org".into(),
        ..Default::default()
    };
    let made = entry("a", "/a", &["unix:uid:1"]);
    add(&f.server, &made);
    f.server
        .events
        .send(WatchEvent {
            revision: 2,
            epoch: "e1".into(),
            entries: vec![proto::convert::entry_to_wire(&made, None)],
            bundles: vec![empty],
            ..Default::default()
        })
        .unwrap();
    let update = f.until(&["unix:uid:1"], all_issued).await;
    let own = update.own.as_ref().unwrap();
    assert!(!own.bundle.x509_authorities.is_empty());
    assert!(!f.stored().bundle.is_empty());
}

#[tokio::test]
async fn a_server_that_was_re_created_is_a_fault_that_names_the_stored_bundle() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.server.show_certificate_of_another_authority();
    f.server.cut_connections();
    let file = f.directory.path().join("agent-data.json");
    f.broken(&format!(
        "does not fit the trust bundle in {}",
        file.display()
    ))
    .await;
}

#[tokio::test]
async fn a_renewed_svid_that_cannot_be_written_is_used_and_written_later() {
    let mut f = start(|server| server.change(|state| state.watch = true)).await;
    f.status(|status| status.connected).await;
    let before = f.ends.identity.borrow_and_update().clone();
    // A directory in the place of each file: no rename can replace it.
    let files = ["agent-data.json", "keys.json"].map(|name| f.directory.path().join(name));
    for file in &files {
        std::fs::remove_file(file).unwrap();
        std::fs::create_dir(file).unwrap();
    }
    f.clock.advance(Duration::from_secs(1900));
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await.ok();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let renewed = f.ends.identity.borrow_and_update().clone();
    assert_ne!(before.svid.chain[0].der(), renewed.svid.chain[0].der());
    f.streams(2).await;
    f.status(|status| status.connected).await;
    for file in &files {
        std::fs::remove_dir(file).unwrap();
    }
    let written = async {
        while f.stored().svid.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, written).await.expect("in time");
    assert_eq!(f.stored().svid[0].der(), renewed.svid.chain[0].der());
}

#[tokio::test]
async fn an_svid_that_is_expired_when_it_comes_is_not_renewed_without_pause() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    // Beyond the life of an agent's SVID, within that of the server's certificate.
    f.clock.advance(70 * HOUR / 60);
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await.ok();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let syncs = f.server.calls("SyncAuthorizedEntries");
    let later = async {
        while f.server.calls("SyncAuthorizedEntries") < syncs + 10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, later).await.expect("in time");
    assert_eq!(f.server.calls("RenewAgent"), 1);
}

#[tokio::test]
async fn other_refusals_and_outages_do_not_end_the_node() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.server
        .change(|state| state.verdict = Some(Status::permission_denied("not for you")));
    f.status(|status| status.last_error.is_some()).await;
    f.server
        .change(|state| state.verdict = Some(Status::unavailable("down")));
    f.status(|status| !status.connected).await;
    f.server.change(|state| state.verdict = None);
    f.status(|status| status.connected && status.last_error.is_none())
        .await;
    assert!(!f.running.is_finished());
}

#[tokio::test]
async fn equal_token_orders_that_arrive_together_are_one_call() {
    let f = start(|server| {
        server.change(|state| state.watch = true);
        add(server, &entry("a", "/a", &["unix:uid:1"]));
    })
    .await;
    let made = entry("a", "/a", &["unix:uid:1"]);
    let answers = futures_util::future::join_all((0..20).map(|_| f.token(&made, "x"))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(f.server.calls("NewJWTSVID"), 1);
    f.token(&made, "y").await.unwrap();
    assert_eq!(f.server.calls("NewJWTSVID"), 2);
}

#[tokio::test]
async fn tokens_with_a_jti_are_never_shared() {
    let mut with_jti = spiffe::entry::Entry::clone(&entry("a", "/a", &["unix:uid:1"]));
    with_jti.jwt_svid_include_jti = true;
    let made = Arc::new(with_jti);
    let f = start(|server| add(server, &made)).await;
    let answers = futures_util::future::join_all((0..3).map(|_| f.token(&made, "x"))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(f.server.calls("NewJWTSVID"), 3);
    assert_eq!(f.cache.counts().jwt_svids, 0);
}

#[tokio::test]
async fn a_token_for_another_identity_is_refused() {
    let f = start(|server| add(server, &entry("a", "/other", &["unix:uid:1"]))).await;
    let answer = f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await;
    assert!(answer.unwrap_err().to_string().contains("instead of"));
}

#[tokio::test]
async fn the_nodes_svid_is_renewed_at_half_life_with_the_other_key() {
    let mut f = start(|server| server.change(|state| state.watch = true)).await;
    f.status(|status| status.connected).await;
    let before = f.ends.identity.borrow_and_update().clone();
    f.clock.advance(Duration::from_secs(1900));
    // The clock was moved by hand: something has to make the task look at it.
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x")
        .now_or_never();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let after = f.ends.identity.borrow().clone();
    assert_eq!(before.id(), after.id());
    assert_ne!(before.key.public_key(), after.key.public_key());
    let keys = std::fs::read_to_string(f.directory.path().join("keys.json")).unwrap();
    assert!(keys.contains("agent-svid-A") && keys.contains("agent-svid-B"));
    // The stream continues on the new client.
    f.status(|status| status.connected).await;
    f.streams(2).await;
}

/// Keys that another process holds: they sign, and cannot be taken out.
#[derive(Debug)]
struct ExternalKeys(Arc<dyn KeyManager>);

#[derive(Debug)]
struct ExternalKey(Arc<dyn Signer>);

#[async_trait::async_trait]
impl Signer for ExternalKey {
    fn public_key(&self) -> &PublicKey {
        self.0.public_key()
    }

    async fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignError> {
        // The answer comes later, by a timer of the runtime.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.0.sign(scheme, message).await
    }
}

fn external(key: Arc<dyn Signer>) -> Arc<dyn Signer> {
    Arc::new(ExternalKey(key))
}

#[async_trait::async_trait]
impl KeyManager for ExternalKeys {
    async fn generate_key(&self, id: &str, ty: KeyType) -> Result<Arc<dyn Signer>, plugin::Error> {
        self.0.generate_key(id, ty).await.map(external)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, plugin::Error> {
        Ok(self.0.key(id).await?.map(external))
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, plugin::Error> {
        let keys = self.0.keys().await?.into_iter();
        Ok(keys.map(|(id, key)| (id, external(key))).collect())
    }
}

async fn a_node_with_external_keys_attests_connects_and_renews() {
    let change = |_: &mut Config, plugins: &mut NodePlugins| {
        plugins.keys = Arc::new(ExternalKeys(Arc::clone(&plugins.keys)));
    };
    let prepare = |server: &FakeServer| server.change(|state| state.watch = true);
    let mut f = start_changed(tempfile::tempdir().unwrap(), change, prepare).await;
    f.status(|status| status.connected).await;
    let before = f.ends.identity.borrow_and_update().clone();
    assert!(before.key.local().is_none());
    f.clock.advance(Duration::from_secs(1900));
    // The clock was moved by hand: something has to make the task look at it.
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x")
        .now_or_never();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let after = f.ends.identity.borrow().clone();
    assert_ne!(before.key.public_key(), after.key.public_key());
    assert!(after.key.local().is_none());
    // The stream continues on a new connection, which the new key has signed for.
    f.status(|status| status.connected).await;
    f.streams(2).await;
}

#[tokio::test]
async fn a_key_that_never_leaves_its_key_manager_serves_on_one_thread() {
    Box::pin(a_node_with_external_keys_attests_connects_and_renews()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_key_that_never_leaves_its_key_manager_serves_where_threads_are_few() {
    Box::pin(a_node_with_external_keys_attests_connects_and_renews()).await;
}

#[tokio::test]
async fn half_of_a_change_does_not_outlive_the_link_it_came_on() {
    let made = entry("a", "/a", &["unix:uid:1"]);
    let mut f = start(|server| {
        server.change(|state| state.watch = true);
        add(server, &made);
    })
    .await;
    f.until(&["unix:uid:1"], |update| update.has_identity())
        .await;
    let event = |removed: &[&str], entries, more| WatchEvent {
        revision: 2,
        epoch: "e1".into(),
        removed_entry_ids: removed.iter().map(|id| (*id).to_owned()).collect(),
        entries,
        more,
        ..Default::default()
    };
    f.server.events.send(event(&["a"], vec![], true)).unwrap();
    f.token(&made, "x").await.unwrap();
    f.ends.identity.borrow_and_update();
    f.clock.advance(Duration::from_secs(1900));
    f.token(&made, "y").await.unwrap();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    f.streams(2).await;
    // The server sends the change of this revision whole: by now the entry is there again, with a second one.
    let wire = |entry: &Arc<spiffe::entry::Entry>| proto::convert::entry_to_wire(entry, None);
    let second = entry("b", "/b", &["unix:uid:1"]);
    add(&f.server, &second);
    f.server
        .events
        .send(event(&[], vec![wire(&made), wire(&second)], false))
        .unwrap();
    f.until(&["unix:uid:1"], |update| update.entries.len() == 2)
        .await;
}

#[tokio::test]
async fn the_own_bundle_is_kept_on_disk_as_it_changes() {
    let f = start(|_| {}).await;
    let second = crate::testing::Authority::new(&trust_domain());
    f.server
        .change(|state| state.bundle.add_x509_authority(second.certificate.clone()));
    f.until(&["unix:uid:1"], |update| {
        update
            .own
            .as_ref()
            .is_some_and(|own| own.bundle.x509_authorities.len() == 2)
    })
    .await;
    let state = StateDir::open(f.directory.path()).unwrap();
    let started = Instant::now();
    while state.load().unwrap().bundle.len() != 2 {
        assert!(started.elapsed() < LONG);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_a_tainted_authority_signed_is_issued_again() {
    let f = start(|server| add(server, &entry("a", "/a", &["unix:uid:1"]))).await;
    let before = f.until(&["unix:uid:1"], all_issued).await;
    let old_key = Arc::clone(&before.identities[0].svid.key);
    let next = crate::testing::Authority::new(&trust_domain());
    f.server.change(|state| {
        state.bundle.x509_authorities[0].tainted = true;
        state.bundle.add_x509_authority(next.certificate.clone());
        state.authority = next.clone();
    });
    let after = f
        .until(&["unix:uid:1"], |update| {
            update
                .identities
                .first()
                .is_some_and(|identity| !Arc::ptr_eq(&identity.svid.key, &old_key))
        })
        .await;
    assert_eq!(after.identities.len(), 1);
}

#[tokio::test]
async fn one_failed_call_does_not_make_the_server_gone_for_ever() {
    let mut f = start(|server| {
        server.change(|state| state.watch = true);
        add(server, &entry("a", "/a", &["unix:uid:1"]));
    })
    .await;
    f.status(|status| status.connected).await;
    let made = entry("a", "/a", &["unix:uid:1"]);
    f.server.fault("NewJWTSVID", Status::unavailable("busy"));
    f.token(&made, "x").await.unwrap_err();
    f.status(|status| !status.connected).await;
    f.token(&made, "x").await.unwrap();
    f.status(|status| status.connected && status.last_error.is_none())
        .await;
}

#[tokio::test(start_paused = true)]
async fn issuance_goes_on_at_once_when_the_server_returns_after_a_long_outage() {
    let clock = Duration::from_secs(1);
    let mut issuance = svids::Issuance::new(
        KeyPool::new(KeyType::EcP256),
        Backoff::new(FIRST_SVID_PAUSE, LONGEST_SVID_PAUSE, Arc::new(SystemRandom)),
    );
    for _ in 0..30 {
        issuance.no_answer();
    }
    assert!(issuance.pause_left().unwrap() > Duration::from_secs(200));
    tokio::time::advance(clock).await;
    issuance.server_returned();
    assert_eq!(issuance.pause_left(), Some(Duration::ZERO));
    // A server that answers everything but this is not asked faster than after a first failure.
    issuance.no_answer();
    issuance.server_returned();
    assert_eq!(issuance.pause_left(), Some(FIRST_SVID_PAUSE));
}

#[tokio::test]
async fn entries_put_off_by_an_outage_are_issued_when_the_stream_is_back() {
    let f = start(|server| {
        server.change(|state| state.watch = true);
        add(server, &entry("a", "/a", &["unix:uid:1"]));
    })
    .await;
    f.until(&["unix:uid:1"], WorkloadUpdate::has_identity).await;
    let _stream = f
        .cache
        .subscribe(&selectors(&["unix:uid:2"]), Purpose::X509Svids);
    // As after an outage of some minutes: the task has not been asked for this one.
    let b = entry("b", "/b", &["unix:uid:2"]);
    f.cache.apply(Delta {
        entries: vec![Arc::clone(&b)],
        ..Delta::default()
    });
    assert_eq!(f.cache.take_wanted(1).len(), 1);
    f.cache
        .not_answered(&[Arc::clone(&b.id)], Duration::from_secs(240));
    add(&f.server, &b);
    f.server.fault("Watch", Status::unavailable("restarting"));
    f.server.cut_connections();
    f.until(&["unix:uid:2"], all_issued).await;
}

#[tokio::test]
async fn batches_are_small_where_keys_take_long_to_make() {
    use spiffe::key::KeyType;
    let largest = |key_type| {
        let backoff = Backoff::new(FIRST_SVID_PAUSE, LONGEST_SVID_PAUSE, Arc::new(SystemRandom));
        svids::Issuance::new(KeyPool::new(key_type), backoff).limit()
    };
    assert_eq!(largest(KeyType::EcP256), 500);
    assert!(largest(KeyType::Rsa2048) <= 10);
    assert_eq!(largest(KeyType::Rsa4096), 1);
}

#[tokio::test]
async fn a_server_that_issues_no_tokens_says_why_and_is_not_taken_for_an_outage() {
    let mut f = start(|server| {
        server.change(|state| state.watch = true);
        add(server, &entry("a", "/a", &["unix:uid:1"]));
        server.fault(
            "NewJWTSVID",
            Status::unimplemented("JWT-SVIDs are disabled"),
        );
    })
    .await;
    f.status(|status| status.connected).await;
    let answer = f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await;
    assert_eq!(
        answer.unwrap_err(),
        JwtError::NotOffered("JWT-SVIDs are disabled".into())
    );
    let status = f.ends.status.borrow().clone();
    assert!(status.connected && status.last_error.is_none());
}

#[tokio::test]
async fn an_entry_that_a_server_created_again_with_the_same_revision_is_issued_again() {
    let f = start(|server| add(server, &entry("a", "/a", &["unix:uid:1"]))).await;
    let before = f.until(&["unix:uid:1"], all_issued).await;
    let key = Arc::clone(&before.identities[0].svid.key);
    let mut again = spiffe::entry::Entry::clone(&before.entries[0]);
    again.dns_names = vec!["new.example".into()];
    add(&f.server, &Arc::new(again));
    f.until(&["unix:uid:1"], |update| {
        let other = |identity: &Identity| !Arc::ptr_eq(&identity.svid.key, &key);
        update.identities.iter().any(other)
    })
    .await;
}

#[tokio::test]
async fn the_nodes_own_svid_is_renewed_when_its_authority_is_tainted() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    let before = f.ends.identity.borrow_and_update().clone();
    let next = crate::testing::Authority::new(&trust_domain());
    f.server.change(|state| {
        state.bundle.x509_authorities[0].tainted = true;
        state.bundle.add_x509_authority(next.certificate.clone());
        state.authority = next.clone();
    });
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    let after = f.ends.identity.borrow().clone();
    assert_eq!(before.id(), after.id());
    assert_ne!(before.svid.facts.issuers, after.svid.facts.issuers);
}

#[tokio::test]
async fn a_node_that_can_prove_itself_again_comes_back_after_an_eviction_and_an_expiry() {
    let mut f = start_with(Some(Arc::new(Repeatable)), |_| {}).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    f.server
        .fault("SyncAuthorizedEntries", denied(Reason::AgentNotAttested));
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    f.status(|status| status.connected).await;
    assert_eq!(f.server.calls("AttestAgent"), 2);
    f.ends.identity.borrow_and_update();
    f.clock.advance(65 * HOUR / 60);
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await.ok();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    assert_eq!(f.server.calls("RenewAgent"), 0);
    assert!(!f.stored().svid.is_empty());
}

impl Fixture {
    /// Waits until the server was synced so many times more.
    async fn syncs(&self, more: usize) {
        let before = self.server.calls("SyncAuthorizedEntries");
        let later = async {
            while self.server.calls("SyncAuthorizedEntries") < before + more {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, later).await.expect("in time");
    }

    /// Has the task look at the clock, which was moved by hand.
    async fn wake(&self) {
        let a = entry("a", "/a", &["unix:uid:1"]);
        self.token(&a, "wake").await.ok();
    }

    async fn new_identity(&mut self) {
        tokio::time::timeout(LONG, self.ends.identity.changed())
            .await
            .expect("in time")
            .unwrap();
        self.ends.identity.borrow_and_update();
    }
}

#[tokio::test]
async fn a_node_that_proves_itself_to_a_re_created_server_trusts_that_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bootstrap.pem");
    let change = |config: &mut Config, plugins: &mut NodePlugins| {
        config.node.bootstrap.source = TrustSource::Path(file.clone());
        plugins.attestor = Arc::new(Repeatable);
    };
    let prepare = |server: &FakeServer| {
        server.change(|state| {
            std::fs::write(&file, state.authority.certificate.to_pem()).unwrap();
        });
    };
    let mut f = start_changed(directory, change, prepare).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    let next = f.server.show_certificate_of_another_authority();
    std::fs::write(&file, next.certificate.to_pem()).unwrap();
    f.server.change(|state| {
        state.bundle = Bundle::new(trust_domain());
        state.bundle.add_x509_authority(next.certificate.clone());
        state.authority = next.clone();
    });
    f.server.cut_connections();
    f.status(|status| !status.connected).await;
    f.clock.advance(65 * HOUR / 60);
    f.wake().await;
    f.new_identity().await;
    f.status(|status| status.connected && !status.broken).await;
    assert_eq!(f.server.calls("AttestAgent"), 2);
    assert_eq!(f.stored().bundle[0].der(), next.certificate.der());
}

#[tokio::test]
async fn an_svid_that_a_tainted_authority_signed_again_is_not_renewed_without_pause() {
    let mut f = start(|_| {}).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    f.server
        .change(|state| state.bundle.x509_authorities[0].tainted = true);
    f.new_identity().await;
    f.syncs(10).await;
    assert_eq!(f.server.calls("RenewAgent"), 1);
}

#[tokio::test]
async fn a_fault_of_the_clock_is_over_when_the_server_answers_though_nothing_changed() {
    let mut f = start(|server| server.change(|state| state.watch = true)).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    // Beyond the life of an agent's SVID, within that of the server's certificate.
    f.clock.advance(65 * HOUR / 60);
    f.wake().await;
    f.new_identity().await;
    f.streams(2).await;
    f.status(|status| status.connected).await;
    f.server.fault("NewJWTSVID", Status::not_found("no entry"));
    let a = entry("a", "/a", &["unix:uid:1"]);
    f.token(&a, "x").await.unwrap_err();
    f.status(|status| status.connected && status.broken).await;
    f.clock.set_back(65 * HOUR / 60);
    add(&f.server, &a);
    f.token(&a, "y").await.unwrap();
    f.status(|status| status.connected && !status.broken).await;
}

#[tokio::test]
async fn a_bundle_that_could_not_be_written_is_not_forgotten_over_a_renewal() {
    let mut f = start(|server| server.change(|state| state.watch = true)).await;
    f.status(|status| status.connected).await;
    f.ends.identity.borrow_and_update();
    let file = f.directory.path().join("agent-data.json");
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let mut own = bundle("example.org");
    f.server.change(|state| {
        state
            .bundle
            .add_x509_authority(own.x509_authorities.remove(0).certificate);
    });
    let wire = proto::convert::bundle_to_wire(&f.server.state.lock().unwrap().bundle, None);
    f.server
        .events
        .send(WatchEvent {
            revision: 2,
            epoch: "e1".into(),
            bundles: vec![wire],
            ..Default::default()
        })
        .unwrap();
    f.until(&["unix:uid:1"], |update| own_authorities(update) == 2)
        .await;
    // Two calls later the failed write has been heard of.
    f.wake().await;
    f.wake().await;
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, kept).unwrap();
    f.clock.advance(Duration::from_secs(1900));
    f.wake().await;
    f.new_identity().await;
    let written = async {
        while f.stored().bundle.len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, written).await.expect("in time");
}

#[tokio::test]
async fn the_agents_version_is_posted_when_the_server_is_back() {
    let mut f = start(|server| server.fault("PostStatus", Status::unavailable("starting"))).await;
    f.status(|status| status.connected).await;
    let posted = async {
        while f.server.calls("PostStatus") < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, posted).await.expect("in time");
}
