//! The SPIFFE node agent: attestation, identity cache and the Workload API.
//!
//! [`Agent::bind`] takes a [`Config`], opens the state directory and binds the sockets; [`Bound::run`] joins the trust
//! domain and serves until told to stop. Arrows inside: `endpoints → workload_api → {attestor, cache}`,
//! `sync → {cache, join, link}`; the cache knows none of them.

use std::path::Path;
use std::sync::Arc;

use ::config::fault::{Code, Fault};
use daemon::socket::Modes;
use plugin::lifecycle::HostServices;
use spiffe::clock::{Clock, SystemClock};
use spiffe::random::{Random, SystemRandom};
use tokio::sync::watch;
use tokio::task::JoinSet;

mod admin_api;
mod attestor;
mod backoff;
mod bootstrap;
mod cache;
pub mod config;
mod dial;
mod endpoints;
mod join;
mod link;
mod node;
mod rate_limit;
mod state;
mod state_writer;
mod stop;
mod sync;
#[cfg(test)]
mod testing;
mod timefmt;
mod workload_api;

pub use self::config::{Config, Overrides};

use attestor::Attestors;
use cache::svids::RotationRule;
use cache::{Cache, CacheOptions, Delta};
use endpoints::http_health::HttpHealth;
use endpoints::standard::Standard;
use endpoints::{Serve, Socket};
use join::Joined;
use node::{Absence, Node, Stored};
use rate_limit::RateLimiter;
use state::StateDir;
use stop::{Stop, Stopper};
use sync::{LinkStatus, Sync, SyncEnds};
use workload_api::{Context, Options, WorkloadApi};

/// The way in: [`Agent::bind`].
#[derive(Debug)]
pub struct Agent;

/// An agent whose sockets are bound and whose state is open.
#[derive(Debug)]
pub struct Bound {
    node: Node,
    attestors: Attestors,
    socket: Option<Socket>,
    admin_socket: Option<Socket>,
    health: Option<HttpHealth>,
    random: Arc<dyn Random>,
}

impl Agent {
    /// Checks everything that can be checked before the server is asked.
    ///
    /// # Errors
    /// PLA-13xx when a socket, a port, the data directory or the key file can't be used; PLA-1115 when the stored
    /// state is damaged.
    pub async fn bind(config: Config) -> Result<Bound, Fault> {
        // A provider that is installed already is the same one.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let state = StateDir::open(&config.data_dir)?;
        let socket = if config.workload_api {
            Some(Socket::bind(&config.socket_path, Modes::PUBLIC)?)
        } else {
            None
        };
        let admin_socket = match &config.admin_socket_path {
            Some(path) => Some(Socket::bind(path, Modes::ADMIN)?),
            None => None,
        };
        let health = match &config.health {
            Some(health) => Some(HttpHealth::bind(health)?),
            None => None,
        };
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let host = HostServices::new(
            config.trust_domain.clone(),
            Arc::clone(&clock),
            Arc::clone(&random),
        );
        let plugins = config.plugins.open(&host).await?;
        let attestors = plugins.workload_attestors.iter();
        let attestors = Attestors::new(attestors.map(|one| Arc::clone(one.plugin())).collect());
        let keys = Arc::clone(plugins.key_manager.plugin());
        let node = Node::open(config, state, keys, clock)?;
        Ok(Bound {
            node,
            attestors,
            socket,
            admin_socket,
            health,
            random,
        })
    }
}

impl Bound {
    /// The Workload API's socket; nothing when that API is switched off.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_ref().map(Socket::path)
    }

    /// The administration socket.
    pub fn admin_socket(&self) -> Option<&Path> {
        self.admin_socket.as_ref().map(Socket::path)
    }

    /// Serves until `shutdown`, or until the node may not go on.
    ///
    /// # Errors
    /// PLA-11xx: why the node can't join, or is not a member any more.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Fault> {
        let (stopper, stop) = Stopper::new();
        let node = Arc::new(self.node);
        let cache = Arc::new(new_cache(&node, &self.random));
        let (jwt, orders) = watch::channel(None);
        let (status, link_status) = watch::channel(LinkStatus::default());
        let context = Arc::new(Context {
            trust_domain: node.config.trust_domain.clone(),
            cache: Arc::clone(&cache),
            attestors: self.attestors,
            limiter: RateLimiter::new(node.config.rate_limits),
            jwt: orders,
            status: link_status,
            clock: Arc::clone(&node.clock),
            random: Arc::clone(&self.random),
            standard: Standard::new().await,
            options: options(&node.config),
            searched: std::sync::Mutex::default(),
            log_limits: workload_api::LogLimits::default(),
        });
        let mut tasks: JoinSet<Result<(), Fault>> = JoinSet::new();
        serve(
            &mut tasks,
            self.socket,
            WorkloadApi::new(Arc::clone(&context)),
            &stop,
        );
        serve(
            &mut tasks,
            self.admin_socket,
            admin_api::AdminApi::new(Arc::clone(&context)),
            &stop,
        );
        let healthy = watch::Sender::new(false);
        if let Some(health) = self.health {
            tasks.spawn(health.serve(healthy.subscribe(), stop.clone()));
        }
        tasks.spawn(tell_health(
            Arc::clone(&context),
            healthy.subscribe(),
            stop.clone(),
        ));
        tasks.spawn(watch_health(
            healthy,
            cache.ready(),
            context.status.clone(),
            stop.clone(),
        ));
        let membership = Membership {
            node,
            cache,
            random: self.random,
            jwt,
            status,
        };
        tasks.spawn(membership.hold(stop));

        let ended = tokio::select! {
            () = shutdown => Ok(()),
            Some(ended) = tasks.join_next() => flatten(ended),
        };
        stopper.stop();
        let mut outcome = ended;
        while let Some(ended) = tasks.join_next().await {
            outcome = outcome.and(flatten(ended));
        }
        outcome
    }
}

/// The part of the agent that is a member of the trust domain.
struct Membership {
    node: Arc<Node>,
    cache: Arc<Cache>,
    random: Arc<dyn Random>,
    jwt: watch::Sender<Option<tokio::sync::mpsc::Sender<sync::JwtRequest>>>,
    status: watch::Sender<LinkStatus>,
}

impl Membership {
    /// Takes up the stored identity or joins, then follows the server.
    async fn hold(self, mut stop: Stop) -> Result<(), Fault> {
        let joined = tokio::select! {
            () = stop.stopped() => return Ok(()),
            joined = self.identity() => joined?,
        };
        let (sync, ends) = Sync::new(
            Arc::clone(&self.node),
            Arc::clone(&self.cache),
            joined,
            Arc::clone(&self.random),
        )?;
        let SyncEnds {
            jwt,
            status: mut link,
            identity,
        } = ends;
        self.jwt.send_replace(Some(jwt));
        let writer = tokio::spawn(state_writer::run(
            Arc::clone(&self.node),
            Arc::clone(&self.cache),
            identity,
            stop.clone(),
        ));
        let told = self.status;
        let teller = tokio::spawn(async move {
            while link.changed().await.is_ok() {
                told.send_replace(link.borrow_and_update().clone());
            }
        });
        let outcome = sync.run(stop).await;
        teller.abort();
        if outcome.is_err() {
            // The node is no member any more: what was kept for it is gone and is not to be written again.
            writer.abort();
        } else if let Err(error) = writer.await {
            tracing::warn!(%error, "last good state not stored");
        }
        outcome
    }

    async fn identity(&self) -> Result<Joined, Fault> {
        let absence = match (
            self.node.stored_identity().await?,
            self.node.stored_bundle(),
        ) {
            (Stored::Usable(identity), Some(bundle)) => {
                tracing::info!(id = %identity.id(), "using the stored identity");
                self.restore(&identity).await;
                return Ok(Joined { identity, bundle });
            }
            (Stored::Usable(_), None) => Absence::NeverAttested,
            (Stored::Absent(absence), _) => absence,
        };
        let joined = join::join(&self.node, Some(&absence), Arc::clone(&self.random)).await?;
        self.cache.apply(Delta {
            bundles: vec![joined.bundle.clone()],
            ..Delta::default()
        });
        Ok(joined)
    }

    /// Serves what was good when the agent stopped, until the server says otherwise.
    async fn restore(&self, identity: &node::NodeIdentity) {
        let kept = self.node.last_good(identity.id().clone()).await;
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

fn new_cache(node: &Node, random: &Arc<dyn Random>) -> Cache {
    let options = CacheOptions {
        trust_domain: node.config.trust_domain.clone(),
        x509_svids: node.config.x509_svid_cache_max_size,
        jwt_svids: node.config.jwt_svid_cache_max_size,
        rotation: RotationRule {
            availability_target: node.config.availability_target,
        },
    };
    Cache::new(options, Arc::clone(&node.clock), Arc::clone(random))
}

fn options(config: &Config) -> Options {
    Options {
        enabled: config.workload_api,
        allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers,
        allowed_foreign_jwt_claims: config.allowed_foreign_jwt_claims.clone(),
        log_selectors: config.log.selectors.clone(),
        exempt: std::process::id(),
    }
}

fn serve(
    tasks: &mut JoinSet<Result<(), Fault>>,
    socket: Option<Socket>,
    service: impl Serve,
    stop: &Stop,
) {
    if let Some(socket) = socket {
        tasks.spawn(socket.serve(service, stop.clone()));
    }
}

/// The agent is healthy when it can serve workloads and nothing is wrong that an operator has to mend.
async fn watch_health(
    healthy: watch::Sender<bool>,
    mut ready: watch::Receiver<bool>,
    mut link: watch::Receiver<LinkStatus>,
    mut stop: Stop,
) -> Result<(), Fault> {
    loop {
        healthy.send_replace(*ready.borrow_and_update() && !link.borrow_and_update().broken);
        let changed = tokio::select! {
            () = stop.stopped() => return Ok(()),
            changed = ready.changed() => changed,
            changed = link.changed() => changed,
        };
        if changed.is_err() {
            // The membership ended, and the agent with it.
            stop.stopped().await;
            return Ok(());
        }
    }
}

/// Reports health over gRPC until the agent stops.
async fn tell_health(
    context: Arc<Context>,
    mut healthy: watch::Receiver<bool>,
    mut stop: Stop,
) -> Result<(), Fault> {
    loop {
        let serving = *healthy.borrow_and_update();
        context.standard.serving(serving).await;
        let changed = tokio::select! {
            () = stop.stopped() => break,
            changed = healthy.changed() => changed,
        };
        if changed.is_err() {
            stop.stopped().await;
            break;
        }
    }
    context.standard.serving(false).await;
    Ok(())
}

fn flatten(ended: Result<Result<(), Fault>, tokio::task::JoinError>) -> Result<(), Fault> {
    ended.unwrap_or_else(|error| {
        Err(Fault::new(Code::Internal, "a part of the agent broke").because(error))
    })
}

#[cfg(test)]
mod tests;
