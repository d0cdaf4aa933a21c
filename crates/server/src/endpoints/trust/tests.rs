use std::sync::Mutex;

use futures_util::FutureExt as _;
use proto::plastron::server::v1::WatchRequest;
use proto::plastron::server::v1::watch_client::WatchClient;
use proto::spire::api::server::localauthority::v1 as authorities;
use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use std::time::Duration;

use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::x509::{
    CaTemplate, Certificate, Issuer, LeafTemplate, Subject, issue_ca, issue_leaf, random_serial,
};

use super::*;
use crate::datastore::DeleteMode;
use crate::testing::{Identity, TestServer, entry, own};

/// A connection of this peer that says nothing, and ends when the server ends it.
async fn silent(server: &TestServer, identity: Option<&Identity>) -> JoinHandle<()> {
    let mut connection = server.tls(identity).await;
    tokio::spawn(async move {
        let mut all = Vec::new();
        // A reset is an end, too.
        connection.read_to_end(&mut all).await.ok();
    })
}

/// Makes a new X.509 authority the active one; gives the old one's ID.
async fn rotate(client: &mut LocalAuthorityClient<Channel>) -> String {
    let prepared = client
        .prepare_x509_authority(authorities::PrepareX509AuthorityRequest {})
        .await
        .unwrap()
        .into_inner();
    let authority_id = prepared.prepared_authority.unwrap().authority_id;
    client
        .activate_x509_authority(authorities::ActivateX509AuthorityRequest { authority_id })
        .await
        .unwrap();
    let state = client
        .get_x509_authority_state(authorities::GetX509AuthorityStateRequest {})
        .await
        .unwrap()
        .into_inner();
    state.old.unwrap().authority_id
}

async fn revoke(client: &mut LocalAuthorityClient<Channel>, authority_id: String) {
    let tainted = authorities::TaintX509AuthorityRequest {
        authority_id: authority_id.clone(),
    };
    client.taint_x509_authority(tainted).await.unwrap();
    let revoked = authorities::RevokeX509AuthorityRequest { authority_id };
    client.revoke_x509_authority(revoked).await.unwrap();
}

#[tokio::test]
async fn ends_the_connections_that_a_revoked_authority_vouched_for_and_no_others() {
    let server = TestServer::start().await;
    let old = server.agent().await;
    let old_silent = silent(&server, Some(&old)).await;
    let stranger = silent(&server, None).await;
    let mut watched = WatchClient::new(server.remote(Some(&old)).await)
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut local = LocalAuthorityClient::new(server.local().await);
    let old_authority = rotate(&mut local).await;

    // The stream of an agent whose authority is merely old goes on.
    server.create(entry(old.id.path(), "/after")).await;
    loop {
        let message = watched.message().await.unwrap().unwrap();
        if format!("{message:?}").contains("/after") {
            break;
        }
    }
    let new = server.agent().await;
    let new_silent = silent(&server, Some(&new)).await;
    revoke(&mut local, old_authority).await;

    old_silent.await.unwrap();
    while let Ok(Some(_)) = watched.message().await {}
    assert!(!stranger.is_finished() && !new_silent.is_finished());
    server.try_remote(Some(&new)).await.unwrap();
}

fn peer_bundles(server: &TestServer, foreign: Vec<TrustDomain>) -> Arc<PeerBundles> {
    let clock = Arc::new(server.clock.clone());
    Arc::new(PeerBundles::new(
        Arc::clone(&server.registry),
        foreign,
        clock,
    ))
}

/// A trust domain that an administrator comes from.
struct Far {
    name: TrustDomain,
    key: KeyPair,
}

impl Far {
    fn new() -> Self {
        Self {
            name: TrustDomain::parse("far.example").unwrap(),
            key: KeyPair::generate(KeyType::EcP256).unwrap(),
        }
    }

    /// A root with the one name and key, good for this many seconds from now.
    async fn root(&self, server: &TestServer, seconds: u64) -> Certificate {
        let template = CaTemplate {
            serial: random_serial(&SystemRandom),
            subject: Subject {
                common_name: Some("far".to_owned()),
                ..Subject::default()
            },
            id: self.name.id(),
            public_key: self.key.public_key().clone(),
            not_before: server.now() - Duration::from_secs(60),
            not_after: server.now() + Duration::from_secs(seconds),
            path_len: None,
            subject_key_id: None,
        };
        let der = issue_ca(&template, None, &self.key).await.unwrap();
        Certificate::from_der(&der).unwrap()
    }

    async fn administrator(&self, server: &TestServer) -> Identity {
        let root = self.root(server, 3600).await;
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let id = SpiffeId::from_path(&self.name, "/admin").unwrap();
        let template = LeafTemplate {
            serial: random_serial(&SystemRandom),
            id: id.clone(),
            subject: Subject::spire(),
            dns_names: Vec::new(),
            public_key: key.public_key().clone(),
            not_before: server.now() - Duration::from_secs(60),
            not_after: server.now() + Duration::from_secs(600),
        };
        let issuer = Issuer {
            subject_der: root.subject_der(),
            key_id: root.subject_key_id().unwrap(),
            signer: &self.key,
        };
        let chain = vec![issue_leaf(&template, &issuer).await.unwrap()];
        Identity { id, key, chain }
    }

    /// Makes these roots the whole bundle.
    async fn trust(&self, server: &TestServer, roots: &[&Certificate]) {
        let mut bundle = Bundle::new(self.name.clone());
        for root in roots {
            bundle.add_x509_authority(Certificate::clone(root));
        }
        server.datastore.bundles.set(bundle).await.unwrap();
    }
}

#[tokio::test]
async fn a_root_renewed_with_its_key_keeps_the_connections_of_the_one_before() {
    let server = TestServer::start().await;
    let far = Far::new();
    let (old, renewed) = (far.root(&server, 3600).await, far.root(&server, 7200).await);
    let other = Far::new().root(&server, 7200).await;
    far.trust(&server, &[&old]).await;
    let administrator = far.administrator(&server).await;
    let bundles = peer_bundles(&server, vec![far.name.clone()]);
    let chain: Vec<&[u8]> = administrator.chain.iter().map(Vec::as_slice).collect();
    let peer = spiffe::verify_svid(&chain, bundles.as_ref(), server.now()).unwrap();
    assert_eq!(*peer.authority(), old);

    let is_withdrawn = || bundles.withdrawn(&peer).now_or_never().is_some();
    far.trust(&server, &[&old, &renewed]).await;
    assert!(!is_withdrawn());
    far.trust(&server, &[&other, &renewed]).await;
    assert!(!is_withdrawn());
    // The name alone is anybody's.
    far.trust(&server, &[&other]).await;
    assert!(is_withdrawn());
}

#[tokio::test]
async fn connections_end_when_the_whole_bundle_that_vouched_for_them_is_removed() {
    let far = Far::new();
    let admin = SpiffeId::from_path(&far.name, "/admin").unwrap();
    let server = TestServer::start_with(|config| {
        config.admin_ids.push(admin);
    })
    .await;
    let root = far.root(&server, 3600).await;
    far.trust(&server, &[&root]).await;
    let administrator = far.administrator(&server).await;
    let connected = silent(&server, Some(&administrator)).await;
    let own_agent = server.agent().await;
    let stays = silent(&server, Some(&own_agent)).await;
    server.try_remote(Some(&administrator)).await.unwrap();
    server
        .datastore
        .bundles
        .delete(&far.name, DeleteMode::Restrict)
        .await
        .unwrap();
    connected.await.unwrap();
    assert!(!stays.is_finished());
}

#[tokio::test]
async fn a_peer_is_withdrawn_with_its_authority_or_its_whole_bundle() {
    let server = TestServer::start().await;
    let bundles = peer_bundles(&server, Vec::new());
    let agent = server.agent().await;
    let chain: Vec<&[u8]> = agent.chain.iter().map(Vec::as_slice).collect();
    let verify = || spiffe::verify_svid(&chain, bundles.as_ref(), server.now());
    let peer = verify().unwrap();
    assert!(bundles.withdrawn(&peer).now_or_never().is_none());

    let mut local = LocalAuthorityClient::new(server.local().await);
    let authority = rotate(&mut local).await;
    assert!(bundles.withdrawn(&peer).now_or_never().is_none());
    revoke(&mut local, authority).await;
    assert!(bundles.withdrawn(&peer).now_or_never().is_some());
    verify().unwrap_err();
}

/// Counts the lines that an operator would read.
struct Lines(Arc<Mutex<u32>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        *self.0.lock().unwrap() += 1;
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn strangers_who_claim_an_administrators_trust_domain_fill_no_log() {
    let server = TestServer::start().await;
    let far = TrustDomain::parse("far.example").unwrap();
    let bundles = peer_bundles(&server, vec![far.clone()]);
    let lines = Arc::new(Mutex::new(0));
    tracing::subscriber::with_default(Lines(Arc::clone(&lines)), || {
        for _ in 0..10_000 {
            assert!(bundles.x509_bundle(&far).is_none());
            // Nobody is verified against what administrators do not come from, and that is no news.
            let other = TrustDomain::parse("other.example").unwrap();
            assert!(bundles.x509_bundle(&other).is_none());
        }
    });
    assert!((1..=10).contains(&*lines.lock().unwrap()));
    assert!(bundles.x509_bundle(&own()).is_some());
}
