//! The node's own identity: its SVID, the key behind it, and where both are kept between runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use config::fault::{Code, Fault};
use daemon::telemetry::Telemetry;
use plugin::key_manager::KeyManager;
use plugin::node_attestor::agent::NodeAttestor;
use spiffe::bundle::Bundle;
use spiffe::clock::Clock;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyType, PublicKey, Signer};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Certificate;

use crate::cache::Snapshot;
use crate::cache::bundles::TaintedKeys;
use crate::config::{NodeConfig, WorkloadKeys};
use crate::server_client::issued::AgentSvid;
use crate::state::last_good::{self, Digest};
use crate::state::removal::{Reason, Removal};
use crate::state::{AgentData, StateDir};
use crate::timefmt::rfc3339;

/// SPIRE: svidkeymanager. The two names are used in turn, so that the key in use outlives a failed renewal.
const KEY_IDS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];
/// SPIRE: IsSVIDExpired.
const CLOCK_SKEW: Duration = Duration::from_secs(1);

/// An SVID of the node with its key.
#[derive(Debug, Clone)]
pub(crate) struct NodeIdentity {
    pub(crate) svid: AgentSvid,
    /// It may live elsewhere: it signs, and is never taken out.
    pub(crate) key: Arc<dyn Signer>,
}

impl NodeIdentity {
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.svid.facts.spiffe_id
    }

    /// Half of its life is over then. SPIRE: agent SVIDs are renewed at half life.
    pub(crate) fn renew_at(&self) -> SystemTime {
        spiffe::rotation::half_life(self.svid.facts.not_before, self.svid.facts.not_after)
    }

    /// Whether an authority that signed the SVID is tainted in the node's own bundle.
    pub(crate) fn is_signed_by_tainted(&self, own: &Bundle) -> bool {
        let tainted = TaintedKeys::of(own).x509;
        let mut issuers = self.svid.facts.issuers.iter();
        issuers.any(|issuer| tainted.contains(issuer))
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        now + CLOCK_SKEW >= self.svid.facts.not_after
    }
}

/// What the node needs to be itself: configuration, disk, keys and time.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) state: StateDir,
    pub(crate) keys: Arc<dyn KeyManager>,
    pub(crate) attestor: Arc<dyn NodeAttestor>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) telemetry: Telemetry,
    /// What is stored, held only to copy it or to put in what was written.
    data: Mutex<AgentData>,
    /// The key of the identity that was made last. It is in use also where its SVID could not be stored.
    in_use: Mutex<Option<PublicKey>>,
    /// Why there is no identity, once one was removed.
    removal: Mutex<Option<Removal>>,
    /// The identity was removed, and the process ends: a renewal that was under way stores nothing any more.
    forgotten: AtomicBool,
    /// One writer of the state directory at a time, so that nothing is written for an identity after its removal.
    /// Taken on blocking threads only; `data` may be taken while it is held, never the other way round.
    disk: Mutex<()>,
}

/// The plugins that make and prove the node's identity.
#[derive(Debug)]
pub(crate) struct NodePlugins {
    pub(crate) keys: Arc<dyn KeyManager>,
    pub(crate) attestor: Arc<dyn NodeAttestor>,
}

/// What is stored of the node's identity.
#[derive(Debug)]
pub(crate) enum Stored {
    Usable(NodeIdentity),
    Absent(Absence),
}

/// Why the node has no identity that it could use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absence {
    /// It was never attested, as far as is known.
    NeverAttested,
    /// The server banned or forgot it.
    Removed(Removal),
    /// By this node's clock. The files stay: the clock may be wrong.
    Expired { id: SpiffeId, at: SystemTime },
    /// The SVID is stored, its private key is not.
    KeyMissing(SpiffeId),
}

impl Node {
    /// Reads what is stored.
    ///
    /// # Errors
    /// PLA-1115 when it is damaged.
    pub(crate) fn open(
        config: NodeConfig,
        state: StateDir,
        plugins: NodePlugins,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Fault> {
        let NodePlugins { keys, attestor } = plugins;
        if config.workload_keys == WorkloadKeys::InMemory {
            last_good::remove_keys(&state)?;
        }
        let data = Mutex::new(state.load()?);
        let removal = Mutex::new(state.removal());
        Ok(Self {
            config,
            state,
            keys,
            attestor,
            clock,
            telemetry: Telemetry::default(),
            data,
            in_use: Mutex::new(None),
            removal,
            forgotten: AtomicBool::new(false),
            disk: Mutex::new(()),
        })
    }

    /// The same, measuring what it does.
    pub(crate) fn with_telemetry(self, telemetry: Telemetry) -> Self {
        Self { telemetry, ..self }
    }

    /// The stored identity if it can still be used: its key is there and it is not expired.
    ///
    /// # Errors
    /// When the key manager fails, or the stored SVID is of another trust domain.
    pub(crate) async fn stored_identity(&self) -> Result<Stored, Fault> {
        let data = self.data();
        if data.svid.is_empty() {
            let removal = lock(&self.removal).clone();
            return Ok(Stored::Absent(
                removal.map_or(Absence::NeverAttested, Absence::Removed),
            ));
        }
        let svid = AgentSvid::of(data.svid, data.reattestable).map_err(|because| {
            Fault::new(
                Code::AgentDataInvalid,
                "the agent's stored SVID cannot be used",
            )
            .because(because)
        })?;
        let own = &self.config.trust_domain;
        if !svid.facts.spiffe_id.is_member_of(own) {
            let stored = svid.facts.spiffe_id.trust_domain();
            return Err(Fault::new(Code::TrustDomainMismatch, format!("trust domain mismatch: the configuration says {own}, the stored identity says {stored}"))
                .hint(format!("set trust_domain = \"{stored}\", or use another data_dir")));
        }
        let Some(key) = self.key_of(&svid).await? else {
            tracing::warn!(id = %svid.facts.spiffe_id, "the private key of the stored SVID is missing: the node has to attest again");
            return Ok(Stored::Absent(Absence::KeyMissing(svid.facts.spiffe_id)));
        };
        let identity = NodeIdentity { svid, key };
        if identity.is_expired(self.clock.now()) {
            let (id, at) = (identity.id().clone(), identity.svid.facts.not_after);
            tracing::warn!(%id, expired_at = rfc3339(at), "the stored SVID is expired by this node's clock: the node has to attest again");
            return Ok(Stored::Absent(Absence::Expired { id, at }));
        }
        Ok(Stored::Usable(identity))
    }

    /// The stored trust bundle: X.509 authorities only, enough to know the server by.
    pub(crate) fn stored_bundle(&self) -> Option<Bundle> {
        let data = self.data();
        (!data.bundle.is_empty()).then(|| bundle_of(&self.config.trust_domain, data.bundle))
    }

    /// A fresh key for the node's next SVID. The keys of the SVID in use and of the one stored stay untouched.
    ///
    /// # Errors
    /// When both names are taken by these keys, or the key manager can't make one.
    pub(crate) async fn fresh_key(&self) -> Result<Arc<dyn Signer>, Fault> {
        let stored = self.data().svid;
        let in_use = lock(&self.in_use).clone();
        let needed: Vec<&PublicKey> = stored
            .first()
            .map(Certificate::public_key)
            .into_iter()
            .chain(&in_use)
            .collect();
        let mut free = None;
        for slot in KEY_IDS {
            let held = self.keys.key(slot).await;
            let held = held.map_err(|error| error.to_fault())?;
            if !held.is_some_and(|held| needed.contains(&held.public_key())) {
                free = Some(slot);
                break;
            }
        }
        let slot = free.ok_or_else(|| {
            key_fault(&"the SVID in use is not stored yet, and both it and the stored one need their keys")
        })?;
        let made = self.keys.generate_key(slot, KeyType::EcP256).await;
        made.map_err(|error| error.to_fault())
    }

    /// Keeps the node's SVID and bundle for the next start.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) async fn store(
        self: &Arc<Self>,
        change: impl FnOnce(&mut AgentData) + Send + 'static,
    ) -> Result<(), Fault> {
        self.on_disk(move |node| {
            if node.forgotten.load(Ordering::Relaxed) {
                return Err(Fault::new(
                    Code::Internal,
                    "nothing is stored any more: the node's identity was removed",
                ));
            }
            let mut next = node.data();
            change(&mut next);
            node.state.store(&next)?;
            if !next.svid.is_empty() && lock(&node.removal).take().is_some() {
                node.state.clear_removal();
            }
            *lock(&node.data) = next;
            Ok(())
        })
        .await
    }

    /// Writes what is stored once more: a disk that takes nothing is found before a proof is used up.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn check_writable(self: &Arc<Self>) -> Result<(), Fault> {
        self.store(|_unchanged| {}).await
    }

    /// Keeps a new member's SVID and the server's bundle.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) async fn store_attestation(
        self: &Arc<Self>,
        identity: &NodeIdentity,
        bundle: &Bundle,
    ) -> Result<(), Fault> {
        self.is_used(identity);
        let svid = identity.svid.clone();
        let certificates = certificates_of(bundle);
        self.store(move |data| {
            data.svid = svid.chain;
            data.reattestable = svid.reattestable;
            data.bundle = certificates;
        })
        .await
    }

    /// Keeps the node's SVID.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn store_identity(
        self: &Arc<Self>,
        identity: &NodeIdentity,
    ) -> Result<(), Fault> {
        self.is_used(identity);
        let svid = identity.svid.clone();
        self.store(move |data| {
            data.svid = svid.chain;
            data.reattestable = svid.reattestable;
        })
        .await
    }

    /// Stores the last good state, unless it is what `written` is the digest of, or the identity it belongs to was
    /// removed meanwhile. Gives the digest of what is stored.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn store_last_good(
        self: &Arc<Self>,
        agent_id: SpiffeId,
        snapshot: Snapshot,
        written: Option<Digest>,
    ) -> Result<Option<Digest>, Fault> {
        self.on_disk(move |node| {
            if lock(&node.removal).is_some() {
                return Ok(None);
            }
            last_good::store(&node.state, &agent_id, &snapshot, written).map(Some)
        })
        .await
    }

    /// What was stored for the node `agent_id` when it was last good.
    pub(crate) async fn last_good(self: &Arc<Self>, agent_id: SpiffeId) -> Snapshot {
        let now = self.clock.now();
        self.on_disk(move |node| Ok(last_good::load(&node.state, &agent_id, now)))
            .await
            .unwrap_or_else(|fault| {
                tracing::warn!(%fault, "last good state not read");
                Snapshot::default()
            })
    }

    /// Runs `work` on a blocking thread, alone with the state directory.
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let node = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _alone = lock(&node.disk);
            work(&node)
        })
        .await
        .map_err(|error| {
            Fault::new(Code::Internal, "the agent's state could not be stored").because(error)
        })?
    }

    /// Keeps a bundle's X.509 authorities, if they differ from what is kept.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) async fn store_bundle(self: &Arc<Self>, bundle: &Bundle) -> Result<(), Fault> {
        let certificates = certificates_of(bundle);
        let known = self.data().bundle;
        if known.len() == certificates.len()
            && known
                .iter()
                .zip(&certificates)
                .all(|(a, b)| a.der() == b.der())
        {
            return Ok(());
        }
        self.store(|data| data.bundle = certificates).await
    }

    /// Removes the identity `agent_id` and all that was kept for it, because the server said so. Nothing else may call
    /// this: a clock that is wrong must not cost the node its identity.
    pub(crate) async fn forget(self: &Arc<Self>, agent_id: SpiffeId, reason: Reason) {
        let removal = Removal {
            agent_id,
            reason,
            at: self.clock.now(),
        };
        let removed = self
            .on_disk(move |node| {
                node.forgotten.store(true, Ordering::Relaxed);
                *lock(&node.removal) = Some(removal.clone());
                {
                    let mut data = lock(&node.data);
                    data.svid.clear();
                    data.reattestable = false;
                }
                node.state.forget_identity()?;
                node.state.store_removal(&removal)
            })
            .await;
        if let Err(fault) = removed {
            tracing::error!(%fault, "the node's SVID could not be removed from disk");
        }
    }

    /// An identity is used whether or not it can be stored.
    fn is_used(&self, identity: &NodeIdentity) {
        *lock(&self.in_use) = Some(identity.key.public_key().clone());
    }

    fn data(&self) -> AgentData {
        lock(&self.data).clone()
    }

    async fn key_of(&self, svid: &AgentSvid) -> Result<Option<Arc<dyn Signer>>, Fault> {
        let keys = self.keys.keys().await.map_err(|error| error.to_fault())?;
        let mut keys = keys.into_iter().map(|(_, key)| key);
        Ok(keys.find(|key| *key.public_key() == svid.facts.public_key))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn certificates_of(bundle: &Bundle) -> Vec<Certificate> {
    bundle
        .x509_authorities
        .iter()
        .map(|authority| authority.certificate.clone())
        .collect()
}

/// A bundle of X.509 authorities only.
fn bundle_of(trust_domain: &TrustDomain, certificates: Vec<Certificate>) -> Bundle {
    let mut bundle = Bundle::new(trust_domain.clone());
    for certificate in certificates {
        bundle.add_x509_authority(certificate);
    }
    bundle
}

fn key_fault(because: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        Code::KeyFileInvalid,
        "the node's private key cannot be used",
    )
    .because(because)
}
