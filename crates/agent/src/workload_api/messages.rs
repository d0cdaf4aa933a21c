//! The Workload API's messages: encoded when first asked for, then shared by all streams of a set of selectors.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use proto::message_body;
use proto::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use spiffe::secret::Secret;

use crate::cache::bundles::SharedBundle;
use crate::cache::update::{Identity, WorkloadUpdate};

/// A message as it is sent. It may hold private keys: it is not printed, and wiped when the last holder drops it, which
/// may be a connection that is sending it.
#[derive(Debug, Clone)]
pub(crate) struct Encoded(Arc<Secret<Vec<u8>>>);

impl Encoded {
    pub(crate) fn of(message: &impl prost::Message) -> Self {
        Self(Arc::new(Secret::new(message_body::frame(message))))
    }

    /// The message for the wire. Not a copy.
    pub(crate) fn frame(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// The message alone.
    #[cfg(test)]
    pub(crate) fn message(&self) -> &[u8] {
        &self.0.expose()[message_body::PREFIX..]
    }
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.as_ref() == other.as_ref()
    }
}

/// What this API keeps beside an update.
#[derive(Debug, Default)]
struct Messages {
    x509_svids: OnceLock<Encoded>,
    x509_bundles: OnceLock<Encoded>,
    jwt_bundles: OnceLock<Encoded>,
}

/// The X509SVIDResponse; nothing while there is no SVID or no bundle.
pub(super) fn x509_svids(update: &WorkloadUpdate) -> Option<&Encoded> {
    let own = update
        .own
        .as_ref()
        .filter(|_| !update.identities.is_empty())?;
    let messages: &Messages = update.memo.of();
    Some(messages.x509_svids.get_or_init(|| {
        let mut message = X509svidResponse {
            svids: update
                .identities
                .iter()
                .map(|identity| svid_message(identity, own))
                .collect(),
            crl: Vec::new(),
            federated_bundles: update
                .federated
                .iter()
                .map(|other| (name(other), other.x509_der().to_vec()))
                .collect(),
        };
        let encoded = Encoded::of(&message);
        for svid in &mut message.svids {
            drop(Secret::new(std::mem::take(&mut svid.x509_svid_key)));
        }
        encoded
    }))
}

/// The X509BundlesResponse; nothing while the agent's own bundle is unknown.
pub(super) fn x509_bundles(update: &WorkloadUpdate) -> Option<&Encoded> {
    let bundles = update.all_bundles()?;
    let messages: &Messages = update.memo.of();
    Some(messages.x509_bundles.get_or_init(|| {
        Encoded::of(&X509BundlesResponse {
            crl: Vec::new(),
            bundles: bundles
                .map(|bundle| (name(bundle), bundle.x509_der().to_vec()))
                .collect(),
        })
    }))
}

/// The JWTBundlesResponse; nothing while the agent's own bundle is unknown.
pub(super) fn jwt_bundles(update: &WorkloadUpdate) -> Option<&Encoded> {
    let bundles = update.all_bundles()?;
    let messages: &Messages = update.memo.of();
    Some(messages.jwt_bundles.get_or_init(|| {
        Encoded::of(&JwtBundlesResponse {
            bundles: bundles
                .map(|bundle| (name(bundle), bundle.jwks().to_vec()))
                .collect(),
        })
    }))
}

fn name(bundle: &SharedBundle) -> String {
    bundle.bundle.trust_domain.id_string()
}

fn svid_message(identity: &Identity, own: &SharedBundle) -> X509svid {
    X509svid {
        spiffe_id: identity.svid.spiffe_id.to_string(),
        x509_svid: identity.svid.chain.concat(),
        x509_svid_key: identity.svid.key.expose().clone(),
        bundle: own.x509_der().to_vec(),
        hint: identity.entry.hint.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;
    use spiffe::key::{KeyPair, KeyType};

    use super::*;
    use crate::cache::svids::{IssuedSvid, RotationRule};
    use crate::cache::{Cache, CacheOptions, Delta};
    use crate::testing::{at, bundle, entry, selectors, trust_domain};

    /// What a workload with two identities and one federated trust domain gets.
    fn update() -> Arc<WorkloadUpdate> {
        let options = CacheOptions {
            trust_domain: trust_domain(),
            x509_svids: 10,
            jwt_svids: 10,
            rotation: RotationRule::default(),
        };
        let cache = Cache::new(
            options,
            Arc::new(spiffe::clock::ManualClock::new(at(0))),
            Arc::new(spiffe::random::SystemRandom),
        );
        let mut federated = spiffe::entry::Entry::clone(&entry("a", "/z", &["unix:uid:1"]));
        federated.federates_with = vec![bundle("other.test").trust_domain];
        federated.hint = "inner".into();
        let entries = vec![Arc::new(federated), entry("b", "/b", &["unix:uid:1"])];
        let svids = entries.iter().map(|entry| IssuedSvid {
            entry_id: Arc::clone(&entry.id),
            revision: 0,
            spiffe_id: entry.spiffe_id.clone(),
            chain: vec![
                Arc::from(format!("leaf of {}", entry.id).as_bytes()),
                Arc::from(&b"+intermediate"[..]),
            ],
            key: Arc::new(Secret::new(
                KeyPair::generate(KeyType::EcP256)
                    .unwrap()
                    .to_pkcs8_der()
                    .unwrap()
                    .expose()
                    .clone(),
            )),
            not_before: at(0),
            not_after: at(0) + Duration::from_secs(100),
            issuers: Vec::new(),
        });
        let svids = svids.collect();
        cache.apply(Delta {
            entries,
            bundles: vec![
                bundle("example.org"),
                bundle("other.test"),
                bundle("unrelated.test"),
            ],
            ..Delta::default()
        });
        cache.restore(svids);
        cache.current(&selectors(&["unix:uid:1", "unix:gid:1"]))
    }

    #[test]
    fn wa_31_a_message_holds_all_svids_in_the_order_of_entry_ids() {
        let update = update();
        let encoded = x509_svids(&update).unwrap();
        let message = X509svidResponse::decode(encoded.message()).unwrap();
        let ids: Vec<_> = message
            .svids
            .iter()
            .map(|svid| svid.spiffe_id.as_str())
            .collect();
        assert_eq!(ids, ["spiffe://example.org/z", "spiffe://example.org/b"]);
        assert_eq!(message.svids[0].x509_svid, b"leaf of a+intermediate");
        assert_eq!(message.svids[0].hint, "inner");
        assert_eq!(
            message.svids[0].bundle,
            bundle("example.org").to_concatenated_der()
        );
        KeyPair::from_pkcs8_der(&message.svids[0].x509_svid_key).unwrap();
        let federated: Vec<_> = message.federated_bundles.keys().collect();
        assert_eq!(federated, ["spiffe://other.test"]);
    }

    #[test]
    fn a_message_is_encoded_once_for_all_streams_of_an_update() {
        let update = update();
        let bytes = |update| x509_svids(update).unwrap().frame().as_ptr();
        assert_eq!(bytes(&update), bytes(&update));
    }

    #[test]
    fn there_is_no_message_of_svids_without_an_svid_or_a_bundle() {
        let empty = WorkloadUpdate::new(Vec::new(), Vec::new(), None, Vec::new());
        assert!(x509_svids(&empty).is_none());
        assert!(x509_bundles(&empty).is_none() && jwt_bundles(&empty).is_none());
        let full = update();
        let no_svid = WorkloadUpdate::new(
            full.entries.clone(),
            Vec::new(),
            full.own.clone(),
            Vec::new(),
        );
        assert!(x509_svids(&no_svid).is_none() && x509_bundles(&no_svid).is_some());
    }

    #[test]
    fn wa_18_and_wa_24_bundles_are_keyed_by_trust_domain_id_and_hold_the_own_one() {
        let update = update();
        let x509 = X509BundlesResponse::decode(x509_bundles(&update).unwrap().message()).unwrap();
        let jwt = JwtBundlesResponse::decode(jwt_bundles(&update).unwrap().message()).unwrap();
        let mut names: Vec<_> = x509.bundles.keys().collect();
        names.sort();
        assert_eq!(names, ["spiffe://example.org", "spiffe://other.test"]);
        let jwks: serde_json::Value =
            serde_json::from_slice(&jwt.bundles["spiffe://example.org"]).unwrap();
        assert_eq!(jwks["keys"][0]["kid"], "key-of-example.org");
        assert!(jwks["keys"][0].get("use").is_none() && jwks["keys"][0].get("x5c").is_none());
    }
}
