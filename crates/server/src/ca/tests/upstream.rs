//! Authorities below an upstream one, good, bad and away.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use plugin::upstream_authority::{MintedCa, Updates};
use plugin::{Error, ErrorKind};
use spiffe::bundle::{AuthoritySource, JwtAuthority, X509Authority};
use spiffe::csr::Csr;
use spiffe::key::PublicKey;
use spiffe::x509::{CaTemplate, Certificate, Issuer, issue_ca, random_serial};

use super::*;
use crate::ca::upstream::{KeysFollower, LifetimeCut};
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
    /// What it will say to those who follow it, one subscription after the other.
    words: Mutex<VecDeque<Vec<Word>>>,
    /// Who signs in its place.
    successor: Mutex<Option<Arc<Self>>>,
}

/// One update: the roots that it names, or an error.
type Word = Result<Vec<X509Authority>, ErrorKind>;

impl Upstream {
    async fn new(clock: &ManualClock) -> Arc<Self> {
        Self::expiring(clock, HOUR * 24 * 365).await
    }

    async fn expiring(clock: &ManualClock, after: Duration) -> Arc<Self> {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let template = template(key.public_key(), &trust_domain(), clock, after);
        let root = issue_ca(&template, None, &key).await.unwrap();
        let root = Certificate::from_der(&root).unwrap();
        Arc::new(Self {
            key,
            root,
            behavior: Mutex::new(Behavior::Good),
            clock: clock.clone(),
            words: Mutex::default(),
            successor: Mutex::default(),
        })
    }

    /// What the next subscription brings; it does not end.
    fn says(&self, words: impl IntoIterator<Item = Word>) {
        let words = words.into_iter().collect();
        self.words.lock().unwrap().push_back(words);
    }

    fn updates(&self) -> Updates<X509Authority> {
        let words = self.words.lock().unwrap().pop_front().unwrap_or_default();
        let words = words
            .into_iter()
            .map(|word| word.map_err(|kind| Error::new("test", kind, "the connection was lost")));
        stream::iter(words).chain(stream::pending()).boxed()
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

fn named(certificate: &Certificate) -> X509Authority {
    X509Authority {
        certificate: certificate.clone(),
        tainted: false,
        source: AuthoritySource::Unknown,
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
    ) -> Result<(MintedCa, Updates<X509Authority>), Error> {
        let successor = self.successor.lock().unwrap().clone();
        if let Some(successor) = successor {
            return successor.mint_x509_ca(csr_der, preferred_ttl).await;
        }
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
        let roots = roots.iter().map(named).collect();
        Ok((MintedCa { chain, roots }, self.updates()))
    }

    async fn subscribe_roots(&self) -> Result<Updates<X509Authority>, Error> {
        Ok(self.updates())
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
    let root_id = spiffe::digest::hex(upstream.root.subject_key_id().unwrap());
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
    let root_id = spiffe::digest::hex(upstream.root.subject_key_id().unwrap());
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

/// A root that signs nothing here.
async fn other_root(fixture: &Fixture) -> Certificate {
    Upstream::new(&fixture.clock).await.root.clone()
}

fn roots(fixture: &Fixture) -> Vec<Certificate> {
    let bundle = fixture.bundle();
    let roots = bundle.x509_authorities.iter();
    roots.map(|root| root.certificate.clone()).collect()
}

/// Follows the upstream authority until it has said the words of one subscription.
async fn follow(ca: &Ca, follower: &mut RootsFollower, words: usize) {
    let upstream = ca.upstream.clone().unwrap();
    for _ in 0..words {
        ca.follow_upstream(&upstream, follower).await;
    }
}

/// A server below an upstream authority that says these words after its first CA was minted, and what follows from them.
async fn after(fixture: &Fixture, upstream: &Upstream, words: Vec<Word>) -> (Ca, RootsFollower) {
    let count = words.len();
    upstream.says(words);
    let ca = fixture.server().await;
    let mut follower = RootsFollower::default();
    // The roots of the minting come first.
    follow(&ca, &mut follower, 1 + count).await;
    (ca, follower)
}

#[tokio::test]
async fn roots_come_and_leave_with_the_word_of_the_upstream_authority() {
    let (fixture, upstream) = fixture().await;
    let (own, other) = (upstream.root.clone(), other_root(&fixture).await);
    let (ca, mut follower) = after(
        &fixture,
        &upstream,
        vec![Ok(vec![named(&own), named(&other)])],
    )
    .await;
    assert_eq!(roots(&fixture), [own.clone(), other]);
    let source = &fixture.bundle().x509_authorities[1].source;
    assert_eq!(*source, AuthoritySource::Upstream("test".to_owned()));
    ca.upstream
        .as_ref()
        .unwrap()
        .follow_roots(vec![named(&own)], stream::pending().boxed());
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), [own]);
}

#[tokio::test]
async fn a_restarted_server_hears_what_changed_meanwhile() {
    let (fixture, upstream) = fixture().await;
    let (own, other) = (upstream.root.clone(), other_root(&fixture).await);
    drop(
        after(
            &fixture,
            &upstream,
            vec![Ok(vec![named(&own), named(&other)])],
        )
        .await,
    );
    upstream.says([Ok(vec![named(&own)])]);
    let ca = fixture.server().await;
    // The subscription, then its first word.
    follow(&ca, &mut RootsFollower::default(), 2).await;
    assert_eq!(roots(&fixture), [own]);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_authority_that_goes_away_takes_nothing_with_it() {
    let (fixture, upstream) = fixture().await;
    let (own, other) = (upstream.root.clone(), other_root(&fixture).await);
    let both = vec![named(&own), named(&other)];
    let words = vec![Ok(both.clone()), Err(ErrorKind::Transient)];
    let (ca, mut follower) = after(&fixture, &upstream, words).await;
    assert_eq!(roots(&fixture).len(), 2);
    // It comes back twice: once to be lost again, once with another word.
    upstream.says([Err(ErrorKind::Transient)]);
    upstream.says([Ok(vec![named(&own)])]);
    follow(&ca, &mut follower, 2).await;
    assert_eq!(roots(&fixture).len(), 2);
    follow(&ca, &mut follower, 2).await;
    assert_eq!(roots(&fixture), [own]);
}

#[tokio::test]
async fn an_upstream_authority_that_repeats_itself_changes_nothing() {
    let (fixture, upstream) = fixture().await;
    let both = vec![named(&upstream.root), named(&other_root(&fixture).await)];
    let (ca, mut follower) = after(&fixture, &upstream, vec![Ok(both.clone())]).await;
    let before = fixture.bundle();
    let again = stream::iter([Ok(both.clone()), Ok(both)]);
    let upstream = ca.upstream.as_ref().unwrap();
    upstream.follow_roots(vec![], again.chain(stream::pending()).boxed());
    follow(&ca, &mut follower, 3).await;
    assert_eq!(fixture.bundle(), before);
}

/// Has the database refuse to write bundles, or accept it again.
fn refuse_bundles(fixture: &Fixture, refuse: bool) {
    let database = rusqlite::Connection::open(fixture.directory.path().join("db")).unwrap();
    let statement = if refuse {
        "CREATE TRIGGER refused BEFORE UPDATE ON bundles BEGIN SELECT RAISE(ABORT, 'no'); END"
    } else {
        "DROP TRIGGER refused"
    };
    database.execute_batch(statement).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_word_that_could_not_be_stored_is_stored_later_but_not_after_a_newer_one() {
    let (fixture, upstream) = fixture().await;
    let own = upstream.root.clone();
    let (second, third) = (other_root(&fixture).await, other_root(&fixture).await);
    let words = vec![Ok(vec![named(&own)])];
    let (ca, mut follower) = after(&fixture, &upstream, words).await;
    let upstream = ca.upstream.clone().unwrap();
    let says = |root: &Certificate| {
        let both = vec![named(&own), named(root)];
        upstream.follow_roots(both, stream::pending().boxed());
    };
    refuse_bundles(&fixture, true);
    says(&second);
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), std::slice::from_ref(&own));
    refuse_bundles(&fixture, false);
    // Nothing is said; a minute later it is tried again.
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), [own.clone(), second.clone()]);

    refuse_bundles(&fixture, true);
    says(&third);
    follow(&ca, &mut follower, 1).await;
    refuse_bundles(&fixture, false);
    let fourth = other_root(&fixture).await;
    says(&fourth);
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), [own.clone(), fourth.clone()]);
    // What could not be stored is not of today any more.
    let again = tokio::time::timeout(HOUR, follow(&ca, &mut follower, 1));
    again.await.unwrap_err();
    assert_eq!(roots(&fixture), [own, fourth]);
}

#[tokio::test(start_paused = true)]
async fn keys_that_could_not_be_stored_are_stored_later() {
    let (fixture, _) = fixture().await;
    let ca = fixture.server().await;
    let upstream = ca.upstream.clone().unwrap();
    let of_upstream = JwtAuthority {
        key_id: "theirs".to_owned(),
        public_key: key(),
        expires_at: None,
        tainted: false,
        source: AuthoritySource::Unknown,
    };
    let words = stream::iter([Ok(vec![of_upstream])]).chain(stream::pending());
    upstream.follow_keys(words.boxed());
    let keys = || fixture.bundle().jwt_authorities.len();
    refuse_bundles(&fixture, true);
    let mut follower = KeysFollower::default();
    follower.step(&upstream, &ca.context).await;
    assert_eq!(keys(), 1);
    refuse_bundles(&fixture, false);
    follower.step(&upstream, &ca.context).await;
    assert_eq!(keys(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_authority_that_never_falls_silent_keeps_no_root_that_leaves() {
    let (fixture, upstream) = fixture().await;
    let (ca, old_root, mut follower) = active_x509(&fixture, &upstream).await;
    let successor = Upstream::new(&fixture.clock).await;
    *upstream.successor.lock().unwrap() = Some(Arc::clone(&successor));
    let follows = ca.upstream.clone().unwrap();
    let word = vec![named(&successor.root)];
    follows.follow_roots(word.clone(), stream::pending().boxed());
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), [old_root, successor.root.clone()]);
    fixture.clock.advance(HOUR * 25);
    // It repeats itself twice as often as it is looked whether something may leave.
    let repeats = stream::unfold(word.clone(), |word| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Some((Ok(word.clone()), word))
    });
    follows.follow_roots(word, repeats.boxed());
    follow(&ca, &mut follower, 6).await;
    assert_eq!(roots(&fixture), std::slice::from_ref(&successor.root));
}

#[tokio::test]
async fn an_upstream_authority_that_names_no_root_is_not_believed() {
    let (fixture, upstream) = fixture().await;
    let before = vec![named(&upstream.root), named(&other_root(&fixture).await)];
    let words = vec![Ok(before), Ok(Vec::new())];
    let (_ca, _) = after(&fixture, &upstream, words).await;
    assert_eq!(roots(&fixture).len(), 2);
}

#[tokio::test]
async fn only_what_the_upstream_authority_put_there_leaves_with_its_word() {
    let (fixture, upstream) = fixture().await;
    let own = upstream.root.clone();
    let (administrators, former, claimed) = (
        other_root(&fixture).await,
        other_root(&fixture).await,
        other_root(&fixture).await,
    );
    let put = async |certificate: &Certificate, source: AuthoritySource| {
        let mut bundle = Bundle::new(trust_domain());
        bundle.x509_authorities = vec![X509Authority {
            source,
            ..named(certificate)
        }];
        fixture.datastore.bundles.append(bundle).await.unwrap();
    };
    put(&administrators, AuthoritySource::Administrator).await;
    put(&former, AuthoritySource::Unknown).await;
    // It names all of them, and an administrator adds one that came from it.
    let all = [&own, &administrators, &former, &claimed];
    let words = vec![Ok(all.into_iter().map(named).collect())];
    let (ca, mut follower) = after(&fixture, &upstream, words).await;
    put(&claimed, AuthoritySource::Administrator).await;
    ca.upstream
        .as_ref()
        .unwrap()
        .follow_roots(vec![named(&own)], stream::pending().boxed());
    follow(&ca, &mut follower, 1).await;
    let left = roots(&fixture);
    for root in all {
        assert!(left.contains(root));
    }
}

#[tokio::test]
async fn a_root_that_was_revoked_does_not_come_back_by_being_named_again() {
    let (fixture, upstream) = fixture().await;
    let (own, other) = (upstream.root.clone(), other_root(&fixture).await);
    let both = vec![named(&own), named(&other)];
    let (ca, mut follower) = after(&fixture, &upstream, vec![Ok(both.clone())]).await;
    let id = spiffe::digest::hex(other.subject_key_id().unwrap());
    let (datastore, trust_domain) = (&fixture.datastore, trust_domain());
    datastore
        .bundles
        .taint_x509_authority(&trust_domain, &id)
        .await
        .unwrap();
    datastore
        .bundles
        .revoke_x509_authority(&trust_domain, &id)
        .await
        .unwrap();
    let third = other_root(&fixture).await;
    let more = [both, vec![named(&third)]].concat();
    ca.upstream
        .as_ref()
        .unwrap()
        .follow_roots(more, stream::pending().boxed());
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), [own, third]);
}

#[tokio::test(start_paused = true)]
async fn a_root_with_another_key_replaces_the_ca_and_the_former_leaves_when_nothing_needs_it() {
    let (fixture, upstream) = fixture().await;
    let first = active_x509(&fixture, &upstream).await;
    let (ca, old_root, mut follower) = first;
    let issued = ca
        .issue_x509(&minted(id("/w"), 60), &key(), &quiet())
        .await
        .unwrap();
    let before = active(&ca).0;
    // The upstream authority goes on with another key under the same name.
    let successor = Upstream::new(&fixture.clock).await;
    assert_eq!(successor.root.subject_der(), old_root.subject_der());
    *upstream.successor.lock().unwrap() = Some(Arc::clone(&successor));
    ca.upstream
        .as_ref()
        .unwrap()
        .follow_roots(vec![named(&successor.root)], stream::pending().boxed());
    follow(&ca, &mut follower, 1).await;
    assert_ne!(
        active(&ca).0,
        before,
        "the CA below the former root still signs"
    );
    // What the former CA signed is valid until it expires.
    assert_eq!(roots(&fixture), [old_root, successor.root.clone()]);
    fixture.verify(&issued).unwrap();
    fixture.clock.advance(HOUR * 25);
    follow(&ca, &mut follower, 2).await;
    assert_eq!(roots(&fixture), std::slice::from_ref(&successor.root));
}

/// A server with its first CA, and the root above it.
async fn active_x509(fixture: &Fixture, upstream: &Upstream) -> (Ca, Certificate, RootsFollower) {
    let (ca, follower) = after(fixture, upstream, Vec::new()).await;
    (ca, upstream.root.clone(), follower)
}

#[tokio::test]
async fn a_root_that_the_upstream_authority_taints_is_left_at_once_and_leaves_at_once() {
    let (fixture, upstream) = fixture().await;
    let (ca, old_root, mut follower) = active_x509(&fixture, &upstream).await;
    let before = active(&ca).0;
    let successor = Upstream::new(&fixture.clock).await;
    *upstream.successor.lock().unwrap() = Some(Arc::clone(&successor));
    let tainted = X509Authority {
        tainted: true,
        ..named(&old_root)
    };
    let follows = ca.upstream.clone().unwrap();
    follows.follow_roots(
        vec![tainted, named(&successor.root)],
        stream::pending().boxed(),
    );
    follow(&ca, &mut follower, 1).await;
    assert_ne!(active(&ca).0, before);
    assert!(fixture.bundle().x509_authorities[0].tainted);
    follows.follow_roots(vec![named(&successor.root)], stream::pending().boxed());
    follow(&ca, &mut follower, 1).await;
    assert_eq!(roots(&fixture), std::slice::from_ref(&successor.root));
}

#[tokio::test]
async fn jwt_keys_of_the_upstream_authority_come_and_leave_too() {
    let (fixture, _) = fixture().await;
    let ca = fixture.server().await;
    let jwt = |key_id: &str| JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: key(),
        expires_at: None,
        tainted: false,
        source: AuthoritySource::Unknown,
    };
    let own_domain = trust_domain();
    let sync = async |keys: Vec<JwtAuthority>| {
        let source = ca.upstream.as_ref().unwrap().source();
        let synced = fixture
            .datastore
            .bundles
            .sync_upstream_keys(&own_domain, source, keys);
        synced.await.unwrap()
    };
    let own = active(&ca).1;
    let keys = || {
        let bundle = fixture.bundle();
        let ids = bundle.jwt_authorities.iter().map(|key| key.key_id.clone());
        ids.collect::<Vec<_>>()
    };
    let (one, two) = (jwt("one"), jwt("two"));
    assert!(sync(vec![one.clone()]).await);
    assert_eq!(keys(), [own.clone(), "one".to_owned()]);
    assert!(!sync(vec![one]).await, "it repeated itself");
    assert!(sync(vec![two]).await);
    assert_eq!(keys(), [own, "two".to_owned()]);
}

#[tokio::test]
async fn a_ca_that_is_cut_by_the_upstream_authority_is_warned_of_once_with_both_dates() {
    let (fixture, _) = fixture().await;
    let now = fixture.clock.now();
    let chain = |ends: Duration| {
        let clock = fixture.clock.clone();
        async move {
            let short = Upstream::expiring(&clock, ends).await;
            let certificate = short
                .sign(&key(), &trust_domain(), ends.min(HOUR * 12))
                .await;
            MintedCa {
                chain: vec![certificate],
                roots: vec![named(&short.root)],
            }
        }
    };
    let cut = LifetimeCut::default();
    let five = chain(HOUR * 5).await;
    let warning = cut.warning(&five, now, HOUR * 24).unwrap();
    for date in [
        "2027-01-15T13:00:00Z",
        "2027-01-16T08:00:00Z",
        "upstream authority expires",
    ] {
        assert!(warning.contains(date), "{warning}");
    }
    // The next attempts.
    let later = now + HOUR;
    for _ in 0..3 {
        assert_eq!(cut.warning(&five, later, HOUR * 24), None);
    }
    let six = chain(HOUR * 6).await;
    assert!(cut.warning(&six, now, HOUR * 24).is_some(), "another date");
    // The upstream authority would live on.
    let long = chain(HOUR * 1_000).await;
    let warning = cut.warning(&long, now, HOUR * 24).unwrap();
    assert!(warning.contains("gives no more"), "{warning}");
    assert_eq!(cut.warning(&chain(HOUR * 999).await, now, HOUR * 24), None);
    assert_eq!(cut.warning(&long, now, HOUR * 12), None, "it is not cut");
}
