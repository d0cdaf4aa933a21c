//! The one task that talks to the server: it follows the node's entries and bundles, has SVIDs issued for what the
//! cache wants, renews the node's own SVID, and ends the agent when the server has banned or forgotten the node.
//!
//! All of its state is its own. Calls run side by side in one set of futures and come back as [`Done`]; workloads
//! reach it by a bounded channel, and it reaches them by the cache.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::fault::Fault;
use daemon::tasks::Shutdown;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use proto::plastron::server::v1::WatchEvent;
use spiffe::bundle::Bundle;
use spiffe::random::Random;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

mod bundle_reports;
mod jwt;
mod node_svid;
mod outage;
mod poll;
mod svids;
mod watching;

pub(crate) use jwt::{JwtError, JwtRequest, Reply, WAITING as JWT_WAITING};

use crate::backoff::{Backoff, spread};
use crate::cache::keys::KeyPool;
use crate::cache::{Cache, Delta};
use crate::config::SyncConfig;
use crate::dial;
use crate::node::{Node, NodeIdentity};
use crate::node_attestation::AttestedNode;
use crate::server_client::{ClientError, ServerClient};
use crate::state::removal::Reason;

/// SPIRE: synchronizeMaxInterval, synchronizeMaxIntervalMultiple.
const LONGEST_SYNC_PAUSE: Duration = Duration::from_secs(8 * 60);
const LONGEST_SYNC_MULTIPLE: u32 = 48;
/// With the stream the server is missed at once, and the node should come back soon: the connection is one, not a poll.
const FIRST_WATCH_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_WATCH_PAUSE: Duration = Duration::from_secs(30);
/// SPIRE: SVIDSyncInterval, maxSVIDSyncInterval.
const FIRST_SVID_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_SVID_PAUSE: Duration = Duration::from_secs(4 * 60);
/// SPIRE: the node's SVID is looked at every 5 s and retried up to 24 times as late.
const FIRST_RENEWAL_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_RENEWAL_PAUSE: Duration = Duration::from_secs(120);
/// Wall time may jump, so nothing sleeps longer than this without a look at the clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// A server that had no stream may have been replaced by one that has.
const LOOK_FOR_STREAM: Duration = Duration::from_secs(600);

/// How the connection to the server is, for the debug API, health and those who wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct SyncStatus {
    pub(crate) connected: bool,
    pub(crate) last_error: Option<String>,
    /// What is wrong does not pass by itself: somebody has to correct a clock, a file or an address. The agent is not
    /// healthy then, though it serves what it has.
    pub(crate) broken: bool,
}

/// A call that ended. `generation` is that of the client it ran on.
#[derive(Debug)]
struct Done {
    generation: u64,
    what: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Status(Result<(), ClientError>),
    Polled(Result<poll::Polled, ClientError>),
    WatchOpened(Result<tonic::Streaming<WatchEvent>, ClientError>),
    WatchSaid(
        Box<tonic::Streaming<WatchEvent>>,
        Result<Option<WatchEvent>, ClientError>,
    ),
    Svids(svids::Issued),
    Jwt(jwt::Answer),
    Renewed(Result<node_svid::Renewed, node_svid::RenewalError>),
    Saved(Result<(), Fault>),
    Stored(Result<(), Fault>),
}

/// How the node hears of changes.
#[derive(Debug)]
enum Following {
    /// Our stream. `open` while a stream, or an attempt at one, is under way.
    Watch { open: bool },
    /// SPIRE's sync at an interval.
    Poll { busy: bool, since: Instant },
}

/// The task. [`Sync::run`] is all there is to do with it.
#[derive(Debug)]
pub(crate) struct Sync {
    node: Arc<Node>,
    cache: Arc<Cache>,
    random: Arc<dyn Random>,
    identity: NodeIdentity,
    client: ServerClient,
    trust: dial::TrustStore,
    generation: u64,
    calls: FuturesUnordered<BoxFuture<'static, Done>>,
    /// What the server said that costs the node its identity; carried out when the task ends.
    removal: Option<Reason>,
    /// What was logged last of an outage, so that each cause is logged once.
    reported: Option<String>,
    /// The server knows this agent's version, or is being sent it.
    status_posted: bool,
    shutdown: Shutdown,
    status: watch::Sender<SyncStatus>,
    identities: watch::Sender<NodeIdentity>,

    following: Following,
    /// Between two polls of a server without our stream.
    interval: Duration,
    next_sync: Instant,
    sync_backoff: Backoff,
    watch_backoff: Backoff,
    changes: watching::Changes,
    /// A call failed because the server did not answer, and none has been answered since.
    server_lost: bool,
    bundle_reports: bundle_reports::BundleReports,

    svids: svids::Issuance,
    jwt: jwt::Issuance,
    renewal: node_svid::Renewal,
}

/// The ends that others hold.
#[derive(Debug)]
pub(crate) struct SyncEnds {
    pub(crate) jwt: mpsc::Sender<JwtRequest>,
    pub(crate) status: watch::Receiver<SyncStatus>,
    pub(crate) identity: watch::Receiver<NodeIdentity>,
}

impl Sync {
    /// A task for an attested node.
    ///
    /// # Errors
    /// When the identity can't be used for TLS.
    pub(crate) fn new(
        node: Arc<Node>,
        cache: Arc<Cache>,
        attested: AttestedNode,
        config: SyncConfig,
        random: Arc<dyn Random>,
        shutdown: Shutdown,
    ) -> Result<(Self, SyncEnds), Fault> {
        let AttestedNode {
            identity,
            bundle,
            unsaved,
        } = attested;
        let trust = dial::TrustStore::new(&bundle);
        let client = dial::as_node(&node, &identity, &trust)?;
        let (jwt, jwt_requests) = mpsc::channel(jwt::WAITING);
        let status = watch::Sender::new(SyncStatus::default());
        let identities = watch::Sender::new(identity.clone());
        let ends = SyncEnds {
            jwt,
            status: status.subscribe(),
            identity: identities.subscribe(),
        };
        let SyncConfig {
            interval,
            workload_key_type,
        } = config;
        let backoff = |first, longest| Backoff::new(first, longest, Arc::clone(&random));
        let task = Self {
            following: Following::Watch { open: false },
            interval,
            next_sync: Instant::now(),
            sync_backoff: backoff(
                interval,
                LONGEST_SYNC_PAUSE.min(interval * LONGEST_SYNC_MULTIPLE),
            ),
            watch_backoff: backoff(FIRST_WATCH_PAUSE, LONGEST_WATCH_PAUSE),
            changes: watching::Changes::default(),
            server_lost: false,
            bundle_reports: bundle_reports::BundleReports::default(),
            svids: svids::Issuance::new(
                KeyPool::new(workload_key_type),
                backoff(FIRST_SVID_PAUSE, LONGEST_SVID_PAUSE),
            ),
            jwt: jwt::Issuance::new(jwt_requests),
            renewal: node_svid::Renewal::new(
                backoff(FIRST_RENEWAL_PAUSE, LONGEST_RENEWAL_PAUSE),
                unsaved,
            ),
            node,
            cache,
            random,
            identity,
            client,
            trust,
            generation: 0,
            calls: FuturesUnordered::new(),
            removal: None,
            reported: None,
            status_posted: false,
            shutdown,
            status,
            identities,
        };
        Ok((task, ends))
    }

    /// Runs until the shutdown, or until the node may not go on.
    ///
    /// # Errors
    /// PLA-1114 when the node is banned, PLA-1116 when it has to attest again.
    pub(crate) async fn run(mut self) -> Result<(), Fault> {
        let outcome = self.follow().await;
        if let Some(reason) = self.removal {
            let agent_id = self.identity.id().clone();
            let forgotten = self.node.forget(agent_id, reason);
            let forgotten = tokio::time::timeout(node_svid::SAVE_AT_STOP, forgotten);
            if forgotten.await.is_err() {
                tracing::error!(
                    "the node's SVID is not removed from disk: the disk does not answer"
                );
            }
        } else {
            self.save_at_stop().await;
        }
        outcome
    }

    async fn follow(&mut self) -> Result<(), Fault> {
        let mut shutdown = self.shutdown.clone();
        self.svids.pool.refill();
        self.post_status();
        let cache = Arc::clone(&self.cache);
        loop {
            self.start_what_is_due();
            let sleep = self.sleep_for();
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                Some(done) = self.calls.next(), if !self.calls.is_empty() => self.take(done)?,
                Some(request) = self.jwt.requests.recv(), if self.jwt.has_room() => self.request_jwt(request),
                () = cache.wanting() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    fn start_what_is_due(&mut self) {
        let now = self.node.clock.now();
        self.cache.tick();
        self.start_renewal(now);
        self.save_again();
        self.start_following();
        self.start_issuing();
    }

    fn start_following(&mut self) {
        let due = Instant::now() >= self.next_sync;
        match &self.following {
            Following::Watch { open: false } if due => self.open_watch(),
            Following::Poll { busy: false, since } if due && since.elapsed() >= LOOK_FOR_STREAM => {
                self.open_watch();
            }
            Following::Poll { busy: false, .. } if due => self.poll(),
            _ => {}
        }
    }

    fn sleep_for(&self) -> Duration {
        let now = self.node.clock.now();
        let until = |when: SystemTime| when.duration_since(now).unwrap_or(Duration::ZERO);
        let mut sleep = LONGEST_SLEEP;
        if let Some(due) = self.cache.next_due() {
            sleep = sleep.min(until(due));
        }
        if let Some(due) = self.renewal.due(&self.identity) {
            sleep = sleep.min(until(due).max(self.renewal.pause_left()));
        }
        if matches!(
            self.following,
            Following::Watch { open: false } | Following::Poll { busy: false, .. }
        ) {
            sleep = sleep.min(self.next_sync.saturating_duration_since(Instant::now()));
        }
        if let Some(pause) = self.svids.pause_left() {
            sleep = sleep.min(pause);
        }
        if let Some(pause) = self.renewal.save_pause_left() {
            sleep = sleep.min(pause);
        }
        // Never a busy loop, whatever the clocks say.
        sleep.max(Duration::from_millis(1))
    }

    fn take(&mut self, done: Done) -> Result<(), Fault> {
        let current = done.generation == self.generation;
        match done.what {
            // Servers of before SPIRE 1.14.3 have no use for the agent's version.
            Outcome::Status(Ok(()) | Err(ClientError::Unimplemented(_)))
            | Outcome::Stored(Ok(())) => Ok(()),
            Outcome::Status(Err(error)) => {
                self.status_posted = false;
                self.failed(current, "agent version not reported to the server", &error)
            }
            Outcome::Stored(Err(fault)) => {
                tracing::error!(%fault, "state not kept on disk; storing it is tried again");
                self.renewal.save_later();
                Ok(())
            }
            Outcome::Polled(outcome) => self.polled(current, outcome),
            Outcome::WatchOpened(outcome) => self.watch_opened(current, outcome),
            Outcome::WatchSaid(stream, said) => self.watch_said(current, stream, said),
            Outcome::Svids(issued) => self.svids_issued(current, issued),
            Outcome::Jwt(answer) => self.jwt_answered(current, answer),
            Outcome::Renewed(outcome) => self.renewed(current, outcome),
            Outcome::Saved(outcome) => {
                self.saved(current, outcome);
                Ok(())
            }
        }
    }

    /// Takes a change in: into the cache, onto disk, and into what the client trusts.
    fn apply(&mut self, delta: Delta) {
        let own = delta
            .bundles
            .iter()
            .find(|bundle| bundle.trust_domain == self.node.config.trust_domain)
            .cloned();
        if let Some(own) = &own {
            self.trust.set(own);
            self.renew_if_tainted(own);
        }
        let (entries, removed, bundles) = (
            delta.entries.len(),
            delta.removed_entries.len(),
            delta.bundles.len(),
        );
        if !self.cache.apply(delta) {
            return;
        }
        tracing::debug!(entries, removed, bundles, "changes from the server");
        if let Some(bundle) = own {
            let node = Arc::clone(&self.node);
            self.call(async move { Outcome::Stored(node.store_bundle(&bundle).await) });
        }
    }

    /// Renews the node's own SVID when a tainted authority signed it, also when that was known before a restart.
    fn renew_if_tainted(&mut self, bundle: &Bundle) {
        if self.identity.is_signed_by_tainted(bundle) {
            self.renewal.hurry();
        }
    }

    fn post_status(&mut self) {
        self.status_posted = true;
        let client = self.client.clone();
        self.call(async move { Outcome::Status(client.post_status(VERSION).await) });
    }

    /// Puts a call among those under way.
    fn call(&self, call: impl Future<Output = Outcome> + Send + 'static) {
        let generation = self.generation;
        self.calls.push(
            async move {
                Done {
                    generation,
                    what: call.await,
                }
            }
            .boxed(),
        );
    }

    fn pause_after_failure(&mut self) {
        let pause = match self.following {
            Following::Watch { .. } => self.watch_backoff.next(),
            Following::Poll { .. } => self.sync_backoff.next(),
        };
        self.next_sync = Instant::now() + pause;
    }

    fn pause_after_sync(&mut self) {
        self.sync_backoff.reset();
        self.next_sync = Instant::now() + spread(self.interval, &*self.random);
    }
}

/// What the agent tells the server of itself.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Those who wait for one answer.
type Waiting<K, T> = HashMap<K, Vec<oneshot::Sender<T>>>;

#[cfg(test)]
mod tests;
