//! The node's own SVID: renewed at half life, and the client replaced with it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::fault::{Code, Fault};
use daemon::telemetry::CallError;
use spiffe::bundle::Bundle;
use spiffe::rotation::earliest_renewal;
use tokio::time::Instant;

use super::{Following, Outcome, Sync};
use crate::backoff::Backoff;
use crate::cache::Delta;
use crate::dial;
use crate::metrics::SVID_RENEWAL;
use crate::node::{Node, NodeIdentity};
use crate::node_attestation::{self, AttestedNode};
use crate::server_client::{ClientError, ServerClient};
use crate::timefmt::rfc3339;

/// Between attempts to write an SVID to disk that could not be written.
const SAVE_PAUSE: Duration = Duration::from_secs(5);

/// A disk that hangs holds up the end of the task no longer than this.
pub(super) const SAVE_AT_STOP: Duration = Duration::from_secs(5);

/// The state of renewal.
#[derive(Debug)]
pub(super) struct Renewal {
    busy: bool,
    hurry: bool,
    backoff: Backoff,
    not_before: Option<Instant>,
    /// A fresh SVID is used for a while, however short it lives.
    not_sooner: Option<SystemTime>,
    /// When the SVID in use or the trust bundle, which could not be written to disk, is written again.
    unsaved: Option<Instant>,
}

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Node(Fault),
}

impl CallError for RenewalError {
    fn status(&self) -> &'static str {
        match self {
            Self::Client(error) => error.status(),
            Self::Node(fault) => fault.status(),
        }
    }
}

impl Renewal {
    /// `unsaved`: the SVID that the node begins with is not on disk.
    pub(super) fn new(backoff: Backoff, unsaved: bool) -> Self {
        Self {
            busy: false,
            hurry: false,
            backoff,
            not_before: None,
            not_sooner: None,
            unsaved: unsaved.then(Instant::now),
        }
    }

    /// Renew now: the authority behind the SVID is not trusted any longer.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
    }

    /// When the SVID is to be renewed; nothing while that is under way.
    pub(super) fn due(&self, identity: &NodeIdentity) -> Option<SystemTime> {
        if self.busy {
            return None;
        }
        if self.hurry {
            return Some(identity.svid.facts.not_before);
        }
        let due = identity.renew_at();
        // One beyond the SVID's life comes from a clock that was ahead and was set back since.
        let not_after = identity.svid.facts.not_after;
        let not_sooner = self.not_sooner.filter(|when| *when < not_after);
        Some(due.max(not_sooner.unwrap_or(due)))
    }

    /// The SVID or the trust bundle could not be written to disk: both are written again after a pause.
    pub(super) fn save_later(&mut self) {
        self.unsaved.get_or_insert(Instant::now() + SAVE_PAUSE);
    }

    /// The next attempt waits for a while that grows.
    fn pause(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.next());
    }

    /// Until what is not on disk is written again.
    pub(super) fn save_pause_left(&self) -> Option<Duration> {
        self.unsaved
            .map(|due| due.saturating_duration_since(Instant::now()))
    }

    pub(super) fn pause_left(&self) -> Duration {
        self.not_before.map_or(Duration::ZERO, |when| {
            when.saturating_duration_since(Instant::now())
        })
    }
}

impl Sync {
    pub(super) fn start_renewal(&mut self, now: SystemTime) {
        let due = self
            .renewal
            .due(&self.identity)
            .is_some_and(|due| due <= now);
        if !due || !self.renewal.pause_left().is_zero() {
            return;
        }
        if self.identity.is_expired(now)
            && node_attestation::can_reattest(&self.node, &self.identity)
        {
            // An expired SVID renews nothing, but the node can prove itself again.
            self.reattest();
            return;
        }
        self.renewal.busy = true;
        let (client, node, current) = (
            self.client.clone(),
            Arc::clone(&self.node),
            self.identity.clone(),
        );
        self.call(async move {
            let timer = node.telemetry.start(&SVID_RENEWAL, []);
            let renewed = renew(&client, &node, &current).await;
            timer.end_with(&renewed);
            Outcome::Renewed(renewed)
        });
    }

    /// Writes the SVID in use and the trust bundle to disk if that failed before and is due again.
    pub(super) fn save_again(&mut self) {
        if self.renewal.unsaved.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.renewal.unsaved = Some(Instant::now() + SAVE_PAUSE);
        let saving = self.save();
        self.call(async move { Outcome::Saved(saving.await) });
    }

    fn own_bundle(&self) -> Option<Arc<Bundle>> {
        let own = &self.node.config.trust_domain;
        let mut bundles = self.cache.bundles().into_iter();
        bundles.find(|bundle| bundle.trust_domain == *own)
    }

    fn is_signed_by_tainted(&self, identity: &NodeIdentity) -> bool {
        self.own_bundle()
            .is_some_and(|own| identity.is_signed_by_tainted(&own))
    }

    /// Writes the SVID in use and the trust bundle to disk.
    fn save(&self) -> impl Future<Output = Result<(), Fault>> + Send + use<> {
        let (node, identity) = (Arc::clone(&self.node), self.identity.clone());
        let bundle = self.own_bundle();
        async move {
            node.store_identity(&identity).await?;
            match bundle {
                Some(bundle) => node.store_bundle(&bundle).await,
                None => Ok(()),
            }
        }
    }

    /// Tries once more to write what is not on disk: an agent that stops has no later time for it.
    pub(super) async fn save_at_stop(&mut self) {
        if self.renewal.unsaved.is_none() {
            return;
        }
        let saved = tokio::time::timeout(SAVE_AT_STOP, self.save()).await;
        let saved = saved.unwrap_or_else(|_elapsed| {
            let late = format!("not done within {} s", SAVE_AT_STOP.as_secs());
            Err(Fault::new(Code::DataDirUnusable, "the disk does not answer").because(late))
        });
        match saved {
            Ok(()) => tracing::info!("the node's SVID and trust bundle are on disk again"),
            Err(fault) => {
                let expires_at = self.identity.svid.facts.not_after;
                tracing::error!(
                    %fault,
                    id = %self.identity.id(),
                    lost_svid_expires_at = rfc3339(expires_at),
                    "the agent stops with an SVID or trust bundle that is not on disk: the next start uses the former ones, \
                     and attests again if those have expired"
                );
            }
        }
    }

    pub(super) fn saved(&mut self, current: bool, outcome: Result<(), Fault>) {
        match outcome {
            Ok(()) if current => {
                tracing::info!("the node's SVID and trust bundle are on disk again");
                self.renewal.unsaved = None;
            }
            Ok(()) => {}
            Err(fault) => {
                tracing::warn!(%fault, "the node's SVID or trust bundle is still not on disk");
            }
        }
    }

    /// Joins again in place of the identity that the server forgot.
    pub(super) fn reattest(&mut self) {
        if self.renewal.busy {
            return;
        }
        tracing::warn!("the server asks the node to attest again");
        self.renewal.busy = true;
        let (node, random) = (Arc::clone(&self.node), Arc::clone(&self.random));
        let shutdown = self.shutdown.clone();
        self.call(async move {
            let attested = node_attestation::attest_node(&node, None, random, shutdown).await;
            Outcome::Renewed(match attested {
                Ok(Some(AttestedNode {
                    identity,
                    bundle,
                    unsaved,
                })) => Ok(Renewed {
                    identity,
                    unsaved,
                    bundle: Some(bundle),
                }),
                Ok(None) => Err(ClientError::Unavailable("the agent stops".to_owned()).into()),
                Err(fault) => Err(RenewalError::Node(fault)),
            })
        });
    }

    pub(super) fn renewed(
        &mut self,
        current: bool,
        outcome: Result<Renewed, RenewalError>,
    ) -> Result<(), Fault> {
        self.renewal.busy = false;
        let now = self.node.clock.now();
        match outcome {
            Ok(Renewed {
                identity,
                unsaved,
                bundle,
            }) => {
                tracing::info!(id = %identity.id(), "the node's SVID was renewed");
                self.renewal.hurry = false;
                let not_after = identity.svid.facts.not_after;
                if identity.is_expired(now) {
                    // Renewing it again at once would bring the same.
                    tracing::error!(
                        expired_at = rfc3339(not_after),
                        now = rfc3339(now),
                        "the renewed SVID is expired by this node's clock: the clock is ahead of the server's"
                    );
                    self.renewal.pause();
                } else if self.is_signed_by_tainted(&identity) {
                    tracing::warn!(
                        "a tainted authority signed the renewed SVID too: the server has not replaced it yet"
                    );
                    self.renewal.pause();
                } else {
                    self.renewal.backoff.reset();
                    self.renewal.not_before = None;
                }
                self.renewal.not_sooner = Some(earliest_renewal(now, not_after));
                // What was unsaved before stays so: it may be the trust bundle.
                if unsaved {
                    self.renewal.save_later();
                }
                self.use_identity(identity)?;
                if let Some(bundle) = bundle {
                    // The server that attested the node may have another authority than the one before.
                    self.apply(Delta {
                        bundles: vec![bundle],
                        ..Delta::default()
                    });
                }
                Ok(())
            }
            Err(error) => {
                self.renewal.pause();
                match error {
                    RenewalError::Client(error) => {
                        self.failed(current, "the node's SVID not renewed", &error)
                    }
                    RenewalError::Node(fault) => {
                        tracing::error!(%fault, "the node's SVID not renewed");
                        Ok(())
                    }
                }
            }
        }
    }

    /// From now on the node is `identity`: a new connection, and the stream taken up on it.
    fn use_identity(&mut self, identity: NodeIdentity) -> Result<(), Fault> {
        self.client = dial::as_node(&self.node, &identity, &self.trust)?;
        self.generation += 1;
        self.identity = identity.clone();
        self.identities.send_replace(identity);
        // The stream of the former client is no longer read: the new one sends its last change whole.
        self.changes.interrupted();
        if let Following::Watch { open } = &mut self.following {
            *open = false;
            self.next_sync = Instant::now();
        }
        Ok(())
    }
}

/// A new SVID for the node.
#[derive(Debug)]
pub(super) struct Renewed {
    identity: NodeIdentity,
    /// It is not on disk yet.
    unsaved: bool,
    /// Of the server that attested the node again.
    bundle: Option<Bundle>,
}

async fn renew(
    client: &ServerClient,
    node: &Arc<Node>,
    current: &NodeIdentity,
) -> Result<Renewed, RenewalError> {
    // A key that cannot be stored is no reason to lose the identity: the present one stays in use.
    let key = match node.fresh_key().await {
        Ok(key) => key,
        Err(fault) => {
            tracing::warn!(%fault, "no new key for the node's SVID; it is renewed with the present key");
            Arc::clone(&current.key)
        }
    };
    let csr = dial::agent_csr(key.as_ref()).await;
    let csr = csr.map_err(RenewalError::Node)?;
    let mut svid = client.renew_agent(csr).await?;
    if svid.facts.public_key != *key.public_key() || svid.facts.spiffe_id != *current.id() {
        return Err(
            ClientError::malformed("the renewed SVID is for another key or identity").into(),
        );
    }
    svid.reattestable = current.svid.reattestable;
    let identity = NodeIdentity { svid, key };
    let unsaved = match node.store_identity(&identity).await {
        Ok(()) => false,
        Err(fault) => {
            tracing::warn!(%fault, "the renewed SVID is in use but not on disk; storing it is tried again");
            true
        }
    };
    Ok(Renewed {
        identity,
        unsaved,
        bundle: None,
    })
}
