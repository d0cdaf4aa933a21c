//! Trust bundles as workloads get them: without what has expired, each form made once and shared by every response.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use spiffe::bundle::{Bundle, JwtBundle};
use spiffe::clock::from_unix;
use spiffe::trust_domain::TrustDomain;

/// One trust domain's bundle and its forms, each made when first asked for.
#[derive(Debug)]
pub(crate) struct SharedBundle {
    /// The authorities that have not expired.
    pub(crate) bundle: Arc<Bundle>,
    /// When the next of them does.
    next_expiry: Option<SystemTime>,
    jwt: OnceLock<Arc<JwtBundle>>,
    x509_der: OnceLock<Vec<u8>>,
    jwks: OnceLock<Vec<u8>>,
}

impl SharedBundle {
    fn new(received: &Arc<Bundle>, now: SystemTime) -> Self {
        let bundle = without_expired(received, now);
        Self {
            next_expiry: next_expiry(&bundle, now),
            bundle,
            jwt: OnceLock::new(),
            x509_der: OnceLock::new(),
            jwks: OnceLock::new(),
        }
    }

    /// The JWT authorities, to verify with.
    pub(crate) fn jwt(&self) -> &Arc<JwtBundle> {
        self.jwt.get_or_init(|| Arc::new(self.bundle.jwt_bundle()))
    }

    /// The X.509 authorities, DER, one after the other.
    pub(crate) fn x509_der(&self) -> &[u8] {
        self.x509_der
            .get_or_init(|| self.bundle.to_concatenated_der())
    }

    /// The JWT authorities as a JWK Set.
    pub(crate) fn jwks(&self) -> &[u8] {
        self.jwks.get_or_init(|| self.bundle.to_jwks_jwt_only())
    }
}

/// What is left of a bundle at `now`. X.509 authorities that have all expired stay: the clock may be wrong, those who
/// verify look at the dates themselves, and an empty bundle would be taken for a withdrawal.
fn without_expired(received: &Arc<Bundle>, now: SystemTime) -> Arc<Bundle> {
    let x509_expired = |bundle: &Bundle| {
        let mut expiries = bundle
            .x509_authorities
            .iter()
            .map(|authority| authority.certificate.not_after());
        expiries.clone().any(|expiry| expiry <= now) && expiries.any(|expiry| expiry > now)
    };
    let jwt_expired =
        |expires_at: Option<i64>| expires_at.is_some_and(|expires_at| from_unix(expires_at) <= now);
    let drop_x509 = x509_expired(received);
    let drop_jwt = received
        .jwt_authorities
        .iter()
        .any(|authority| jwt_expired(authority.expires_at));
    if !drop_x509 && !drop_jwt {
        return Arc::clone(received);
    }
    let mut left = Bundle::clone(received);
    if drop_x509 {
        left.x509_authorities
            .retain(|authority| authority.certificate.not_after() > now);
    }
    left.jwt_authorities
        .retain(|authority| !jwt_expired(authority.expires_at));
    Arc::new(left)
}

fn next_expiry(bundle: &Bundle, now: SystemTime) -> Option<SystemTime> {
    let x509 = bundle
        .x509_authorities
        .iter()
        .map(|authority| authority.certificate.not_after());
    let jwt = bundle
        .jwt_authorities
        .iter()
        .filter_map(|authority| authority.expires_at.map(from_unix));
    x509.chain(jwt).filter(|expiry| *expiry > now).min()
}

#[derive(Debug)]
struct Known {
    /// As the server sent it.
    received: Arc<Bundle>,
    shared: Arc<SharedBundle>,
}

/// The bundles that the server sent, the agent's own trust domain's among them.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    by_trust_domain: BTreeMap<TrustDomain, Known>,
}

impl Bundles {
    /// Takes a bundle in; false when nothing changed.
    pub(super) fn put(&mut self, bundle: Bundle, now: SystemTime) -> bool {
        let known = self.by_trust_domain.get(&bundle.trust_domain);
        if known.is_some_and(|known| *known.received == bundle) {
            return false;
        }
        let received = Arc::new(bundle);
        let known = Known {
            shared: Arc::new(SharedBundle::new(&received, now)),
            received: Arc::clone(&received),
        };
        self.by_trust_domain
            .insert(received.trust_domain.clone(), known);
        true
    }

    /// Looks at what has expired; false when that makes no difference.
    pub(super) fn review(&mut self, trust_domain: &TrustDomain, now: SystemTime) -> bool {
        let Some(known) = self.by_trust_domain.get_mut(trust_domain) else {
            return false;
        };
        let reviewed = SharedBundle::new(&known.received, now);
        let differs = *reviewed.bundle != *known.shared.bundle;
        if differs {
            known.shared = Arc::new(reviewed);
        }
        differs
    }

    pub(super) fn remove(&mut self, trust_domain: &TrustDomain) -> bool {
        self.by_trust_domain.remove(trust_domain).is_some()
    }

    pub(super) fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<SharedBundle>> {
        self.by_trust_domain
            .get(trust_domain)
            .map(|known| &known.shared)
    }

    /// When an authority of a bundle expires next.
    pub(super) fn next_expiry(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let known = self.by_trust_domain.get(trust_domain)?;
        known.shared.next_expiry.filter(|expiry| *expiry > now)
    }

    pub(super) fn trust_domains(&self) -> Vec<TrustDomain> {
        self.by_trust_domain.keys().cloned().collect()
    }

    /// The bundles as the server sent them.
    pub(super) fn received(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.by_trust_domain.values().map(|known| &known.received)
    }
}

/// The key identifiers of the agent's own authorities that are tainted: nothing that they signed is to stay in use.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TaintedKeys {
    pub(crate) x509: BTreeSet<Vec<u8>>,
    pub(crate) jwt: BTreeSet<String>,
}

impl TaintedKeys {
    pub(crate) fn of(bundle: &Bundle) -> Self {
        let x509 = bundle
            .x509_authorities
            .iter()
            .filter(|authority| authority.tainted)
            .filter_map(|authority| authority.certificate.subject_key_id().map(Into::into));
        let jwt = bundle
            .jwt_authorities
            .iter()
            .filter(|authority| authority.tainted)
            .map(|authority| authority.key_id.clone());
        Self {
            x509: x509.collect(),
            jwt: jwt.collect(),
        }
    }

    /// Those that are not in `known`.
    pub(super) fn without(&self, known: &Self) -> Self {
        Self {
            x509: &self.x509 - &known.x509,
            jwt: &self.jwt - &known.jwt,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.x509.is_empty() && self.jwt.is_empty()
    }
}
