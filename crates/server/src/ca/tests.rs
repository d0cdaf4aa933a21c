//! A server's authorities on a real datastore and real key managers, with a clock of our own.

mod operations;
mod rotation;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use plugin::builtin::key_manager::{DiskKeyManager, MemoryKeyManager};
use plugin::key_manager::KeyManager;
use plugin::upstream_authority::UpstreamAuthority;
use spiffe::bundle::{Bundle, X509Bundle};
use spiffe::clock::{Clock, ManualClock, from_unix};
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::svid::x509::{BundleSource, VerifiedX509Svid, X509SvidError, verify_svid};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Subject;

use super::*;
use crate::attest::Attested;
use crate::audit::CallRecord;
use crate::caller::AdminCaller;
use crate::datastore::{Datastore, DatastoreConfig, DatastoreKind};
use crate::registry::Authorized;

pub(super) const HOUR: Duration = Duration::from_secs(3_600);

/// What outlives a server: its disk, its database, the time.
pub(super) struct Fixture {
    pub(super) directory: tempfile::TempDir,
    pub(super) clock: ManualClock,
    pub(super) datastore: Datastore,
    pub(super) upstream: Option<Arc<dyn UpstreamAuthority>>,
    pub(super) lost_keys: LostKeys,
    pub(super) sole_server: bool,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(from_unix(1_800_000_000));
        let kind = DatastoreKind::Sqlite {
            path: directory.path().join("db"),
        };
        let config = DatastoreConfig::new(kind);
        let (datastore, _) = Datastore::open(
            config,
            trust_domain(),
            Arc::new(clock.clone()),
            Telemetry::default(),
        )
        .await
        .unwrap();
        Self {
            directory,
            clock,
            datastore,
            upstream: None,
            lost_keys: LostKeys::Refuse,
            sole_server: true,
        }
    }

    /// Starts a server whose keys are on this fixture's disk.
    pub(super) async fn server(&self) -> Ca {
        self.try_server(self.disk(), config()).await.unwrap()
    }

    pub(super) async fn try_server(
        &self,
        keys: Arc<dyn KeyManager>,
        config: IssuanceConfig,
    ) -> Result<Ca, CaError> {
        let parts = CaParts {
            telemetry: Telemetry::default(),
            keys,
            upstream: self.upstream.clone(),
            registry: Arc::clone(self.datastore.registry()),
            bundles: self.datastore.bundles.clone(),
            journals: self.datastore.journals.clone(),
            leases: self.datastore.leases.clone(),
            clock: Arc::new(self.clock.clone()),
            random: Arc::new(SystemRandom),
            auditor: Auditor::new(None, Arc::new(self.clock.clone())),
            lost_keys: self.lost_keys,
            sole_server: self.sole_server,
        };
        Ca::open(config, parts).await
    }

    pub(super) fn disk(&self) -> Arc<dyn KeyManager> {
        Arc::new(DiskKeyManager::open(&self.directory.path().join("keys.json")).unwrap())
    }

    pub(super) fn memory() -> Arc<dyn KeyManager> {
        Arc::new(MemoryKeyManager::new())
    }

    pub(super) fn bundle(&self) -> Arc<Bundle> {
        self.datastore.registry().bundle(&trust_domain()).unwrap()
    }

    pub(super) async fn later(&self, ca: &Ca, step: Duration) {
        self.clock.advance(step);
        ca.tick(self.clock.now()).await.unwrap();
    }

    pub(super) fn verify(&self, issued: &IssuedX509) -> Result<VerifiedX509Svid, X509SvidError> {
        let chain: Vec<&[u8]> = issued.chain.iter().map(AsRef::as_ref).collect();
        verify_svid(
            &chain,
            &Own(Arc::new(self.bundle().x509_bundle())),
            self.clock.now(),
        )
    }
}

#[derive(Debug)]
struct Own(Arc<X509Bundle>);

impl BundleSource for Own {
    fn x509_bundle(&self, _: &TrustDomain) -> Option<Arc<X509Bundle>> {
        Some(Arc::clone(&self.0))
    }
}

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(super) fn config() -> IssuanceConfig {
    IssuanceConfig {
        trust_domain: trust_domain(),
        ca_key_type: KeyType::EcP256,
        jwt_key_type: KeyType::EcP256,
        ca_subject: Subject {
            country: vec!["US".to_owned()],
            organization: vec!["SPIFFE".to_owned()],
            ..Subject::default()
        },
        ca_ttl: HOUR * 24,
        agent_ttl: HOUR * 2,
        x509_svid_ttl: HOUR,
        jwt_svid_ttl: Duration::from_secs(300),
        jwt_issuer: None,
        jwt_svids: true,
    }
}

pub(super) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&trust_domain(), path).unwrap()
}

pub(super) fn key() -> spiffe::key::PublicKey {
    KeyPair::generate(KeyType::EcP256)
        .unwrap()
        .public_key()
        .clone()
}

pub(super) fn quiet() -> CallRecord {
    CallRecord::default()
}

/// Ids of the active X.509 and JWT authority.
pub(super) fn active(ca: &Ca) -> (String, String) {
    let of = |kind| {
        ca.authorities(kind)
            .unwrap()
            .active
            .clone()
            .unwrap()
            .authority_id
    };
    (of(AuthorityKind::X509), of(AuthorityKind::Jwt))
}

pub(super) fn prepared(ca: &Ca) -> (Option<String>, Option<String>) {
    let of = |kind| {
        ca.authorities(kind)
            .unwrap()
            .prepared
            .as_ref()
            .map(|state| state.authority_id.clone())
    };
    (of(AuthorityKind::X509), of(AuthorityKind::Jwt))
}

/// Ids of all authorities of the bundle.
pub(super) fn published(bundle: &Bundle) -> Vec<String> {
    let x509 = bundle
        .x509_authorities
        .iter()
        .map(|one| spiffe::digest::hex(one.certificate.subject_key_id().unwrap()));
    x509.chain(bundle.jwt_authorities.iter().map(|one| one.key_id.clone()))
        .collect()
}

/// An entry without anything particular.
/// A grant to the workload of an entry that some agent is authorized for.
pub(super) fn workload(entry: &spiffe::entry::Entry) -> Grant {
    Grant::entry(Authorized::for_tests(entry))
}

/// A grant by an administrator.
pub(super) fn minted(id: SpiffeId, ttl: i32) -> Grant {
    Grant::minted(AdminCaller::for_tests(), id, ttl)
}

/// A grant to a node that attested.
pub(super) fn agent(id: SpiffeId) -> Grant {
    Grant::agent(&Attested::for_tests(id))
}

pub(super) fn entry() -> spiffe::entry::Entry {
    serde_json::from_value(serde_json::json!({
        "id": "e", "spiffe_id": "spiffe://example.org/w", "parent_id": "spiffe://example.org/spire/agent/x",
        "selectors": [], "x509_svid_ttl": 0, "jwt_svid_ttl": 0, "federates_with": [], "admin": false,
        "downstream": false, "store_svid": false, "expires_at": 0, "dns_names": [], "revision_number": 0,
        "hint": "", "created_at": 0, "disable_x509_svid_prefetch": false, "jwt_svid_include_jti": false
    }))
    .unwrap()
}
