//! The server's authorities and the gate through which every document leaves.
//!
//! Owns the X.509 and JWT authorities with their rotation, journal and publication, the issuance of all SVIDs, and the
//! server's own SVID. It decides nothing about who may have what: that arrives as a [`Grant`].

mod authority;
mod error;
mod gate;
mod grant;
mod journal;
mod jwt;
mod kind;
mod operations;
mod server_svid;
mod signing;
mod slots;
#[cfg(test)]
mod tests;
mod upstream;
mod x509;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use daemon::telemetry::Telemetry;
use plugin::key_manager::KeyManager;
use plugin::upstream_authority::UpstreamAuthority;
use spiffe::clock::{Clock, unix_seconds};
use spiffe::id::SpiffeId;
use spiffe::key::KeyType;
use spiffe::random::Random;
use spiffe::tls::CertResolver;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Subject;
use tokio::sync::Notify;

use crate::audit::Auditor;
use crate::datastore::{BundleError, Bundles, Journals, Leases};
use crate::metrics::{BUNDLE_PRUNED, BUNDLE_PRUNING};
use crate::registry::Registry;
use authority::{Authority, AuthorityContext};
use journal::Journal;
use jwt::JwtKind;
use operations::AuthorityOps;
use server_svid::ServerSvid;
use upstream::{RootsFollower, Upstream};
use x509::X509Kind;

pub use error::{CaError, IssueError, OperationError};
pub use gate::{IssuedJwt, IssuedX509};
pub use grant::Grant;
pub use operations::AuthorityKind;
pub use slots::{AuthorityState, AuthorityStates};

/// SPIRE: NotBeforeCushion. Verifiers whose clocks are a little behind accept a new document.
const BACKDATE: Duration = Duration::from_secs(10);
/// SPIRE: rotateInterval.
const ROTATION_EVERY: Duration = Duration::from_secs(10);
/// Between attempts that fail.
const LONGEST_ROTATION_PAUSE: Duration = Duration::from_secs(60);
/// More would be beyond that pause.
const MOST_DOUBLINGS: u64 = 3;
/// SPIRE: the server SVID rotator's interval.
const SERVER_SVID_EVERY: Duration = Duration::from_secs(5);
/// SPIRE: pruneBundleInterval and safetyThresholdBundle.
const PRUNE_BUNDLE_EVERY: Duration = Duration::from_secs(6 * 3_600);
const PRUNE_BUNDLE_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// SPIRE: pruneCAJournalsInterval and safetyThresholdCAJournals.
const PRUNE_JOURNALS_EVERY: Duration = Duration::from_secs(8 * 3_600);
const PRUNE_JOURNALS_AFTER: i64 = 14 * 24 * 3_600;
/// SPIRE: more failures than this make the server unhealthy.
const TOLERATED_FAILURES: u64 = 10;

/// What documents look like and how long they live.
#[derive(Debug, Clone)]
pub struct IssuanceConfig {
    pub trust_domain: TrustDomain,
    pub ca_key_type: KeyType,
    pub jwt_key_type: KeyType,
    pub ca_subject: Subject,
    pub ca_ttl: Duration,
    pub agent_ttl: Duration,
    pub x509_svid_ttl: Duration,
    pub jwt_svid_ttl: Duration,
    /// The `iss` claim of JWT-SVIDs.
    pub jwt_issuer: Option<String>,
    pub jwt_svids: bool,
}

/// What the authorities stand on.
#[derive(Debug, Clone)]
pub struct CaParts {
    pub keys: Arc<dyn KeyManager>,
    pub upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub registry: Arc<Registry>,
    pub bundles: Bundles,
    pub journals: Journals,
    pub leases: Leases,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// For what the server issues to itself.
    pub auditor: Auditor,
    pub telemetry: Telemetry,
    pub lost_keys: LostKeys,
    /// Whether no other server uses the database: then a journal that no key fits is this server's own.
    pub sole_server: bool,
}

/// What to do at the start when the journal names active authorities whose keys the key manager lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LostKeys {
    /// Do not start.
    #[default]
    Refuse,
    /// Make new authorities; the operator said so.
    Replace,
}

/// The parts of the configuration that each issuance needs.
#[derive(Debug)]
struct Profile {
    ca_ttl: Duration,
    agent_ttl: Duration,
    x509_svid_ttl: Duration,
    jwt_svid_ttl: Duration,
    jwt_issuer: Option<String>,
    server_key_type: KeyType,
}

/// The certificate authority of this server.
pub struct Ca {
    trust_domain: TrustDomain,
    server_id: SpiffeId,
    profile: Profile,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    auditor: Auditor,
    telemetry: Telemetry,
    leases: Leases,
    context: Arc<AuthorityContext>,
    /// All kinds, in the order in which they rotate. X.509 is the first: without it the server is of no use.
    kinds: Vec<(AuthorityKind, Arc<dyn AuthorityOps>)>,
    x509: Arc<Authority<X509Kind>>,
    /// None: JWT-SVIDs are disabled.
    jwt: Option<Arc<Authority<JwtKind>>>,
    upstream: Option<Arc<Upstream>>,
    server_svid: ServerSvid,
    failures: AtomicU64,
}

/// Whether active authorities without a key are a reason not to start; an error when it is known already that there are some.
async fn check_lost_keys(
    parts: &CaParts,
    journal: &Journal,
    now: SystemTime,
) -> Result<bool, CaError> {
    // Keys in memory are gone after each restart.
    if !parts.keys.is_persistent() {
        return Ok(false);
    }
    let orphan = journal.orphan(unix_seconds(now)).await;
    match (parts.lost_keys, orphan) {
        (LostKeys::Refuse, Some(authority_id)) if parts.sole_server => Err(CaError::KeyLost {
            what: "X509 CA",
            authority_id,
        }),
        (LostKeys::Refuse, _) => Ok(true),
        (LostKeys::Replace, orphan) => {
            tracing::warn!(
                local_authority_id = orphan.unwrap_or_default(),
                "authorities whose keys are lost will be replaced; the former stay in the bundle until they expire"
            );
            Ok(false)
        }
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl Ca {
    /// Takes up the authorities of an earlier life or makes new ones, and issues the server's SVID. When it returns, the
    /// server can issue.
    ///
    /// # Errors
    /// There is no X.509 authority to issue with: the key manager, the datastore or the upstream authority failed.
    pub async fn open(config: IssuanceConfig, parts: CaParts) -> Result<Self, CaError> {
        let now = parts.clock.now();
        let journal = Journal::open(&parts.journals, parts.keys.as_ref()).await?;
        let refuse_lost_keys = check_lost_keys(&parts, &journal, now).await?;
        let context = Arc::new(AuthorityContext {
            refuse_lost_keys,
            trust_domain: config.trust_domain.clone(),
            clock: Arc::clone(&parts.clock),
            keys: parts.keys,
            registry: parts.registry,
            bundles: parts.bundles,
            journal,
            server_svid_due: Notify::new(),
            telemetry: parts.telemetry.clone(),
        });
        let upstream = parts.upstream.map(|plugin| Arc::new(Upstream::new(plugin)));
        let x509 = X509Kind {
            trust_domain: config.trust_domain.clone(),
            random: Arc::clone(&parts.random),
            key_type: config.ca_key_type,
            subject: config.ca_subject,
            ttl: config.ca_ttl,
            upstream: upstream.clone(),
        };
        let jwt = JwtKind {
            trust_domain: config.trust_domain.clone(),
            random: Arc::clone(&parts.random),
            key_type: config.jwt_key_type,
            ttl: config.ca_ttl,
            upstream: upstream.clone(),
        };
        let x509 = Arc::new(Authority::resume(x509, Arc::clone(&context), now).await?);
        let mut kinds: Vec<(AuthorityKind, Arc<dyn AuthorityOps>)> = vec![(
            AuthorityKind::X509,
            Arc::clone(&x509) as Arc<dyn AuthorityOps>,
        )];
        let jwt = match config.jwt_svids {
            true => {
                let jwt = Arc::new(Authority::resume(jwt, Arc::clone(&context), now).await?);
                kinds.push((
                    AuthorityKind::Jwt,
                    Arc::clone(&jwt) as Arc<dyn AuthorityOps>,
                ));
                Some(jwt)
            }
            false => None,
        };
        let ca = Self {
            server_id: SpiffeId::server(&config.trust_domain),
            trust_domain: config.trust_domain,
            profile: Profile {
                ca_ttl: config.ca_ttl,
                agent_ttl: config.agent_ttl,
                x509_svid_ttl: config.x509_svid_ttl,
                jwt_svid_ttl: config.jwt_svid_ttl,
                jwt_issuer: config.jwt_issuer,
                server_key_type: config.ca_key_type,
            },
            clock: parts.clock,
            random: parts.random,
            auditor: parts.auditor,
            telemetry: parts.telemetry,
            leases: parts.leases,
            context,
            kinds,
            x509,
            jwt,
            upstream,
            server_svid: ServerSvid::new(Arc::new(CertResolver::new())),
            failures: AtomicU64::new(0),
        };
        let ticked = ca.tick(now).await;
        // A failure to prepare the next one is no reason not to serve with the present one.
        if ca.kinds.iter().any(|(_, authority)| !authority.is_active()) {
            ticked?;
        }
        ca.tick_server_svid(now).await?;
        Ok(ca)
    }

    /// Prepares and activates what is due.
    ///
    /// # Errors
    /// The first failure; what could be done is done, and active authorities go on.
    pub async fn tick(&self, now: SystemTime) -> Result<(), CaError> {
        let mut done = Ok(());
        for (kind, authority) in &self.kinds {
            // Without an X.509 authority the server is of no use, and its journal could not be found again.
            if *kind != AuthorityKind::X509 && self.x509.active().is_none() {
                continue;
            }
            if let Err(error) = authority.tick(now).await {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "Unable to rotate {}", authority.what());
                done = done.and(Err(error));
            }
        }
        if done.is_ok() {
            self.failures.store(0, Ordering::Relaxed);
        }
        done
    }

    /// Removes from the bundle what ended a day ago.
    ///
    /// # Errors
    /// The datastore failed, or nothing would be left.
    pub async fn prune_bundle(&self, now: SystemTime) -> Result<bool, BundleError> {
        match now.checked_sub(PRUNE_BUNDLE_AFTER) {
            Some(before) => self.context.bundles.prune(&self.trust_domain, before).await,
            None => Ok(false),
        }
    }

    /// Why probes should hold the server unhealthy, if they should. SPIRE: `server.ca`, `server.ca.rotator`.
    pub fn fault(&self) -> Option<String> {
        let now = self.clock.now();
        if self
            .x509
            .active()
            .is_none_or(|issuer| issuer.certificate.not_after() <= now)
        {
            return Some(IssueError::NoX509Authority.to_string());
        }
        let failures = self.failures.load(Ordering::Relaxed);
        (failures > TOLERATED_FAILURES)
            .then(|| format!("the rotation of authorities failed {failures} times"))
    }

    /// Whether JWT-SVIDs are issued.
    pub fn issues_jwt(&self) -> bool {
        self.jwt.is_some()
    }

    /// Keeps everything rotating until the future is dropped. Never returns.
    pub async fn run(&self) {
        tokio::join!(
            self.run_rotation(),
            self.run_server_svid(),
            self.run_pruning(),
            self.run_upstream(),
        );
    }

    async fn run_upstream(&self) {
        let Some(upstream) = &self.upstream else {
            return;
        };
        let roots = async {
            let mut follower = RootsFollower::default();
            loop {
                self.follow_upstream(upstream, &mut follower).await;
            }
        };
        tokio::join!(roots, upstream.run_keys(&self.context));
    }

    /// One step in following the roots; afterwards this server signs below none that is tainted or is to leave.
    async fn follow_upstream(&self, upstream: &Upstream, follower: &mut RootsFollower) {
        follower.step(upstream, &self.context).await;
        let Some(active) = self.x509.active() else {
            return;
        };
        if !active.is_below(&follower.unreliable) {
            follower.unreliable.clear();
            return;
        }
        tracing::info!(
            "the upstream root above the X509 CA is tainted or is to leave: replacing the X509 CA"
        );
        match self.x509.prepare_next(self.clock.now()).await {
            Ok(next) => {
                // If another call has put one of its own in its place, it is looked again what signs then.
                if self.x509.activate_prepared(&next.authority_id).await {
                    follower.unreliable.clear();
                }
                self.context.server_svid_due.notify_one();
            }
            Err(error) => tracing::error!(%error, "Unable to rotate X509 CA"),
        }
    }

    async fn run_rotation(&self) {
        loop {
            // After a failure less often: each attempt makes a key and may ask an upstream authority.
            let failures = self.failures.load(Ordering::Relaxed).min(MOST_DOUBLINGS);
            let pause = ROTATION_EVERY * (1 << failures);
            tokio::time::sleep(pause.min(LONGEST_ROTATION_PAUSE)).await;
            // It has logged and counted its failures.
            drop(self.tick(self.clock.now()).await);
        }
    }

    async fn run_server_svid(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SERVER_SVID_EVERY) => {}
                () = self.context.server_svid_due.notified() => {}
            }
            if let Err(error) = self.tick_server_svid(self.clock.now()).await {
                tracing::error!(%error, "the server's SVID could not be renewed");
            }
        }
    }

    async fn run_pruning(&self) {
        let mut bundle = tokio::time::interval(PRUNE_BUNDLE_EVERY);
        let mut journals = tokio::time::interval(PRUNE_JOURNALS_EVERY);
        bundle.reset();
        journals.reset();
        loop {
            tokio::select! {
                _ = bundle.tick() => self.prune_bundle_by_lease().await,
                _ = journals.tick() => {
                    let before = unix_seconds(self.clock.now()).saturating_sub(PRUNE_JOURNALS_AFTER);
                    if let Err(error) = self.context.journal.prune_others(before).await {
                        tracing::error!(%error, "CA journals of former servers could not be pruned");
                    }
                }
            }
        }
    }

    /// Of several servers on one database one does it.
    async fn prune_bundle_by_lease(&self) {
        let now = self.clock.now();
        let lease = self.leases.acquire(
            "prune-bundle",
            self.context.journal.id(),
            ROTATION_EVERY * 6,
            now,
        );
        match lease.await {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => return tracing::error!(%error, "the bundle could not be pruned"),
        }
        let timer = self.telemetry.start(&BUNDLE_PRUNING, []);
        let pruned = self.prune_bundle(now).await;
        timer.end_with(&pruned);
        match pruned {
            Ok(true) => {
                self.telemetry.count(&BUNDLE_PRUNED, []);
                tracing::info!("expired authorities were pruned from the bundle");
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the bundle could not be pruned"),
        }
    }
}
