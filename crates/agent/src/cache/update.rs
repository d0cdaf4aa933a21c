//! What one set of selectors is entitled to, and the Workload API messages made of it.
//!
//! Messages are encoded when first asked for, outside of the cache's lock, and then shared by all streams of the set.

use std::sync::{Arc, OnceLock};

use proto::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use spiffe::entry::Entry;
use spiffe::secret::Secret;
use spiffe::trust_domain::TrustDomain;

use super::bundles::EncodedBundle;
use super::svids::IssuedSvid;

/// An encoded message. It may hold private keys: it is not printed, and wiped when the last holder drops it.
#[derive(Debug, Clone)]
pub(crate) struct Encoded(Arc<Secret<Vec<u8>>>);

impl Encoded {
    pub(crate) fn of(message: &impl prost::Message) -> Self {
        Self(Arc::new(Secret::new(message.encode_to_vec())))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.expose()
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.bytes() == other.bytes()
    }
}

/// An entry and the SVID issued for it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) entry: Arc<Entry>,
    pub(crate) svid: IssuedSvid,
}

/// The state of one set of selectors at one moment.
#[derive(Debug)]
pub(crate) struct WorkloadUpdate {
    /// The entries that match, by ID, repeated hints dropped.
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Those of them that have a valid X509-SVID.
    pub(crate) identities: Vec<Identity>,
    /// The own trust domain's bundle, once known.
    pub(crate) own: Option<Arc<EncodedBundle>>,
    /// The bundles of the trust domains that the entries federate with.
    pub(crate) federated: Vec<Arc<EncodedBundle>>,
    messages: Messages,
}

#[derive(Debug, Default)]
struct Messages {
    x509: OnceLock<Encoded>,
    x509_bundles: OnceLock<Encoded>,
    jwt_bundles: OnceLock<Encoded>,
}

impl WorkloadUpdate {
    pub(crate) fn new(
        entries: Vec<Arc<Entry>>,
        identities: Vec<Identity>,
        own: Option<Arc<EncodedBundle>>,
        federated: Vec<Arc<EncodedBundle>>,
    ) -> Self {
        Self {
            entries,
            identities,
            own,
            federated,
            messages: Messages::default(),
        }
    }

    /// Whether any entry matches.
    pub(crate) fn has_identity(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Whether every entry that matches has its SVID.
    pub(crate) fn is_complete(&self) -> bool {
        self.identities.len() == self.entries.len()
    }

    /// The X509SVIDResponse; nothing while there is no SVID or no bundle.
    pub(crate) fn x509_svids(&self) -> Option<&Encoded> {
        let own = self.own.as_ref().filter(|_| !self.identities.is_empty())?;
        Some(self.messages.x509.get_or_init(|| {
            let mut message = X509svidResponse {
                svids: self
                    .identities
                    .iter()
                    .map(|identity| svid_message(identity, own))
                    .collect(),
                crl: Vec::new(),
                federated_bundles: self
                    .federated
                    .iter()
                    .map(|other| {
                        (
                            other.bundle.trust_domain.id_string(),
                            other.x509_der.clone(),
                        )
                    })
                    .collect(),
            };
            let encoded = Encoded::of(&message);
            for svid in &mut message.svids {
                drop(Secret::new(std::mem::take(&mut svid.x509_svid_key)));
            }
            encoded
        }))
    }

    /// The X509BundlesResponse; nothing while the own bundle is unknown.
    pub(crate) fn x509_bundles(&self) -> Option<&Encoded> {
        let own = self.own.as_ref()?;
        Some(self.messages.x509_bundles.get_or_init(|| {
            let bundles = self
                .with_own(own)
                .map(|bundle| {
                    (
                        bundle.bundle.trust_domain.id_string(),
                        bundle.x509_der.clone(),
                    )
                })
                .collect();
            Encoded::of(&X509BundlesResponse {
                crl: Vec::new(),
                bundles,
            })
        }))
    }

    /// The JWTBundlesResponse; nothing while the own bundle is unknown.
    pub(crate) fn jwt_bundles(&self) -> Option<&Encoded> {
        let own = self.own.as_ref()?;
        Some(self.messages.jwt_bundles.get_or_init(|| {
            let bundles = self
                .with_own(own)
                .map(|bundle| (bundle.bundle.trust_domain.id_string(), bundle.jwks.clone()))
                .collect();
            Encoded::of(&JwtBundlesResponse { bundles })
        }))
    }

    /// The bundle of a trust domain if this set may verify its members.
    pub(crate) fn bundle_of(&self, trust_domain: &TrustDomain) -> Option<&Arc<EncodedBundle>> {
        self.own
            .iter()
            .chain(&self.federated)
            .find(|bundle| bundle.bundle.trust_domain == *trust_domain)
    }

    /// Whether both say the same to every kind of caller.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let same_bundle = |a: &Arc<EncodedBundle>, b: &Arc<EncodedBundle>| Arc::ptr_eq(a, b);
        let same_own = match (&self.own, &other.own) {
            (Some(a), Some(b)) => same_bundle(a, b),
            (None, None) => true,
            _ => false,
        };
        same_own
            && self.entries == other.entries
            && self.federated.len() == other.federated.len()
            && self
                .federated
                .iter()
                .zip(&other.federated)
                .all(|(a, b)| same_bundle(a, b))
            && self.identities.len() == other.identities.len()
            && self
                .identities
                .iter()
                .zip(&other.identities)
                .all(|(a, b)| Arc::ptr_eq(&a.svid.key, &b.svid.key))
    }

    fn with_own<'a>(
        &'a self,
        own: &'a Arc<EncodedBundle>,
    ) -> impl Iterator<Item = &'a Arc<EncodedBundle>> {
        std::iter::once(own).chain(&self.federated)
    }
}

fn svid_message(identity: &Identity, own: &EncodedBundle) -> X509svid {
    X509svid {
        spiffe_id: identity.svid.spiffe_id.to_string(),
        x509_svid: identity.svid.chain.concat(),
        x509_svid_key: identity.svid.key.expose().clone(),
        bundle: own.x509_der.clone(),
        hint: identity.entry.hint.clone(),
    }
}
