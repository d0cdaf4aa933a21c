//! Trust bundles as workloads get them: parsed once, encoded once, shared by every response.

use std::collections::BTreeMap;
use std::sync::Arc;

use spiffe::bundle::{Bundle, JwtBundle};
use spiffe::trust_domain::TrustDomain;

/// One trust domain's bundle with its two Workload API forms.
#[derive(Debug)]
pub(crate) struct EncodedBundle {
    pub(crate) bundle: Arc<Bundle>,
    /// The JWT authorities, to verify with.
    pub(crate) jwt: Arc<JwtBundle>,
    /// The X.509 authorities, DER, one after the other.
    pub(crate) x509_der: Vec<u8>,
    /// The JWT authorities as a JWK Set.
    pub(crate) jwks: Vec<u8>,
}

impl EncodedBundle {
    fn new(bundle: Bundle) -> Self {
        Self {
            x509_der: bundle.to_concatenated_der(),
            jwks: bundle.to_jwks_jwt_only(),
            jwt: Arc::new(bundle.jwt_bundle()),
            bundle: Arc::new(bundle),
        }
    }
}

/// The bundles that the server has told of, the own trust domain's among them.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    by_trust_domain: BTreeMap<TrustDomain, Arc<EncodedBundle>>,
}

impl Bundles {
    /// Takes a bundle in; false when nothing changed.
    pub(crate) fn put(&mut self, bundle: Bundle) -> bool {
        if self
            .get(&bundle.trust_domain)
            .is_some_and(|known| *known.bundle == bundle)
        {
            return false;
        }
        self.by_trust_domain.insert(
            bundle.trust_domain.clone(),
            Arc::new(EncodedBundle::new(bundle)),
        );
        true
    }

    pub(crate) fn remove(&mut self, trust_domain: &TrustDomain) -> bool {
        self.by_trust_domain.remove(trust_domain).is_some()
    }

    pub(crate) fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<EncodedBundle>> {
        self.by_trust_domain.get(trust_domain)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<EncodedBundle>> {
        self.by_trust_domain.values()
    }
}
