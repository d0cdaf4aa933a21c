//! Builders for this crate's unit tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use plugin::lifecycle::HostServices;
use plugin::node_attestor::agent::{Attempt, NodeAttestor};
use spiffe::bundle::{Bundle, JwtAuthority};
use spiffe::clock::{Clock, SystemClock};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType, PublicKey};
use spiffe::random::SystemRandom;
use spiffe::secret::Secret;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::{
    CaTemplate, Certificate, Issuer, LeafTemplate, Subject, issue_ca, issue_leaf, random_serial,
};

use crate::config::Config;
use crate::node::NodePlugins;

pub(crate) mod fake_server;

/// What the configuration's plugins get from an agent.
pub(crate) fn host(config: &Config) -> HostServices {
    let trust_domain = config.node.trust_domain.clone();
    HostServices::new(trust_domain, Arc::new(SystemClock), Arc::new(SystemRandom))
}

/// The plugins of the node's identity that are configured.
pub(crate) async fn node_plugins(config: &Config) -> NodePlugins {
    let host = host(config).with_join_token(config.join_token.clone());
    let keys = config.plugins.key_manager.open(&host).await.unwrap();
    let attestor = config.plugins.node_attestor.open(&host).await.unwrap();
    NodePlugins {
        keys: Arc::clone(keys.plugin()),
        attestor: Arc::clone(attestor.plugin()),
    }
}

/// An attestor that can prove itself again and again, and answers each challenge with its bytes in reverse.
#[derive(Debug)]
pub(crate) struct Repeatable;

#[async_trait::async_trait]
impl NodeAttestor for Repeatable {
    fn name(&self) -> &str {
        "repeatable"
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    async fn start(&self) -> Result<Box<dyn Attempt>, plugin::Error> {
        Ok(Box::new(ReversedAnswers(Secret::new(b"node-1".to_vec()))))
    }
}

#[derive(Debug)]
struct ReversedAnswers(Secret<Vec<u8>>);

#[async_trait::async_trait]
impl Attempt for ReversedAnswers {
    fn payload(&self) -> &Secret<Vec<u8>> {
        &self.0
    }

    async fn answer(&mut self, challenge: &[u8]) -> Result<Secret<Vec<u8>>, plugin::Error> {
        Ok(Secret::new(challenge.iter().rev().copied().collect()))
    }
}

/// `seconds` after the start of the tests' time.
pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&trust_domain(), path).unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> SelectorSet {
    SelectorSet::from(
        texts
            .iter()
            .map(|text| Selector::parse(text).unwrap())
            .collect::<Vec<_>>(),
    )
}

pub(crate) fn entry(entry_id: &str, path: &str, selector_texts: &[&str]) -> Arc<Entry> {
    Arc::new(Entry {
        id: entry_id.into(),
        spiffe_id: id(path),
        parent_id: id("/spire/agent/join_token/t"),
        selectors: selectors(selector_texts),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        hint: String::new(),
        created_at: 0,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    })
}

/// A bundle with one authority of each kind, always the same for a trust domain.
pub(crate) fn bundle(name: &str) -> Bundle {
    static MADE: Mutex<BTreeMap<String, Bundle>> = Mutex::new(BTreeMap::new());
    MADE.lock()
        .unwrap()
        .entry(name.to_owned())
        .or_insert_with(|| make_bundle(name))
        .clone()
}

fn make_bundle(name: &str) -> Bundle {
    let trust_domain = TrustDomain::parse(name).unwrap();
    let authority = Authority::new(&trust_domain);
    let mut bundle = Bundle::new(trust_domain);
    bundle.add_x509_authority(authority.certificate);
    bundle.jwt_authorities.push(JwtAuthority {
        key_id: format!("key-of-{name}"),
        public_key: authority.key.public_key().clone(),
        expires_at: None,
        tainted: false,
        source: spiffe::bundle::AuthoritySource::Unknown,
    });
    bundle
}

/// The bundle of a partner whose root has a key of a kind that SPIFFE's documents do not name: Ed25519.
pub(crate) fn ed25519_bundle(name: &str) -> proto::spire::api::types::Bundle {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let uri = format!("spiffe://{name}").as_str().try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let root = params.self_signed(&key).unwrap();
    proto::spire::api::types::Bundle {
        trust_domain: name.to_owned(),
        x509_authorities: vec![proto::spire::api::types::X509Certificate {
            asn1: root.der().to_vec(),
            tainted: false,
        }],
        ..Default::default()
    }
}

/// A self-signed authority that signs what tests need.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    pub(crate) key: KeyPair,
    pub(crate) certificate: Certificate,
}

impl Authority {
    pub(crate) fn new(trust_domain: &TrustDomain) -> Self {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let now = SystemClock.now();
        let template = CaTemplate {
            serial: random_serial(&SystemRandom),
            subject: Subject::spire(),
            id: trust_domain.id(),
            public_key: key.public_key().clone(),
            not_before: now - Duration::from_secs(10),
            not_after: now + Duration::from_secs(24 * 3600),
            path_len: None,
            subject_key_id: None,
        };
        let der = issue_ca(&template, None, &key)
            .now_or_never()
            .unwrap()
            .unwrap();
        Self {
            certificate: Certificate::from_der(&der).unwrap(),
            key,
        }
    }

    /// A certificate for `id`, from ten seconds ago for `life`.
    pub(crate) fn issue(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
        life: Duration,
    ) -> Certificate {
        let now = SystemClock.now();
        let template = LeafTemplate {
            serial: random_serial(&SystemRandom),
            subject: Subject::spire(),
            id: id.clone(),
            dns_names: Vec::new(),
            public_key: public_key.clone(),
            not_before: now - Duration::from_secs(10),
            not_after: now + life,
        };
        let key_id = self.key.public_key().subject_key_id();
        let issuer = Issuer {
            subject_der: self.certificate.subject_der(),
            key_id: &key_id,
            signer: &self.key,
        };
        let der = issue_leaf(&template, &issuer)
            .now_or_never()
            .unwrap()
            .unwrap();
        Certificate::from_der(&der).unwrap()
    }
}

/// The system's time, moved by what a test says.
#[derive(Debug, Clone, Default)]
pub(crate) struct MovedClock(Arc<Mutex<Moved>>);

#[derive(Debug, Default)]
struct Moved {
    ahead: Duration,
    behind: Duration,
}

impl MovedClock {
    pub(crate) fn advance(&self, step: Duration) {
        self.0.lock().unwrap().ahead += step;
    }

    pub(crate) fn set_back(&self, step: Duration) {
        self.0.lock().unwrap().behind += step;
    }
}

impl Clock for MovedClock {
    fn now(&self) -> SystemTime {
        let moved = self.0.lock().unwrap();
        SystemClock.now() + moved.ahead - moved.behind
    }
}
