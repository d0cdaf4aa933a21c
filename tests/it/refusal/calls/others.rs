//! Malformed calls about agents, tokens, bundles and SVIDs.

use anyhow::Result;
use harness::TRUST_DOMAIN;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, list_agents_request,
};
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, MintJwtsvidRequest, MintX509svidRequest, NewDownstreamX509caRequest,
    NewJwtsvidRequest,
};
use proto::spire::api::types::{Bundle, JwtKey, SelectorMatch, X509Certificate};
use tonic::transport::Channel;

use super::{Answers, answer, foreign, item, spiffe_id};

pub(super) async fn agents(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = AgentClient::new(channel.clone());
    for (name, id) in [
        ("no ID", None),
        ("foreign", foreign("/spire/agent/x")),
        ("not an agent", spiffe_id("/web")),
        ("absent", spiffe_id("/spire/agent/join_token/absent")),
    ] {
        let request = GetAgentRequest {
            id: id.clone(),
            ..GetAgentRequest::default()
        };
        answers.insert(
            format!("get agent: {name}"),
            answer(client.get_agent(request).await),
        );
        answers.insert(
            format!("ban agent: {name}"),
            answer(client.ban_agent(BanAgentRequest { id: id.clone() }).await),
        );
        answers.insert(
            format!("delete agent: {name}"),
            answer(client.delete_agent(DeleteAgentRequest { id }).await),
        );
    }
    let filter = list_agents_request::Filter {
        by_selector_match: Some(SelectorMatch::default()),
        ..Default::default()
    };
    let request = ListAgentsRequest {
        filter: Some(filter),
        ..ListAgentsRequest::default()
    };
    answers.insert(
        "list agents: empty selector set".into(),
        answer(client.list_agents(request).await),
    );
    let request = ListAgentsRequest {
        page_size: 2,
        page_token: "nonsense".to_owned(),
        ..ListAgentsRequest::default()
    };
    answers.insert(
        "list agents: bad page token".into(),
        answer(client.list_agents(request).await),
    );
    for (name, ttl, agent_id) in [
        ("no TTL", 0, None),
        ("negative TTL", -1, None),
        ("foreign alias", 60, foreign("/node")),
        ("bad alias", 60, spiffe_id("node")),
    ] {
        let request = CreateJoinTokenRequest {
            ttl,
            agent_id,
            ..CreateJoinTokenRequest::default()
        };
        answers.insert(
            format!("join token: {name}"),
            answer(client.create_join_token(request).await),
        );
    }
    Ok(())
}

pub(super) async fn bundles(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = BundleClient::new(channel.clone());
    for (name, trust_domain) in [
        ("own", TRUST_DOMAIN),
        ("absent", "other.org"),
        ("bad", "Other Org"),
        ("none", ""),
    ] {
        let trust_domain = trust_domain.to_owned();
        let request = GetFederatedBundleRequest {
            trust_domain: trust_domain.clone(),
            ..Default::default()
        };
        answers.insert(
            format!("get bundle: {name}"),
            answer(client.get_federated_bundle(request).await),
        );
        let bundle = Bundle {
            trust_domain: trust_domain.clone(),
            ..Bundle::default()
        };
        if name != "absent" {
            let request = BatchCreateFederatedBundleRequest {
                bundle: vec![bundle],
                ..Default::default()
            };
            let results = client
                .batch_create_federated_bundle(request)
                .await?
                .into_inner()
                .results;
            answers.insert(
                format!("create bundle: {name}"),
                item(results.first().and_then(|result| result.status.as_ref())),
            );
        }
        let request = BatchDeleteFederatedBundleRequest {
            trust_domains: vec![trust_domain],
            mode: 0,
        };
        let results = client
            .batch_delete_federated_bundle(request)
            .await?
            .into_inner()
            .results;
        answers.insert(
            format!("delete bundle: {name}"),
            item(results.first().and_then(|result| result.status.as_ref())),
        );
    }
    Ok(())
}

pub(super) async fn garbage_in_bundles(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = BundleClient::new(channel.clone());
    let garbage = X509Certificate {
        asn1: b"garbage".to_vec(),
        ..X509Certificate::default()
    };
    let key = JwtKey {
        public_key: b"garbage".to_vec(),
        key_id: "k".to_owned(),
        ..JwtKey::default()
    };
    let bad = [
        (
            "garbage certificate",
            Bundle {
                x509_authorities: vec![garbage.clone()],
                ..Bundle::default()
            },
        ),
        (
            "garbage JWT key",
            Bundle {
                jwt_authorities: vec![key.clone()],
                ..Bundle::default()
            },
        ),
        (
            "JWT key without an ID",
            Bundle {
                jwt_authorities: vec![JwtKey {
                    key_id: String::new(),
                    ..key.clone()
                }],
                ..Bundle::default()
            },
        ),
    ];
    for (name, bundle) in bad {
        let bundle = Bundle {
            trust_domain: "other.org".to_owned(),
            ..bundle
        };
        let request = BatchSetFederatedBundleRequest {
            bundle: vec![bundle],
            ..Default::default()
        };
        let results = client
            .batch_set_federated_bundle(request)
            .await?
            .into_inner()
            .results;
        answers.insert(
            format!("set bundle: {name}"),
            item(results.first().and_then(|result| result.status.as_ref())),
        );
    }
    let request = AppendBundleRequest {
        x509_authorities: vec![garbage],
        ..Default::default()
    };
    answers.insert(
        "append bundle: garbage certificate".into(),
        answer(client.append_bundle(request).await),
    );
    answers.insert(
        "append bundle: nothing".into(),
        answer(client.append_bundle(AppendBundleRequest::default()).await),
    );
    let request = ListFederatedBundlesRequest {
        page_size: 2,
        page_token: "nonsense".to_owned(),
        ..Default::default()
    };
    answers.insert(
        "list bundles: bad page token".into(),
        answer(client.list_federated_bundles(request).await),
    );
    Ok(())
}

fn request(uris: &[&str], dns: &[&str]) -> Result<Vec<u8>> {
    let mut parameters = rcgen::CertificateParams::default();
    for uri in uris {
        parameters
            .subject_alt_names
            .push(rcgen::SanType::URI((*uri).try_into()?));
    }
    for name in dns {
        parameters
            .subject_alt_names
            .push(rcgen::SanType::DnsName((*name).try_into()?));
    }
    let key = rcgen::KeyPair::generate()?;
    Ok(parameters.serialize_request(&key)?.der().to_vec())
}

pub(super) async fn svids(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = SvidClient::new(channel.clone());
    let own = format!("spiffe://{TRUST_DOMAIN}/x");
    let mut tampered = request(&[&own], &[])?;
    if let Some(last) = tampered.last_mut() {
        *last ^= 1;
    }
    let requests = [
        ("nothing", Vec::new(), 0),
        ("garbage", b"garbage".to_vec(), 0),
        ("wrong signature", tampered, 0),
        ("no URI", request(&[], &[])?, 0),
        (
            "two URIs",
            request(&[&own, "spiffe://example.org/y"], &[])?,
            0,
        ),
        (
            "foreign URI",
            request(&["spiffe://elsewhere.org/x"], &[])?,
            0,
        ),
        (
            "not a SPIFFE ID",
            request(&["https://example.org/x"], &[])?,
            0,
        ),
        (
            "trust domain ID",
            request(&["spiffe://example.org"], &[])?,
            0,
        ),
    ];
    for (name, csr, ttl) in requests {
        let result = client.mint_x509svid(MintX509svidRequest { csr, ttl }).await;
        answers.insert(format!("mint X509-SVID: {name}"), answer(result));
    }
    for (name, id, audience) in [
        ("no ID", None, vec!["aud"]),
        ("foreign", foreign("/x"), vec!["aud"]),
        ("no audience", spiffe_id("/x"), vec![]),
    ] {
        let audience = audience.into_iter().map(str::to_owned).collect();
        let request = MintJwtsvidRequest {
            id,
            audience,
            ttl: 0,
        };
        answers.insert(
            format!("mint JWT-SVID: {name}"),
            answer(client.mint_jwtsvid(request).await),
        );
    }
    let request = BatchNewX509svidRequest::default();
    answers.insert(
        "new X509-SVIDs: not an agent".into(),
        answer(client.batch_new_x509svid(request).await),
    );
    let request = NewJwtsvidRequest {
        entry_id: "x".to_owned(),
        audience: vec!["aud".to_owned()],
    };
    answers.insert(
        "new JWT-SVID: not an agent".into(),
        answer(client.new_jwtsvid(request).await),
    );
    let request = NewDownstreamX509caRequest::default();
    answers.insert(
        "new downstream CA: not downstream".into(),
        answer(client.new_downstream_x509ca(request).await),
    );
    Ok(())
}
