//! Whose certificates the mTLS endpoint verifies, and against what: the bundles of the registry at the moment of the handshake,
//! and for as long as a connection lasts: when a bundle loses an authority, the connections that it vouched for end.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use daemon::log_limit::LogLimit;
use daemon::tasks::Shutdown;
use spiffe::bundle::{Bundle, X509Bundle};
use spiffe::clock::Clock;
use spiffe::svid::x509::{BundleSource, VerifiedX509Svid};
use spiffe::trust_domain::TrustDomain;
use tokio::sync::watch;

use crate::registry::Registry;

/// A bundle as last seen, and its X.509 part.
type Part = (Arc<Bundle>, Arc<X509Bundle>);

/// The bundles of our trust domain and of those that administrators come from; no others.
#[derive(Debug)]
pub(crate) struct PeerBundles {
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    parts: Mutex<HashMap<TrustDomain, Part>>,
    foreign: Vec<TrustDomain>,
    /// Counts the changes of these bundles. Each connection waits for it: what else changes wakes no connection.
    changes: watch::Sender<u64>,
    log_limit: LogLimit<TrustDomain>,
}

impl PeerBundles {
    pub(crate) fn new(
        registry: Arc<Registry>,
        foreign: Vec<TrustDomain>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            registry,
            clock,
            parts: Mutex::new(HashMap::new()),
            foreign,
            changes: watch::Sender::new(0),
            log_limit: LogLimit::default(),
        }
    }

    /// Wakes the connections when one of the bundles changes, until the server stops.
    pub(crate) async fn follow(self: Arc<Self>, mut shutdown: Shutdown) {
        let trust_domains: Vec<_> = std::iter::once(self.registry.trust_domain())
            .chain(&self.foreign)
            .collect();
        let bundles = || -> Vec<Option<Arc<Bundle>>> {
            let all = trust_domains.iter();
            all.map(|name| self.registry.bundle(name)).collect()
        };
        let mut revisions = self.registry.subscribe();
        let mut seen = bundles();
        // A connection that was accepted before this may have looked at what came before.
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                // The registry, which this holds, holds the sender.
                changed = revisions.changed() => if changed.is_err() { return },
            }
            let present = bundles();
            let is_same = |(before, now): (&Option<Arc<Bundle>>, &Option<Arc<Bundle>>)| {
                before.as_ref().map(Arc::as_ptr) == now.as_ref().map(Arc::as_ptr)
            };
            if !seen.iter().zip(&present).all(is_same) {
                self.changes
                    .send_modify(|count| *count = count.wrapping_add(1));
            }
            seen = present;
        }
    }

    /// Completes when the authority that vouched for the peer is no longer in the bundle of its trust domain, nor one that was
    /// renewed with its key. No chain is verified again: a peer that another authority vouches for, too, is welcome back with
    /// a handshake.
    pub(crate) fn withdrawn(
        self: &Arc<Self>,
        peer: &VerifiedX509Svid,
    ) -> impl Future<Output = ()> + Send + use<> {
        // All that is kept for each connection; the certificate is the bundle's own.
        let (bundles, authority) = (Arc::clone(self), peer.authority().clone());
        let trust_domain = peer.id().trust_domain();
        async move {
            // Subscribed before the look, so that no change falls between the two.
            let mut changes = bundles.changes.subscribe();
            loop {
                let now = bundles.clock.now();
                let present = bundles.part(&trust_domain);
                if present.is_none_or(|present| !present.still_holds(&authority, now)) {
                    return;
                }
                // The bundles, which this holds, hold the sender.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// The X.509 part of a trust domain's bundle, made once for each version of the bundle.
    fn part(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        let bundle = self.registry.bundle(trust_domain)?;
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, part)) = parts.get(trust_domain)
            && Arc::ptr_eq(seen, &bundle)
        {
            return Some(Arc::clone(part));
        }
        let part = Arc::new(bundle.x509_bundle());
        parts.insert(trust_domain.clone(), (bundle, Arc::clone(&part)));
        Some(part)
    }
}

impl BundleSource for PeerBundles {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        if trust_domain != self.registry.trust_domain() && !self.foreign.contains(trust_domain) {
            return None;
        }
        let part = self.part(trust_domain);
        if part.is_none()
            // Anybody can claim to come from there.
            && let Some(left_out) = self.log_limit.admit(trust_domain)
        {
            tracing::warn!(
                %trust_domain,
                left_out,
                "no bundle of a trust domain that administrators come from: they cannot connect until it is set"
            );
        }
        part
    }
}

#[cfg(test)]
mod tests;
