use std::sync::Arc;

use proto::convert::bundle_from_wire;
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewX509svidRequest, MintJwtsvidRequest, MintWitsvidRequest,
    MintX509svidRequest, NewDownstreamX509caRequest, NewJwtsvidRequest, NewWitsvidParams,
    NewX509svidParams,
};
use proto::spire::api::types;
use spiffe::bundle::Bundle;
use spiffe::csr::build_csr;
use spiffe::key::{KeyPair, KeyType};
use spiffe::svid::x509::verify_svid;
use spiffe::x509::{Certificate, Subject};
use tonic::Code;

use crate::testing::{NOW, OneBundle, TestServer, csr, entry, identity, wire_id};

async fn bundle(server: &TestServer) -> Bundle {
    let answer = BundleClient::new(server.local().await)
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
    bundle_from_wire(answer.get_ref()).unwrap()
}

fn key() -> KeyPair {
    KeyPair::generate(KeyType::EcP256).unwrap()
}

fn param(entry_id: &str, csr: Vec<u8>) -> NewX509svidParams {
    NewX509svidParams {
        entry_id: entry_id.to_owned(),
        csr,
    }
}

#[tokio::test]
async fn issues_what_the_entry_says_whatever_the_csr_says() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut wanted = entry(node.id.path(), "/web");
    wanted.dns_names = vec!["web.example.org".to_owned()];
    wanted.x509_svid_ttl = 600;
    let made = server.create(wanted).await;
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    let key = key();
    let greedy = build_csr(
        &key,
        &Subject::spire(),
        &["spiffe://example.org/admin"],
        &["evil.example".to_owned()],
    )
    .unwrap();
    let request = BatchNewX509svidRequest {
        params: vec![param(&made.id, greedy)],
    };
    let result = client
        .batch_new_x509svid(request)
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    let svid = result.svid.unwrap();
    let chain: Vec<&[u8]> = svid.cert_chain.iter().map(Vec::as_slice).collect();
    let trust = OneBundle(Arc::new(bundle(&server).await.x509_bundle()));
    let verified = verify_svid(&chain, &trust, server.now()).unwrap();
    assert_eq!(verified.id().as_str(), "spiffe://example.org/web");
    assert_eq!(verified.leaf().dns_names(), ["web.example.org"]);
    assert_eq!(verified.leaf().public_key(), key.public_key());
    assert_eq!(svid.expires_at, NOW + 600);
}

#[tokio::test]
async fn refuses_each_bad_item_of_a_batch_and_issues_the_good() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    let mine = server.entry(&node, "/mine").await;
    let theirs = server.entry(&other, "/theirs").await;
    let mut broken = csr(&key());
    if let Some(last) = broken.last_mut() {
        *last ^= 1;
    }
    let params = vec![
        param("", csr(&key())),
        param(&mine.id, Vec::new()),
        param("nosuch", csr(&key())),
        param(&theirs.id, csr(&key())),
        param(&mine.id, vec![1, 2, 3]),
        param(&mine.id, broken),
        param(&mine.id, csr(&key())),
    ];
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    let results = client
        .batch_new_x509svid(BatchNewX509svidRequest { params })
        .await
        .unwrap()
        .into_inner()
        .results;
    let expected = [
        (3, "missing entry ID"),
        (3, "missing CSR"),
        (5, "entry not found or not authorized"),
        (5, "entry not found or not authorized"),
        (3, "malformed CSR: "),
        (3, "invalid CSR signature"),
        (0, "OK"),
    ];
    assert_eq!(results.len(), expected.len());
    for (result, (code, text)) in results.iter().zip(expected) {
        let status = result.status.clone().unwrap();
        assert_eq!(status.code, code, "{status:?}");
        assert!(status.message.starts_with(text), "{status:?} lacks {text}");
        assert_eq!(result.svid.is_some(), code == 0);
    }
}

#[tokio::test]
async fn refuses_an_empty_batch_and_one_beyond_the_rate() {
    let server = TestServer::start_with(|config| config.rate_limits.signing = true).await;
    let node = server.agent().await;
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    let refused = client
        .batch_new_x509svid(BatchNewX509svidRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "missing parameters")
    );
    let params = vec![param("x", vec![0]); 501];
    let refused = client
        .batch_new_x509svid(BatchNewX509svidRequest { params })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused
            .message()
            .contains("rate (501) exceeds burst size (500)"),
        "{refused}"
    );
}

#[tokio::test]
async fn refuses_a_batch_of_any_length_beyond_the_limit_even_without_rate_limits() {
    let server = TestServer::start_with(|config| config.rate_limits.signing = false).await;
    let node = server.agent().await;
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    for count in [501, 100_000] {
        let params = vec![NewX509svidParams::default(); count];
        let request = BatchNewX509svidRequest { params };
        let refused = client.batch_new_x509svid(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let params = vec![NewWitsvidParams::default(); count];
        let request = BatchNewWitsvidRequest { params };
        let refused = client.batch_new_witsvid(request).await.unwrap_err();
        assert_eq!(
            refused.message(),
            format!("too many SVIDs in one call ({count}); ask for at most 500")
        );
    }
    let params = vec![NewX509svidParams::default(); 500];
    let answer = client.batch_new_x509svid(BatchNewX509svidRequest { params });
    assert_eq!(answer.await.unwrap().get_ref().results.len(), 500);
}

#[tokio::test]
async fn refuses_jwts_for_others_and_for_nobody() {
    let server = TestServer::start().await;
    let (node, other) = (server.agent().await, server.agent().await);
    let mine = server.entry(&node, "/mine").await;
    let theirs = server.entry(&other, "/theirs").await;
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    let of = |entry_id: &str, audience: &[&str]| NewJwtsvidRequest {
        entry_id: entry_id.to_owned(),
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
    };
    for id in ["", "nosuch", &theirs.id] {
        let refused = client.new_jwtsvid(of(id, &["a"])).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::NotFound, "entry not found or not authorized")
        );
    }
    let refused = client.new_jwtsvid(of(&mine.id, &[])).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "at least one audience is required")
    );
    let svid = client
        .new_jwtsvid(of(&mine.id, &["a", "b"]))
        .await
        .unwrap()
        .into_inner()
        .svid
        .unwrap();
    assert_eq!((svid.issued_at, svid.expires_at), (NOW, NOW + 300));
    let keys = OneKeys(Arc::new(bundle(&server).await.jwt_bundle()));
    let verified =
        spiffe::svid::jwt::verify_jwt_svid(&svid.token, "b", &keys, server.now()).unwrap();
    assert_eq!(verified.id().as_str(), "spiffe://example.org/mine");
}

#[derive(Debug)]
struct OneKeys(Arc<spiffe::bundle::JwtBundle>);

impl spiffe::svid::jwt::JwtBundleSource for OneKeys {
    fn jwt_bundle(
        &self,
        _: &spiffe::trust_domain::TrustDomain,
    ) -> Option<Arc<spiffe::bundle::JwtBundle>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn refuses_to_mint_what_no_workload_may_have() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let key = key();
    let of = |uris: &[&str], dns: &[&str]| {
        let dns: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        build_csr(&key, &Subject::spire(), uris, &dns).unwrap()
    };
    let cases = [
        (Vec::new(), "missing CSR"),
        (vec![9, 9], "malformed CSR: "),
        (of(&[], &[]), "CSR URI SAN is required"),
        (
            of(&["spiffe://example.org/a", "spiffe://example.org/b"], &[]),
            "only one URI SAN is expected",
        ),
        (
            of(&["https://example.org/a"], &[]),
            "CSR URI SAN is invalid: ",
        ),
        (
            of(&["spiffe://other.org/a"], &[]),
            "CSR URI SAN is invalid: ",
        ),
        (
            of(&["spiffe://example.org"], &[]),
            "CSR URI SAN is invalid: ",
        ),
        (
            of(&["spiffe://example.org/spire/server"], &[]),
            "CSR URI SAN is invalid: ",
        ),
        (
            of(&["spiffe://example.org/a"], &["*.*"]),
            "CSR DNS name is invalid: ",
        ),
        (
            of(&["spiffe://example.org/a"], &["*.b.example", "a.b.example"]),
            "CSR DNS name contains a wildcard that covers another non-wildcard name: ",
        ),
    ];
    for (csr, text) in cases {
        let refused = client
            .mint_x509svid(MintX509svidRequest { csr, ttl: 0 })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(
            refused.message().starts_with(text),
            "{refused} lacks {text}"
        );
    }
    let csr = of(&["spiffe://example.org/a"], &["b.example"]);
    let minted = client
        .mint_x509svid(MintX509svidRequest { csr, ttl: 90 })
        .await
        .unwrap()
        .into_inner()
        .svid
        .unwrap();
    let leaf = Certificate::from_der(&minted.cert_chain[0]).unwrap();
    assert_eq!(
        (leaf.dns_names(), minted.expires_at),
        (["b.example".to_owned()].as_slice(), NOW + 90)
    );
}

#[tokio::test]
async fn refuses_minted_tokens_without_a_workload_or_audience_and_when_disabled() {
    let server = TestServer::start().await;
    let mut client = SvidClient::new(server.local().await);
    let of = |id: Option<types::Spiffeid>, audience: &[&str]| MintJwtsvidRequest {
        id,
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
        ttl: 0,
    };
    for (request, text) in [
        (
            of(None, &["a"]),
            "invalid SPIFFE ID: request must specify SPIFFE ID",
        ),
        (
            of(Some(wire_id("/spire/agent/x")), &["a"]),
            "invalid SPIFFE ID: ",
        ),
        (
            of(Some(wire_id("/a")), &[]),
            "at least one audience is required",
        ),
    ] {
        let refused = client.mint_jwtsvid(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(text), "{refused}");
    }
    client
        .mint_jwtsvid(of(Some(wire_id("/a")), &["x"]))
        .await
        .unwrap();
    assert_eq!(
        client
            .mint_witsvid(MintWitsvidRequest::default())
            .await
            .unwrap_err()
            .code(),
        Code::Unimplemented
    );
    let without = TestServer::start_with(|config| config.issuance.jwt_svids = false).await;
    let mut client = SvidClient::new(without.local().await);
    let refused = client
        .mint_jwtsvid(of(Some(wire_id("/a")), &["x"]))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unimplemented, "JWT functionality is disabled")
    );
}

#[tokio::test]
async fn gives_a_ca_to_downstream_servers_only() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut below = entry(node.id.path(), "/below");
    below.downstream = true;
    let (below, plain) = (
        server.create(below).await,
        server.entry(&node, "/plain").await,
    );
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    let mut identities = Vec::new();
    for made in [&below, &plain] {
        let key = key();
        let request = BatchNewX509svidRequest {
            params: vec![param(&made.id, csr(&key))],
        };
        let result = client
            .batch_new_x509svid(request)
            .await
            .unwrap()
            .into_inner()
            .results
            .remove(0);
        identities.push(identity(key, result.svid.unwrap()));
    }
    let request = || NewDownstreamX509caRequest {
        csr: csr(&key()),
        preferred_ttl: 0,
    };
    for refused in [Some(&identities[1]), Some(&node), None] {
        let mut client = SvidClient::new(server.remote(refused).await);
        let refused = client.new_downstream_x509ca(request()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    let mut client = SvidClient::new(server.remote(Some(&identities[0])).await);
    let bad = NewDownstreamX509caRequest {
        csr: vec![1],
        preferred_ttl: 0,
    };
    assert_eq!(
        client.new_downstream_x509ca(bad).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let answer = client
        .new_downstream_x509ca(request())
        .await
        .unwrap()
        .into_inner();
    let ca = Certificate::from_der(&answer.ca_cert_chain[0]).unwrap();
    assert!(ca.is_ca());
    assert_eq!(ca.uris(), ["spiffe://example.org"]);
    assert_eq!(answer.x509_authorities.len(), 1);
}

#[tokio::test]
async fn more_audiences_than_a_token_holds_are_the_callers_mistake() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let made = server.entry(&node, "/web").await;
    let many: Vec<String> = (0..33).map(|one| format!("a{one}")).collect();
    for audience in [many, vec!["y".repeat(65 * 1024)]] {
        let mut agent = SvidClient::new(server.remote(Some(&node)).await);
        let request = NewJwtsvidRequest {
            entry_id: made.id.clone(),
            audience: audience.clone(),
        };
        let refused = agent.new_jwtsvid(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let mut admin = SvidClient::new(server.local().await);
        let request = MintJwtsvidRequest {
            id: Some(wire_id("/web")),
            audience,
            ttl: 0,
        };
        let refused = admin.mint_jwtsvid(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn more_items_than_a_call_may_have_are_neither_decoded_nor_waited_for() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let made = server.entry(&node, "/web").await;
    let mut client = SvidClient::new(server.remote(Some(&node)).await);
    let batch = BatchNewX509svidRequest {
        params: vec![NewX509svidParams::default(); 1_000_000],
    };
    let refused = client.batch_new_x509svid(batch).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("(501)"), "{refused}");
    let request = NewJwtsvidRequest {
        entry_id: made.id.clone(),
        audience: vec!["a".to_owned(); 1_000_000],
    };
    let refused = client.new_jwtsvid(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::InvalidArgument,
            "failed to sign JWT-SVID: token has more than 32 audiences"
        )
    );
    let unknown = NewJwtsvidRequest {
        entry_id: "nosuch".to_owned(),
        audience: vec!["a".to_owned()],
    };
    let refused = client.new_jwtsvid(unknown).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::NotFound,
        "calls are answered as before"
    );
}
