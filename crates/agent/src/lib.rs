//! The SPIFFE node agent: attestation, identity cache and the Workload API.
//!
//! [`Agent::bind`] takes a [`Config`], opens the state directory and binds the sockets; [`Bound::run`] attests the node
//! and serves until it is stopped. Arrows inside: `{workload_api, admin_api} → gate → {attestor, cache}`,
//! `sync → {cache, node_attestation, server_client}`; the cache knows none of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::config::fault::{Code, Fault};
use daemon::http_probes::{HttpProbes, Report};
use daemon::log_control::{LogControl, LogLevels};
use daemon::socket::Modes;
use daemon::systemd::Systemd;
use daemon::tasks::{Shutdown, Tasks};
use daemon::telemetry::Telemetry;
use plugin::catalog::RunningAgentPlugins;
use plugin::lifecycle::HostServices;
use spiffe::clock::{Clock, SystemClock};
use spiffe::random::{Random, SystemRandom};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

mod admin_api;
mod attestor;
mod backoff;
mod bootstrap;
mod cache;
pub mod config;
mod dial;
mod endpoints;
mod gate;
mod handover;
mod metrics;
mod node;
mod node_attestation;
mod rate_limit;
mod server_client;
mod state;
mod state_writer;
mod sync;
#[cfg(test)]
mod testing;
mod timefmt;
mod workload_api;

pub use self::config::{Config, Overrides};

use admin_api::NodeState;
use attestor::Attestors;
use cache::svids::RotationRule;
use cache::{Cache, CacheOptions, Delta};
use config::{CacheConfig, GateConfig, SyncConfig, WorkloadApiConfig};
use endpoints::Socket;
use endpoints::router::{Router, Service};
use endpoints::standard::{Health, Reflection};
use gate::{Gate, GateOptions};
use handover::Handover;
use node::{Absence, Node, NodePlugins, Stored};
use node_attestation::AttestedNode;
use rate_limit::RateLimiter;
use state::StateDir;
use sync::{Sync, SyncEnds, SyncStatus};
use workload_api::{Context, WorkloadApi};

/// How long the tasks have to stop, and then the plugins: together less than the 30 seconds after which Kubernetes ends a
/// process. The longest may have to finish an attestation that is under way and then to write the node's SVID, with
/// limits of 10 and 5 seconds.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const PLUGINS_DEADLINE: Duration = Duration::from_secs(5);

/// The way in: [`Agent::bind`].
#[derive(Debug)]
pub struct Agent;

/// An agent whose sockets are bound and whose state is open.
#[derive(Debug)]
pub struct Bound {
    node: Node,
    plugins: RunningAgentPlugins,
    attestors: Attestors,
    socket: Socket,
    admin_socket: Option<Socket>,
    health: Option<HttpProbes>,
    sync: SyncConfig,
    cache: CacheConfig,
    gate: GateConfig,
    workload_api: Option<WorkloadApiConfig>,
    log: LogLevels,
    random: Arc<dyn Random>,
    handover: Handover,
}

/// What the process lends the agent beside its configuration.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// For the Logger service; without it that says that the level cannot be changed.
    pub log: Option<Arc<dyn LogControl>>,
    /// Where measurements go; nowhere by default.
    pub telemetry: Telemetry,
}

impl Agent {
    /// Checks everything that can be checked before the server is asked.
    ///
    /// # Errors
    /// PLA-13xx when a socket, a port, the data directory or the key file can't be used; PLA-1115 when the stored
    /// state is damaged.
    pub async fn bind(config: Config) -> Result<Bound, Fault> {
        Self::bind_in(config, Environment::default()).await
    }

    /// As [`Self::bind`], with what the process lends.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_in(config: Config, environment: Environment) -> Result<Bound, Fault> {
        // A provider that is installed already is the same one.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let state = StateDir::open(&config.data_dir)?;
        // Also without the Workload API: health is asked for here. SPIRE: so too.
        let socket = Socket::bind(&config.socket_path, Modes::PUBLIC)?;
        let admin_socket = match &config.admin_socket_path {
            Some(path) => Some(Socket::bind(path, Modes::ADMIN)?),
            None => None,
        };
        let health = match &config.health {
            Some(health) => Some(HttpProbes::bind(health)?),
            None => None,
        };
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let host = HostServices::new(
            config.node.trust_domain.clone(),
            Arc::clone(&clock),
            Arc::clone(&random),
        )
        .with_join_token(config.join_token.clone());
        let plugins = config.plugins.open(&host).await?;
        let attestors = plugins.workload_attestors.iter();
        let attestors = Attestors::new(attestors.map(|one| Arc::clone(one.plugin())).collect())
            .with_telemetry(environment.telemetry.clone());
        let keys = Arc::clone(plugins.key_manager.plugin());
        let attestor = Arc::clone(plugins.node_attestor.plugin());
        let node = Node::open(config.node, state, NodePlugins { keys, attestor }, clock)?
            .with_telemetry(environment.telemetry);
        let trust_domain = node.config.trust_domain.as_str();
        node.telemetry
            .set_number(&metrics::STARTED, 1, [sync::VERSION, trust_domain]);
        Ok(Bound {
            node,
            plugins,
            attestors,
            socket,
            admin_socket,
            health,
            sync: config.sync,
            cache: config.cache,
            gate: config.gate,
            workload_api: config.workload_api,
            log: LogLevels::new(environment.log),
            random,
            handover: Handover::new(Systemd::from_env()),
        })
    }
}

impl Bound {
    /// The plugins, to have them read their files again.
    pub fn plugins(&self) -> RunningAgentPlugins {
        self.plugins.clone()
    }

    /// The public socket.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// The administration socket.
    pub fn admin_socket(&self) -> Option<&Path> {
        self.admin_socket.as_ref().map(Socket::path)
    }

    /// Serves until `shutdown`, or until the node may not go on.
    ///
    /// # Errors
    /// PLA-11xx: why the node cannot be attested, or is no longer a member.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Fault> {
        let mut tasks = Tasks::new();
        let plugins = self.plugins;
        let node = Arc::new(self.node);
        let cache = Arc::new(new_cache(&node, self.cache, &self.random));
        let (jwt, orders) = watch::channel(None);
        let (status, link_status) = watch::channel(SyncStatus::default());
        let (node_state, shown_state) = watch::channel(NodeState::default());
        let gate = Arc::new(Gate {
            cache: Arc::clone(&cache),
            attestors: self.attestors,
            limiter: RateLimiter::new(self.gate.rate_limits),
            status: link_status,
            clock: Arc::clone(&node.clock),
            random: Arc::clone(&self.random),
            options: GateOptions {
                log_selectors: self.gate.log_selectors,
                exempt: std::process::id(),
            },
            log_limits: gate::LogLimits::default(),
            requests: gate::RequestLog::default(),
            telemetry: node.telemetry.clone(),
            searched: std::sync::Mutex::default(),
        });
        let (health, [public_health, admin_health]) = Health::new().await;
        let mut public: Vec<Box<dyn Service>> =
            vec![public_health, Box::new(Reflection::default())];
        if let Some(config) = self.workload_api {
            // First, since nearly every request is for it.
            public.insert(0, workload_api(config, &node, &gate, orders));
        }
        let admin = vec![
            admin_health,
            Box::new(Reflection::default()),
            admin_api::logger(self.log),
            admin_api::debug(Arc::clone(&gate), Arc::clone(&node.clock), shown_state),
        ];
        let (connections, admin_connections) = endpoints::budgets(&node.telemetry);
        tasks.spawn(
            "Workload API socket",
            self.socket
                .serve(Router::new(public), connections, tasks.shutdown()),
        );
        if let Some(socket) = self.admin_socket {
            tasks.spawn(
                "admin socket",
                socket.serve(Router::new(admin), admin_connections, tasks.shutdown()),
            );
        }
        let is_healthy = spawn_health_watch(&mut tasks, cache.ready(), gate.status.clone());
        if let Some(probes) = self.health {
            let healthy = is_healthy.clone();
            let report = move || report(*healthy.borrow());
            tasks.spawn("health checks", probes.run(report, tasks.shutdown()));
        }
        tasks.spawn(
            "health service",
            tell_health(health, is_healthy, tasks.shutdown()),
        );
        let handover = Arc::new(self.handover);
        handover.systemd().ready();
        let membership = Membership {
            handover: Arc::clone(&handover),
            node,
            cache,
            sync: self.sync,
            random: self.random,
            jwt,
            status,
            node_state,
        };
        tasks.spawn("membership", membership.hold(tasks.shutdown()));

        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            fault = tasks.failure() => Err(fault),
        };
        handover.systemd().stopping();
        let stopped = stop(tasks, plugins.stop()).await;
        outcome.and(stopped)
    }
}

/// Stops the tasks, then the plugins that they use. Whatever hangs, the agent ends.
async fn stop(tasks: Tasks, plugins: impl Future<Output = ()>) -> Result<(), Fault> {
    let tasks = tasks.stop(STOP_DEADLINE).await;
    let plugins = tokio::time::timeout(PLUGINS_DEADLINE, plugins).await;
    tasks.and(plugins.map_err(|_elapsed| {
        let seconds = PLUGINS_DEADLINE.as_secs();
        Fault::new(
            Code::Internal,
            format!("the plugins did not stop within {seconds} s"),
        )
    }))
}

/// The part of the agent that is a member of the trust domain.
struct Membership {
    node: Arc<Node>,
    cache: Arc<Cache>,
    sync: SyncConfig,
    random: Arc<dyn Random>,
    jwt: watch::Sender<Option<mpsc::Sender<sync::JwtRequest>>>,
    status: watch::Sender<SyncStatus>,
    /// For the debug API.
    node_state: watch::Sender<NodeState>,
    handover: Arc<Handover>,
}

impl Membership {
    /// Uses the stored identity or attests, then follows the server.
    async fn hold(self, shutdown: Shutdown) -> Result<(), Fault> {
        let Some(attested) = self.identity(shutdown.clone()).await? else {
            return Ok(());
        };
        let (sync, ends) = Sync::new(
            Arc::clone(&self.node),
            Arc::clone(&self.cache),
            attested,
            self.sync,
            Arc::clone(&self.random),
            shutdown.clone(),
        )?;
        let SyncEnds {
            jwt,
            status: sync_status,
            identity,
        } = ends;
        let renewed = identity.clone();
        let current = identity.clone();
        self.jwt.send_replace(Some(jwt));
        let writer = tokio::spawn(state_writer::run(
            Arc::clone(&self.node),
            Arc::clone(&self.cache),
            identity,
            shutdown.clone(),
        ));
        let teller = tokio::spawn(show_state(
            Arc::clone(&self.node.clock),
            (self.status, sync_status),
            (self.node_state, renewed),
        ));
        let outcome = sync.run().await;
        teller.abort();
        if outcome.is_err() {
            // The node is no member any more: what was kept for it is gone and is not to be written again.
            writer.abort();
        } else {
            last_write(writer).await;
        }
        if outcome.is_ok() {
            let agent_id = current.borrow().id().clone();
            self.handover.send(&agent_id, &self.cache).await;
        }
        outcome
    }

    /// The node's identity, stored or new; nothing when the agent was stopped first.
    async fn identity(&self, shutdown: Shutdown) -> Result<Option<AttestedNode>, Fault> {
        let absence = match (
            self.node.stored_identity().await?,
            self.node.stored_bundle(),
        ) {
            (Stored::Usable(identity), Some(bundle)) => {
                tracing::info!(id = %identity.id(), "using the stored identity");
                self.restore(&identity).await;
                return Ok(Some(AttestedNode {
                    identity,
                    bundle,
                    unsaved: false,
                }));
            }
            (Stored::Usable(_), None) => Absence::NeverAttested,
            (Stored::Absent(absence), _) => absence,
        };
        self.handover.discard();
        let random = Arc::clone(&self.random);
        let Some(attested) =
            node_attestation::attest_node(&self.node, Some(&absence), random, shutdown).await?
        else {
            return Ok(None);
        };
        self.cache.apply(Delta {
            bundles: vec![attested.bundle.clone()],
            ..Delta::default()
        });
        Ok(Some(attested))
    }

    /// Serves what was good when the agent stopped, until the server says otherwise.
    async fn restore(&self, identity: &node::NodeIdentity) {
        let mut kept = self.node.last_good(identity.id().clone()).await;
        let now = self.node.clock.now();
        let handed_over = self.handover.receive(identity.id(), &kept.entries, now);
        kept.svids.extend(handed_over);
        let own = &self.node.config.trust_domain;
        if kept.entries.is_empty()
            || !kept
                .bundles
                .iter()
                .any(|bundle| bundle.trust_domain == *own)
        {
            return;
        }
        tracing::info!(
            entries = kept.entries.len(),
            svids = kept.svids.len(),
            "serving the last good state until the server answers"
        );
        let bundles = kept
            .bundles
            .iter()
            .map(|bundle| bundle.as_ref().clone())
            .collect();
        self.cache.apply(Delta {
            entries: kept.entries,
            bundles,
            ..Delta::default()
        });
        self.cache.restore(kept.svids);
        self.cache.set_ready();
    }
}

fn new_cache(node: &Node, config: CacheConfig, random: &Arc<dyn Random>) -> Cache {
    let options = CacheOptions {
        trust_domain: node.config.trust_domain.clone(),
        x509_svids: config.x509_svids,
        jwt_svids: config.jwt_svids,
        rotation: RotationRule {
            availability_target: config.availability_target,
        },
    };
    Cache::new(options, Arc::clone(&node.clock), Arc::clone(random))
        .with_telemetry(node.telemetry.clone())
}

fn workload_api(
    config: WorkloadApiConfig,
    node: &Node,
    gate: &Arc<Gate>,
    jwt: watch::Receiver<Option<mpsc::Sender<sync::JwtRequest>>>,
) -> Box<dyn Service> {
    let context = Context {
        trust_domain: node.config.trust_domain.clone(),
        gate: Arc::clone(gate),
        jwt,
        jwt_turns: workload_api::jwt_turns(),
        clock: Arc::clone(&node.clock),
        config,
    };
    Box::new(WorkloadApi::new(Arc::new(context)))
}

/// Passes on, from where each is known to where each is shown, the state of the connection and the node's.
async fn show_state(
    clock: Arc<dyn Clock>,
    (shown_sync_status, mut sync_status): (watch::Sender<SyncStatus>, watch::Receiver<SyncStatus>),
    (shown_node, mut identity): (
        watch::Sender<NodeState>,
        watch::Receiver<node::NodeIdentity>,
    ),
) {
    loop {
        let status = sync_status.borrow_and_update().clone();
        let own = identity.borrow_and_update().clone();
        let was_connected = shown_sync_status.borrow().connected;
        shown_node.send_modify(|node| {
            node.identity = Some(own);
            if status.connected || was_connected {
                node.last_sync = Some(clock.now());
            }
        });
        shown_sync_status.send_replace(status);
        let changed = tokio::select! {
            changed = sync_status.changed() => changed,
            changed = identity.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// A disk that hangs holds up the stop no longer than this.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Waits for the writer of the last good state to end, which writes once more when the agent stops.
async fn last_write(mut writer: JoinHandle<()>) {
    match tokio::time::timeout(LAST_WRITE, &mut writer).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "last good state not stored"),
        Err(_elapsed) => {
            writer.abort();
            tracing::error!("last good state not stored: the disk does not answer");
        }
    }
}

/// SPIRE: what the agent's health checks answer.
fn report(healthy: bool) -> Report {
    let details = if healthy {
        serde_json::json!({ "agent": {} })
    } else {
        serde_json::json!({ "agent": { "make_new_x509_err": "the agent has not heard from its server yet" } })
    };
    Report {
        live: true,
        ready: healthy,
        details: details.to_string(),
    }
}

fn spawn_health_watch(
    tasks: &mut Tasks,
    ready: watch::Receiver<bool>,
    sync_status: watch::Receiver<SyncStatus>,
) -> watch::Receiver<bool> {
    let healthy = watch::Sender::new(false);
    let is_healthy = healthy.subscribe();
    let watching = watch_health(healthy, ready, sync_status, tasks.shutdown());
    tasks.spawn("health watch", watching);
    is_healthy
}

/// The agent is healthy when it can serve workloads and nothing is wrong that an operator has to mend.
async fn watch_health(
    healthy: watch::Sender<bool>,
    mut ready: watch::Receiver<bool>,
    mut sync_status: watch::Receiver<SyncStatus>,
    mut shutdown: Shutdown,
) {
    loop {
        healthy.send_replace(*ready.borrow_and_update() && !sync_status.borrow_and_update().broken);
        let changed = tokio::select! {
            () = shutdown.requested() => return,
            changed = ready.changed() => changed,
            changed = sync_status.changed() => changed,
        };
        if changed.is_err() {
            // The membership ended, and the agent with it.
            shutdown.requested().await;
            return;
        }
    }
}

/// Reports health over gRPC until the agent stops.
async fn tell_health(health: Health, mut healthy: watch::Receiver<bool>, mut shutdown: Shutdown) {
    loop {
        let serving = *healthy.borrow_and_update();
        health.serving(serving).await;
        let changed = tokio::select! {
            () = shutdown.requested() => break,
            changed = healthy.changed() => changed,
        };
        if changed.is_err() {
            shutdown.requested().await;
            break;
        }
    }
    health.serving(false).await;
}

#[cfg(test)]
mod tests;
