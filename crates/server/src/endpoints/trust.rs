//! Whose certificates the mTLS endpoint verifies, and against what: the bundles of the registry at the moment of the handshake.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use spiffe::bundle::{Bundle, X509Bundle};
use spiffe::svid::x509::BundleSource;
use spiffe::trust_domain::TrustDomain;

use crate::registry::Registry;

/// A bundle as last seen, and its X.509 part.
type Part = (Arc<Bundle>, Arc<X509Bundle>);

/// The bundles of our trust domain and of those that administrators come from; no others.
#[derive(Debug)]
pub(crate) struct PeerBundles {
    registry: Arc<Registry>,
    parts: Mutex<HashMap<TrustDomain, Part>>,
    foreign: Vec<TrustDomain>,
}

impl PeerBundles {
    pub(crate) fn new(registry: Arc<Registry>, foreign: Vec<TrustDomain>) -> Self {
        Self {
            registry,
            parts: Mutex::new(HashMap::new()),
            foreign,
        }
    }
}

impl BundleSource for PeerBundles {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        if trust_domain != self.registry.trust_domain() && !self.foreign.contains(trust_domain) {
            return None;
        }
        let Some(bundle) = self.registry.bundle(trust_domain) else {
            tracing::warn!(
                %trust_domain,
                "no bundle of a trust domain that administrators come from: they cannot connect until it is set"
            );
            return None;
        };
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
