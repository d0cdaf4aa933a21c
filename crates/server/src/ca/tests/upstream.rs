//! Authorities below an upstream one, good, bad and away.

use std::sync::Mutex;

use async_trait::async_trait;
use plugin::Error;
use plugin::upstream_authority::MintedCa;
use spiffe::csr::Csr;
use spiffe::key::PublicKey;
use spiffe::x509::{CaTemplate, Certificate, Issuer, issue_ca, random_serial};

use super::*;
use crate::caller::DownstreamCaller;

/// How the upstream authority behaves next.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behavior {
    Good,
    Away,
    /// Certifies a key of its own.
    OtherKey,
    NoRoots,
    NoChain,
    OtherTrustDomain,
    /// Names a root that did not sign.
    OtherRoot,
    /// Certifies for a time that is over.
    Expired,
}

#[derive(Debug)]
struct Upstream {
    key: KeyPair,
    root: Certificate,
    behavior: Mutex<Behavior>,
    clock: ManualClock,
}

impl Upstream {
    async fn new(clock: &ManualClock) -> Arc<Self> {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let template = template(key.public_key(), &trust_domain(), clock, HOUR * 24 * 365);
        let root = issue_ca(&template, None, &key).await.unwrap();
        let root = Certificate::from_der(&root).unwrap();
        Arc::new(Self {
            key,
            root,
            behavior: Mutex::new(Behavior::Good),
            clock: clock.clone(),
        })
    }

    fn is(&self, behavior: Behavior) {
        *self.behavior.lock().unwrap() = behavior;
    }

    async fn sign(
        &self,
        key: &PublicKey,
        trust_domain: &TrustDomain,
        ttl: Duration,
    ) -> Certificate {
        let issuer = Issuer {
            subject_der: self.root.subject_der(),
            key_id: self.root.subject_key_id().unwrap(),
            signer: &self.key,
        };
        let template = template(key, trust_domain, &self.clock, ttl);
        Certificate::from_der(&issue_ca(&template, Some(&issuer), &self.key).await.unwrap())
            .unwrap()
    }
}

fn template(
    key: &PublicKey,
    trust_domain: &TrustDomain,
    clock: &ManualClock,
    ttl: Duration,
) -> CaTemplate {
    CaTemplate {
        serial: random_serial(&SystemRandom),
        subject: Subject {
            organization: vec!["upstream".to_owned()],
            ..Subject::default()
        },
        id: trust_domain.id(),
        public_key: key.clone(),
        not_before: clock.now() - HOUR,
        not_after: clock.now() + ttl,
        path_len: None,
        subject_key_id: None,
    }
}

#[async_trait]
impl UpstreamAuthority for Upstream {
    fn name(&self) -> &str {
        "test"
    }

    async fn mint_x509_ca(
        &self,
        csr_der: &[u8],
        preferred_ttl: Duration,
    ) -> Result<MintedCa, Error> {
        let behavior = *self.behavior.lock().unwrap();
        let csr = Csr::parse_and_verify(csr_der).unwrap();
        assert_eq!(csr.uris(), ["spiffe://example.org"]);
        let other = TrustDomain::parse("other.test").unwrap();
        let foreign = KeyPair::generate(KeyType::EcP256).unwrap();
        let own = trust_domain();
        let certificate = match behavior {
            Behavior::Away => return Err(Error::interrupted("test")),
            Behavior::OtherKey => self.sign(foreign.public_key(), &own, preferred_ttl).await,
            Behavior::OtherTrustDomain => self.sign(csr.public_key(), &other, preferred_ttl).await,
            Behavior::Expired => {
                self.clock.set(self.clock.now() - HOUR);
                let expired = self
                    .sign(csr.public_key(), &own, Duration::from_secs(60))
                    .await;
                self.clock.set(self.clock.now() + HOUR);
                expired
            }
            _ => self.sign(csr.public_key(), &own, preferred_ttl).await,
        };
        let roots = match behavior {
            Behavior::NoRoots => Vec::new(),
            Behavior::OtherRoot => {
                let template = template(foreign.public_key(), &own, &self.clock, HOUR);
                vec![
                    Certificate::from_der(&issue_ca(&template, None, &foreign).await.unwrap())
                        .unwrap(),
                ]
            }
            _ => vec![self.root.clone()],
        };
        let chain = if behavior == Behavior::NoChain {
            Vec::new()
        } else {
            vec![certificate]
        };
        Ok(MintedCa { chain, roots })
    }
}

async fn fixture() -> (Fixture, Arc<Upstream>) {
    let mut fixture = Fixture::new().await;
    let upstream = Upstream::new(&fixture.clock).await;
    fixture.upstream = Some(Arc::clone(&upstream) as Arc<dyn UpstreamAuthority>);
    (fixture, upstream)
}

#[tokio::test]
async fn publishes_the_upstream_root_and_shows_the_way_to_it() {
    let (fixture, upstream) = fixture().await;
    let ca = fixture.server().await;
    let bundle = fixture.bundle();
    assert_eq!(bundle.x509_authorities.len(), 1);
    assert_eq!(bundle.x509_authorities[0].certificate, upstream.root);
    let issued = ca
        .issue_x509(&minted(id("/w"), 60), &key(), &quiet())
        .await
        .unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(fixture.verify(&issued).unwrap().id(), &id("/w"));
    let state = ca.authorities(AuthorityKind::X509).unwrap();
    let root_id = journal::hex(upstream.root.subject_key_id().unwrap());
    assert_eq!(
        state.active.as_ref().unwrap().upstream_authority_id,
        root_id
    );
}

#[tokio::test]
async fn a_downstream_server_gets_a_ca_whose_svids_verify_everywhere() {
    let (fixture, _) = fixture().await;
    let ca = fixture.server().await;
    let mut entry = entry();
    entry.downstream = true;
    let grant = Grant::downstream_ca(DownstreamCaller::for_tests(&entry), &trust_domain()).unwrap();
    let issued = ca
        .issue_downstream_ca(&grant, &key(), None, &quiet())
        .await
        .unwrap();
    assert_eq!(issued.chain.len(), 2);
    let certificate = Certificate::from_der(&issued.chain[0]).unwrap();
    assert!(certificate.is_ca());
    assert_eq!(certificate.subject().organizational_unit, ["DOWNSTREAM-1"]);
    let states = ca.authorities(AuthorityKind::X509).unwrap();
    assert!(unix_seconds(issued.not_after) <= states.active.as_ref().unwrap().expires_at);
}

#[tokio::test]
async fn refuses_every_answer_that_would_not_hold() {
    for behavior in [
        Behavior::Away,
        Behavior::OtherKey,
        Behavior::NoRoots,
        Behavior::NoChain,
        Behavior::OtherTrustDomain,
        Behavior::OtherRoot,
        Behavior::Expired,
    ] {
        let (fixture, upstream) = fixture().await;
        upstream.is(behavior);
        let refused = fixture.try_server(Fixture::memory(), config()).await;
        assert!(refused.is_err(), "{behavior:?}");
        assert!(
            fixture
                .datastore
                .registry()
                .bundle(&trust_domain())
                .is_none(),
            "{behavior:?} was published"
        );
    }
}

#[tokio::test]
async fn goes_on_with_the_active_authority_while_upstream_is_away() {
    let (fixture, upstream) = fixture().await;
    let ca = fixture.server().await;
    let first = active(&ca).0;
    upstream.is(Behavior::Away);
    fixture.clock.advance(HOUR * 21);
    for _ in 0..11 {
        assert!(ca.tick(fixture.clock.now()).await.is_err());
    }
    assert_eq!(active(&ca).0, first);
    ca.issue_x509(&minted(id("/w"), 60), &key(), &quiet())
        .await
        .unwrap();
    assert!(ca.fault().unwrap().contains("11 times"));
    upstream.is(Behavior::Good);
    ca.tick(fixture.clock.now()).await.unwrap();
    assert_ne!(active(&ca).0, first);
    assert_eq!(ca.fault(), None);
}

#[tokio::test]
async fn a_restart_while_upstream_is_away_resumes() {
    let (fixture, upstream) = fixture().await;
    let first = active(&fixture.server().await);
    upstream.is(Behavior::Away);
    fixture.clock.advance(HOUR * 21);
    assert_eq!(active(&fixture.server().await).0, first.0);
}

#[tokio::test]
async fn a_change_from_self_signed_to_upstream_makes_a_new_authority() {
    let mut fixture = Fixture::new().await;
    let first = active(&fixture.server().await);
    let upstream = Upstream::new(&fixture.clock).await;
    fixture.upstream = Some(upstream);
    let ca = fixture.server().await;
    assert_ne!(active(&ca).0, first.0);
    assert_eq!(active(&ca).1, first.1);
    // What the former one signed is still believed.
    assert_eq!(fixture.bundle().x509_authorities.len(), 2);
}

#[tokio::test]
async fn operators_taint_and_revoke_the_root_above_and_not_the_authority_itself() {
    let (fixture, upstream) = fixture().await;
    let ca = fixture.server().await;
    let root_id = journal::hex(upstream.root.subject_key_id().unwrap());
    let own = active(&ca).0;
    let refused = ca.taint(AuthorityKind::X509, &own).await.unwrap_err();
    assert!(matches!(refused, OperationError::TaintsBelowUpstream));
    let refused = ca.revoke(AuthorityKind::X509, &own).await.unwrap_err();
    assert!(matches!(refused, OperationError::RevokesBelowUpstream));
    for subject_key_id in ["", "abcd", &root_id] {
        let refused = ca.taint_upstream(subject_key_id).await.unwrap_err();
        assert!(
            matches!(refused, OperationError::InvalidSubjectKeyId { .. }),
            "{subject_key_id}: {refused}"
        );
        ca.revoke_upstream(subject_key_id).await.unwrap_err();
    }
    assert!(!fixture.bundle().x509_authorities[0].tainted);
}
