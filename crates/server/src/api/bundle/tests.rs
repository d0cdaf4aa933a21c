use std::sync::Arc;

use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, BatchUpdateFederatedBundleRequest, CountBundlesRequest,
    GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
    PublishJwtAuthorityRequest, PublishWitAuthorityRequest,
};
use proto::spire::api::types::{self, BundleMask};
use spiffe::key::{KeyPair, KeyType};
use tonic::Code;
use tonic::transport::Channel;

use proto::convert::jwt_authorities_from_wire;
use spiffe::bundle::Bundle;

use super::BundleService;
use crate::audit::{Auditor, CallContext};
use crate::caller::{Authority, Caller, Connection, Entitlement};
use crate::config::RateLimitConfig;
use crate::error::{Kind, OpError};
use crate::ops::bundles::{Bundles, MAX_JWT_AUTHORITIES, publishable};
use crate::ratelimit::RateLimits;
use crate::testing::{TestServer, entry, own};
use daemon::telemetry::Telemetry;

fn foreign(name: &str) -> types::Bundle {
    types::Bundle {
        trust_domain: name.to_owned(),
        refresh_hint: 60,
        ..types::Bundle::default()
    }
}

fn jwt_key(key_id: &str) -> types::JwtKey {
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public_key().spki_der().to_vec(),
        key_id: key_id.to_owned(),
        expires_at: 0,
        tainted: false,
    }
}

async fn set(client: &mut BundleClient<Channel>, names: &[&str]) {
    let bundle = names.iter().map(|name| foreign(name)).collect();
    let request = BatchSetFederatedBundleRequest {
        bundle,
        output_mask: None,
    };
    for result in client
        .batch_set_federated_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .results
    {
        assert_eq!(result.status.unwrap().code, 0);
    }
}

#[tokio::test]
async fn gives_the_own_bundle_to_anybody_as_masked() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.remote(None).await);
    let all = client
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            all.trust_domain.as_str(),
            all.x509_authorities.len(),
            all.jwt_authorities.len()
        ),
        ("example.org", 1, 1)
    );
    let request = GetBundleRequest {
        output_mask: Some(BundleMask::default()),
    };
    let bare = client.get_bundle(request).await.unwrap().into_inner();
    assert_eq!(
        bare,
        types::Bundle {
            trust_domain: "example.org".to_owned(),
            ..types::Bundle::default()
        }
    );
}

#[tokio::test]
async fn refuses_writes_item_by_item() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let broken = types::Bundle {
        x509_authorities: vec![types::X509Certificate {
            asn1: vec![1],
            tainted: false,
        }],
        ..foreign("far.example")
    };
    let bundle = vec![
        foreign("BAD!"),
        foreign("example.org"),
        broken,
        foreign("far.example"),
        foreign("far.example"),
    ];
    let request = BatchCreateFederatedBundleRequest {
        bundle,
        output_mask: None,
    };
    let results = client
        .batch_create_federated_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let expected = [
        (3, "trust domain argument is not valid: "),
        (
            3,
            "creating a federated bundle for the server's own trust domain is not allowed",
        ),
        (3, "failed to convert bundle: "),
        (0, "OK"),
        (6, "bundle already exists"),
    ];
    for (result, (code, text)) in results.iter().zip(expected) {
        let status = result.status.clone().unwrap();
        assert_eq!(status.code, code, "{status:?}");
        assert!(status.message.starts_with(text), "{status:?} lacks {text}");
    }
    let bundle = vec![foreign("unknown.example"), foreign("example.org")];
    let request = BatchUpdateFederatedBundleRequest {
        bundle,
        input_mask: None,
        output_mask: None,
    };
    let results = client
        .batch_update_federated_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<_> = results
        .into_iter()
        .map(|result| result.status.unwrap().code)
        .collect();
    assert_eq!(codes, [5, 3]);
}

#[tokio::test]
async fn refuses_to_delete_a_bundle_that_entries_need() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    set(&mut client, &["far.example"]).await;
    let mut federated = entry("/spire/agent/x", "/web");
    federated.federates_with = vec!["far.example".to_owned()];
    let made = server.create(federated).await;
    let delete = |names: &[&str], mode: i32| BatchDeleteFederatedBundleRequest {
        trust_domains: names.iter().map(|name| (*name).to_owned()).collect(),
        mode,
    };
    let refused = client
        .batch_delete_federated_bundle(delete(&["far.example"], 9))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let names = ["BAD!", "example.org", "unknown.example", "far.example"];
    let request = delete(&names, Mode::Restrict as i32);
    let results = client
        .batch_delete_federated_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<_> = results
        .iter()
        .map(|result| result.status.clone().unwrap().code)
        .collect();
    assert_eq!(codes, [3, 3, 5, 9]);
    let request = delete(&["far.example"], Mode::Dissociate as i32);
    let results = client
        .batch_delete_federated_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(results[0].status.clone().unwrap().code, 0);
    assert!(
        server
            .registry
            .entry(&made.id)
            .unwrap()
            .federates_with
            .is_empty()
    );
}

#[tokio::test]
async fn refuses_the_own_bundle_where_a_federated_one_is_asked_for() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let get = |name: &str| GetFederatedBundleRequest {
        trust_domain: name.to_owned(),
        output_mask: None,
    };
    for (name, code, text) in [
        (
            "",
            Code::InvalidArgument,
            "trust domain argument is not valid: ",
        ),
        (
            "example.org",
            Code::InvalidArgument,
            "getting a federated bundle for the server's own trust domain is not allowed",
        ),
        ("unknown.example", Code::NotFound, "bundle not found"),
    ] {
        let refused = client.get_federated_bundle(get(name)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().starts_with(text), "{refused}");
    }
    let refused = BundleClient::new(server.remote(None).await)
        .get_federated_bundle(get("far.example"))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let node = server.agent().await;
    let allowed = BundleClient::new(server.remote(Some(&node)).await)
        .get_federated_bundle(get("far.example"))
        .await;
    assert_eq!(
        allowed.unwrap_err().code(),
        Code::NotFound,
        "agents may ask"
    );
}

#[tokio::test]
async fn pages_through_federated_bundles_without_the_own() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    set(&mut client, &["c.example", "a.example", "zz.example"]).await;
    let mut request = ListFederatedBundlesRequest {
        page_size: 2,
        ..ListFederatedBundlesRequest::default()
    };
    let mut names = Vec::new();
    loop {
        let page = client
            .list_federated_bundles(request.clone())
            .await
            .unwrap()
            .into_inner();
        names.extend(page.bundles.into_iter().map(|bundle| bundle.trust_domain));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(names, ["a.example", "c.example", "zz.example"]);
    assert_eq!(
        client
            .count_bundles(CountBundlesRequest {})
            .await
            .unwrap()
            .into_inner()
            .count,
        4
    );
    request.page_token = "!".to_owned();
    assert_eq!(
        client
            .list_federated_bundles(request)
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn refuses_authorities_that_are_none() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let nameless = AppendBundleRequest {
        jwt_authorities: vec![jwt_key("")],
        ..AppendBundleRequest::default()
    };
    let broken_key = types::JwtKey {
        public_key: vec![1, 2],
        ..jwt_key("k")
    };
    let broken = AppendBundleRequest {
        jwt_authorities: vec![broken_key],
        ..AppendBundleRequest::default()
    };
    let garbage = types::X509Certificate {
        asn1: vec![7; 40],
        tainted: false,
    };
    let certificate = AppendBundleRequest {
        x509_authorities: vec![garbage],
        ..AppendBundleRequest::default()
    };
    for (request, text) in [
        (AppendBundleRequest::default(), "no authorities to append"),
        (nameless, "failed to convert JWT authority: missing key ID"),
        (broken, "failed to convert JWT authority: "),
        (certificate, "failed to convert X.509 authority: "),
    ] {
        let refused = client.append_bundle(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused.message().starts_with(text),
            "{refused} lacks {text}"
        );
    }
    let good = AppendBundleRequest {
        jwt_authorities: vec![jwt_key("extra")],
        ..AppendBundleRequest::default()
    };
    assert_eq!(
        client
            .append_bundle(good)
            .await
            .unwrap()
            .into_inner()
            .jwt_authorities
            .len(),
        2
    );
}

#[tokio::test]
async fn takes_keys_from_downstream_servers_only() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    for channel in [
        server.local().await,
        server.remote(None).await,
        server.remote(Some(&node)).await,
    ] {
        let mut client = BundleClient::new(channel);
        let request = PublishJwtAuthorityRequest {
            jwt_authority: Some(jwt_key("k")),
        };
        assert_eq!(
            client
                .publish_jwt_authority(request)
                .await
                .unwrap_err()
                .code(),
            Code::PermissionDenied
        );
        let request = PublishWitAuthorityRequest {
            wit_authority: None,
        };
        assert_eq!(
            client
                .publish_wit_authority(request)
                .await
                .unwrap_err()
                .code(),
            Code::PermissionDenied
        );
    }
}

#[tokio::test]
async fn refuses_a_bundle_with_two_keys_of_one_id() {
    let server = TestServer::start().await;
    let twice = types::Bundle {
        jwt_authorities: vec![jwt_key("k"), jwt_key("k")],
        ..foreign("far.example")
    };
    let request = BatchSetFederatedBundleRequest {
        bundle: vec![twice],
        output_mask: None,
    };
    let results = BundleClient::new(server.local().await)
        .batch_set_federated_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let status = results[0].status.clone().unwrap();
    assert_eq!(status.code, 3);
    assert!(
        status.message.contains("key ID \"k\""),
        "{}",
        status.message
    );
}

#[test]
fn publishes_no_key_that_stays_for_ever_and_no_more_keys_than_readers_take() {
    let key = |key_id: &str, expires_at: i64| types::JwtKey {
        key_id: key_id.to_owned(),
        expires_at,
        ..jwt_key("")
    };
    let read = |keys: &[types::JwtKey]| jwt_authorities_from_wire(keys).unwrap();
    let mut own = Bundle::new(own());
    publishable(&own, &read(&[key("new", 1)])[0]).unwrap();
    let eternal = publishable(&own, &read(&[key("new", 0)])[0]).unwrap_err();
    assert_eq!(eternal.kind(), Kind::InvalidArgument);
    own.jwt_authorities = vec![read(&[key("old", 1)]).remove(0); MAX_JWT_AUTHORITIES];
    publishable(&own, &read(&[key("old", 1)])[0]).unwrap();
    let full = publishable(&own, &read(&[key("new", 1)])[0]).unwrap_err();
    assert_eq!(full.kind(), Kind::ResourceExhausted);
}

#[tokio::test]
async fn a_bundle_without_keys_never_takes_the_place_of_a_good_one() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let good = types::Bundle {
        jwt_authorities: vec![jwt_key("k")],
        ..foreign("far.example")
    };
    let mut set = async |bundle: types::Bundle| {
        let request = BatchSetFederatedBundleRequest {
            bundle: vec![bundle],
            output_mask: None,
        };
        let answer = client.batch_set_federated_bundle(request).await.unwrap();
        answer.into_inner().results.remove(0).status.unwrap()
    };
    assert_eq!(set(good).await.code, 0);
    let refused = set(foreign("far.example")).await;
    assert_eq!(refused.code, 3);
    assert!(refused.message.contains("neither"), "{}", refused.message);
    let far = spiffe::trust_domain::TrustDomain::parse("far.example").unwrap();
    let stored = server.registry.bundle(&far).unwrap();
    assert_eq!(stored.jwt_authorities.len(), 1);
}

#[tokio::test]
async fn nobody_taints_an_authority_by_adding_it() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let request = AppendBundleRequest {
        jwt_authorities: vec![types::JwtKey {
            tainted: true,
            ..jwt_key("k")
        }],
        ..AppendBundleRequest::default()
    };
    let appended = client.append_bundle(request).await.unwrap().into_inner();
    let mut keys = appended.jwt_authorities.iter();
    assert!(!keys.find(|key| key.key_id == "k").unwrap().tainted);
}

#[tokio::test]
async fn publishes_no_second_key_under_an_id_that_is_taken() {
    let server = TestServer::start().await;
    let bundles = Bundles {
        trust_domain: own(),
        registry: Arc::clone(&server.registry),
        bundles: server.datastore.bundles.clone(),
    };
    let key = |wire: &types::JwtKey| {
        let wire = types::JwtKey {
            expires_at: crate::testing::NOW + 60,
            tainted: true,
            ..wire.clone()
        };
        jwt_authorities_from_wire(&[wire]).unwrap().remove(0)
    };
    let (first, second) = (jwt_key("k"), jwt_key("k"));
    let published = bundles.publish(key(&first)).await.unwrap();
    assert!(published.jwt_authorities.iter().all(|key| !key.tainted));
    bundles.publish(key(&first)).await.unwrap();
    let refused = bundles.publish(key(&second)).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::AlreadyExists);
    assert!(refused.message().contains("key ID \"k\""), "{refused}");
}

/// Whoever calls may go on.
#[derive(Debug)]
struct Entitled;

impl Entitlement for Entitled {
    fn recheck(&self, _: &Authority, _: &Connection) -> Result<(), OpError> {
        Ok(())
    }
}

fn request_from(address: &str) -> tonic::Request<GetBundleRequest> {
    let auditor = Auditor::new(None, Arc::new(spiffe::clock::SystemClock));
    let mut request = tonic::Request::new(GetBundleRequest::default());
    request.extensions_mut().insert(Caller {
        connection: Arc::new(Connection::remote_for_tests(address.parse().unwrap(), None)),
        authority: Authority::Anybody,
        record: Arc::new(auditor.begin(CallContext::default)),
        entitlement: Arc::new(Entitled),
    });
    request
}

#[tokio::test]
async fn refuses_a_source_that_asks_for_the_bundle_without_end_and_nobody_else() {
    let server = TestServer::start().await;
    let config = RateLimitConfig {
        attestation: false,
        signing: false,
    };
    let limits = RateLimits::new(config, &Telemetry::default());
    let bundles = Bundles {
        trust_domain: own(),
        registry: Arc::clone(&server.registry),
        bundles: server.datastore.bundles.clone(),
    };
    let service = BundleService::new(bundles, Arc::new(limits));
    tokio::time::pause();
    for port in 1..=500 {
        let asked = request_from(&format!("192.0.2.7:{port}"));
        drop(service.frames(&asked).unwrap());
    }
    let refused = service.frames(&request_from("192.0.2.7:501"));
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused
            .message()
            .starts_with("rejecting request due to bundle request rate limiting"),
        "{refused}"
    );
    drop(service.frames(&request_from("192.0.2.8:1")).unwrap());
}

#[tokio::test]
async fn shows_the_bundle_as_it_is_after_each_change() {
    let server = TestServer::start().await;
    let mut stranger = BundleClient::new(server.remote(None).await);
    let mut local = BundleClient::new(server.local().await);
    for count in 1..4 {
        let request = AppendBundleRequest {
            jwt_authorities: vec![jwt_key(&format!("key {count}"))],
            ..AppendBundleRequest::default()
        };
        let appended = local.append_bundle(request).await.unwrap().into_inner();
        for _ in 0..2 {
            let shown = stranger.get_bundle(GetBundleRequest::default());
            assert_eq!(shown.await.unwrap().into_inner(), appended);
        }
        let masked = GetBundleRequest {
            output_mask: Some(BundleMask::default()),
        };
        let masked = stranger.get_bundle(masked).await.unwrap().into_inner();
        assert!(masked.jwt_authorities.is_empty() && masked.x509_authorities.is_empty());
    }
}
