use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, BanAgentRequest, CountAgentsRequest,
    CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    PostStatusRequest, RenewAgentRequest, attest_agent_request, list_agents_request,
};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{GetAuthorizedEntriesRequest, ListEntriesRequest};
use proto::spire::api::types::permission_denied_details::Reason;
use proto::spire::api::types::{self, AgentMask};
use spiffe::key::{KeyPair, KeyType};
use tonic::{Code, Status};

use crate::testing::{TestServer, attestation, csr, entry, identity, reason, wire_id};

async fn attest_with(server: &TestServer, request: AttestAgentRequest) -> Status {
    let mut client = AgentClient::new(server.remote(None).await);
    client
        .attest_agent(tokio_stream::once(request))
        .await
        .unwrap_err()
}

fn new_csr() -> Vec<u8> {
    csr(&KeyPair::generate(KeyType::EcP256).unwrap())
}

#[tokio::test]
async fn a_token_attests_a_node_once() {
    let server = TestServer::start().await;
    let token = server.token().await;
    let node = server.attest(&token).await.unwrap();
    assert_eq!(
        node.id.as_str(),
        format!("spiffe://example.org/spire/agent/join_token/{token}")
    );
    let again = server.attest(&token).await.map(|node| node.id).unwrap_err();
    assert_eq!(again.code(), Code::InvalidArgument);
    assert_eq!(
        again.message(),
        "failed to attest: join token does not exist or has already been used"
    );
}

#[tokio::test]
async fn lets_one_of_many_concurrent_redeemers_win() {
    let server = TestServer::start().await;
    let token = server.token().await;
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = AgentClient::new(server.remote(None).await);
        let request = attestation(&token, new_csr());
        attempts.spawn(async move {
            client
                .attest_agent(tokio_stream::once(request))
                .await
                .is_ok()
        });
    }
    let outcomes = attempts.join_all().await;
    assert_eq!(
        outcomes.iter().filter(|won| **won).count(),
        1,
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn refuses_tokens_that_are_unknown_expired_or_no_token() {
    let server = TestServer::start().await;
    for token in ["nosuch", "a/b", "..", "\u{e9}", "spire agent"] {
        let refused = server.attest(token).await.map(|node| node.id).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{token}: {refused}");
        assert!(
            !refused.message().contains(token),
            "a token is a secret: {refused}"
        );
    }
    let token = server.token().await;
    server.advance(601);
    let refused = server.attest(&token).await.map(|node| node.id).unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "join token expired")
    );
}

#[tokio::test]
async fn refuses_attestation_that_lacks_something() {
    let server = TestServer::start().await;
    let token = server.token().await;
    let of = |change: fn(&mut attest_agent_request::Params)| {
        let mut request = attestation(&token, new_csr());
        if let Some(attest_agent_request::Step::Params(params)) = &mut request.step {
            change(params);
        }
        request
    };
    let cases = [
        (
            AttestAgentRequest { step: None },
            "malformed param: missing params",
        ),
        (
            of(|params| params.data = None),
            "malformed param: missing attestation data",
        ),
        (
            of(|params| params.params = None),
            "malformed param: missing X509-SVID parameters",
        ),
        (
            of(|params| params.params.as_mut().unwrap().csr.clear()),
            "malformed param: missing CSR",
        ),
        (
            of(|params| params.data.as_mut().unwrap().r#type.clear()),
            "malformed param: missing attestation data type",
        ),
        (
            of(|params| params.data.as_mut().unwrap().payload.clear()),
            "malformed param: missing attestation data payload",
        ),
        (
            of(|params| params.params.as_mut().unwrap().csr = vec![1, 2, 3]),
            "failed to parse CSR: ",
        ),
    ];
    for (request, text) in cases {
        let refused = attest_with(&server, request).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(
            refused.message().starts_with(text),
            "{refused} lacks {text}"
        );
    }
    server
        .attest(&token)
        .await
        .expect("none of these has cost the token");
}

#[tokio::test]
async fn refuses_attestors_that_are_not_configured() {
    let server = TestServer::start().await;
    let mut request = attestation("x", new_csr());
    if let Some(attest_agent_request::Step::Params(params)) = &mut request.step {
        params.data.as_mut().unwrap().r#type = "aws_iid".to_owned();
    }
    let refused = attest_with(&server, request).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "error getting node attestor: could not find node attestor type \"aws_iid\""
    );
}

#[tokio::test]
async fn keeps_a_banned_node_out() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut agents = AgentClient::new(server.local().await);
    let mut entries = EntryClient::new(server.remote(Some(&node)).await);
    entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap();
    let id = Some(wire_id(node.id.path()));
    agents
        .ban_agent(BanAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let refused = entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused)),
        (Code::PermissionDenied, Reason::AgentBanned)
    );
    let shown = agents
        .get_agent(GetAgentRequest {
            id,
            output_mask: None,
        })
        .await
        .unwrap()
        .into_inner();
    assert!(shown.banned);
}

#[tokio::test]
async fn refuses_an_evicted_node_on_its_open_connection() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut entries = EntryClient::new(server.remote(Some(&node)).await);
    entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap();
    let mut agents = AgentClient::new(server.local().await);
    let id = Some(wire_id(node.id.path()));
    agents
        .delete_agent(DeleteAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let refused = entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::AgentNotAttested);
    let again = agents
        .delete_agent(DeleteAgentRequest { id })
        .await
        .unwrap_err();
    assert_eq!(
        (again.code(), again.message()),
        (Code::NotFound, "agent not found")
    );
}

#[tokio::test]
async fn renews_and_accepts_either_svid_until_the_new_one_is_used() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut old = AgentClient::new(server.remote(Some(&node)).await);
    let key = KeyPair::generate(KeyType::EcP256).unwrap();
    let params = Some(AgentX509svidParams { csr: csr(&key) });
    let renewed = old
        .renew_agent(RenewAgentRequest { params })
        .await
        .unwrap()
        .into_inner();
    let renewed = identity(key, renewed.svid.unwrap());
    assert_eq!(renewed.id, node.id);
    old.post_status(PostStatusRequest::default()).await.unwrap();
    let mut new = AgentClient::new(server.remote(Some(&renewed)).await);
    new.post_status(PostStatusRequest::default()).await.unwrap();
    let refused = old
        .post_status(PostStatusRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::AgentNotActive);
}

#[tokio::test]
async fn refuses_renewals_without_a_usable_request() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut client = AgentClient::new(server.remote(Some(&node)).await);
    let cases = [
        (None, "params cannot be nil"),
        (Some(Vec::new()), "missing CSR"),
        (Some(vec![0; 9]), "failed to parse CSR: "),
    ];
    for (csr, text) in cases {
        let params = csr.map(|csr| AgentX509svidParams { csr });
        let refused = client
            .renew_agent(RenewAgentRequest { params })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(text), "{refused}");
    }
}

#[tokio::test]
async fn refuses_join_tokens_that_cannot_be() {
    let server = TestServer::start().await;
    let mut client = AgentClient::new(server.local().await);
    let request = |ttl: i32, token: &str, path: Option<&str>| CreateJoinTokenRequest {
        ttl,
        token: token.to_owned(),
        agent_id: path.map(wire_id),
    };
    let cases = [
        (
            request(0, "", None),
            Code::InvalidArgument,
            "ttl is required, you must provide one",
        ),
        (
            request(-5, "", None),
            Code::InvalidArgument,
            "ttl is required, you must provide one",
        ),
        (
            request(60, "", Some("")),
            Code::InvalidArgument,
            "invalid agent ID: ",
        ),
        (
            request(60, "", Some("/spire/agent/x")),
            Code::InvalidArgument,
            "invalid agent ID: ",
        ),
        (
            request(60, "a/b", None),
            Code::InvalidArgument,
            "token cannot be part of an agent ID: ",
        ),
        (
            request(60, &"x".repeat(300), None),
            Code::InvalidArgument,
            "token is too long",
        ),
    ];
    for (request, code, text) in cases {
        let refused = client.create_join_token(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(
            refused.message().starts_with(text),
            "{refused} lacks {text}"
        );
    }
    client
        .create_join_token(request(60, "mine", None))
        .await
        .unwrap();
    assert_eq!(
        client
            .create_join_token(request(60, "mine", None))
            .await
            .unwrap_err()
            .code(),
        Code::AlreadyExists
    );
}

#[tokio::test]
async fn gives_the_node_of_a_named_token_the_entries_of_that_name() {
    let server = TestServer::start().await;
    let mut client = AgentClient::new(server.local().await);
    let request = CreateJoinTokenRequest {
        ttl: 60,
        token: String::new(),
        agent_id: Some(wire_id("/rack/7")),
    };
    let token = client
        .create_join_token(request)
        .await
        .unwrap()
        .into_inner()
        .value;
    server.create(entry("/rack/7", "/web")).await;
    let node = server.attest(&token).await.unwrap();
    let mut entries = EntryClient::new(server.remote(Some(&node)).await);
    let mine = entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut paths: Vec<_> = mine
        .entries
        .iter()
        .map(|entry| entry.spiffe_id.clone().unwrap().path)
        .collect();
    paths.sort();
    assert_eq!(paths, ["/rack/7", "/web"]);
}

#[tokio::test]
async fn refuses_ids_that_are_no_agents() {
    let server = TestServer::start().await;
    let mut client = AgentClient::new(server.local().await);
    for id in [
        None,
        Some(wire_id("")),
        Some(wire_id("/web")),
        Some(wire_id("/spire/server")),
    ] {
        let refused = client
            .get_agent(GetAgentRequest {
                id: id.clone(),
                output_mask: None,
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(
            refused.message().starts_with("invalid agent ID: "),
            "{refused}"
        );
        assert_eq!(
            client
                .ban_agent(BanAgentRequest { id: id.clone() })
                .await
                .unwrap_err()
                .code(),
            Code::InvalidArgument
        );
        assert_eq!(
            client
                .delete_agent(DeleteAgentRequest { id })
                .await
                .unwrap_err()
                .code(),
            Code::InvalidArgument
        );
    }
    let unknown = Some(wire_id("/spire/agent/join_token/unknown"));
    let refused = client
        .get_agent(GetAgentRequest {
            id: unknown.clone(),
            output_mask: None,
        })
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "agent not found")
    );
    assert_eq!(
        client
            .ban_agent(BanAgentRequest { id: unknown })
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn refuses_filters_and_pages_that_mean_nothing() {
    let server = TestServer::start().await;
    let mut client = AgentClient::new(server.local().await);
    let filtered = |change: fn(&mut list_agents_request::Filter)| {
        let mut filter = list_agents_request::Filter::default();
        change(&mut filter);
        ListAgentsRequest {
            filter: Some(filter),
            ..ListAgentsRequest::default()
        }
    };
    let cases = [
        filtered(|filter| filter.by_expires_before = "tomorrow".to_owned()),
        filtered(|filter| {
            let selectors = vec![types::Selector::default()];
            filter.by_selector_match = Some(types::SelectorMatch {
                selectors,
                r#match: 0,
            });
        }),
        filtered(|filter| {
            filter.by_selector_match = Some(types::SelectorMatch {
                selectors: Vec::new(),
                r#match: 9,
            });
        }),
        ListAgentsRequest {
            page_size: 5,
            page_token: "nonsense".to_owned(),
            ..ListAgentsRequest::default()
        },
    ];
    for request in cases {
        let refused = client.list_agents(request.clone()).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::InvalidArgument,
            "{request:?}: {refused}"
        );
    }
    let expired =
        filtered(|filter| filter.by_expires_before = "2026-01-02 15:04:05 -0700 -07".to_owned());
    assert!(
        client
            .list_agents(expired)
            .await
            .unwrap()
            .into_inner()
            .agents
            .is_empty()
    );
}

#[tokio::test]
async fn lists_what_the_mask_and_the_page_ask_for() {
    let server = TestServer::start().await;
    for _ in 0..3 {
        server.agent().await;
    }
    let mut client = AgentClient::new(server.local().await);
    assert_eq!(
        client
            .count_agents(CountAgentsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .count,
        3
    );
    let mask = AgentMask {
        attestation_type: true,
        ..AgentMask::default()
    };
    let mut request = ListAgentsRequest {
        page_size: 2,
        output_mask: Some(mask),
        ..ListAgentsRequest::default()
    };
    let first = client
        .list_agents(request.clone())
        .await
        .unwrap()
        .into_inner();
    request.page_token.clone_from(&first.next_page_token);
    let second = client.list_agents(request).await.unwrap().into_inner();
    assert_eq!(
        (
            first.agents.len(),
            second.agents.len(),
            second.next_page_token.as_str()
        ),
        (2, 1, "")
    );
    let shown = &second.agents[0];
    assert_eq!(
        (shown.attestation_type.as_str(), shown.x509svid_expires_at),
        ("join_token", 0)
    );
    assert!(shown.id.is_some() && shown.x509svid_serial_number.is_empty());
}

#[tokio::test]
async fn records_an_agents_version_and_refuses_endless_ones() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut client = AgentClient::new(server.remote(Some(&node)).await);
    let status = |version: &str| PostStatusRequest {
        agent_version: version.to_owned(),
        current_bundle_serial: 0,
    };
    client.post_status(status("1.2.3")).await.unwrap();
    assert_eq!(
        server.registry.agent(&node.id).unwrap().agent_version,
        "1.2.3"
    );
    let refused = client
        .post_status(status(&"9".repeat(256)))
        .await
        .unwrap_err();
    assert_eq!(
        refused.message(),
        "agent version is too long (max 255 characters)"
    );
}

#[tokio::test]
async fn keeps_agents_and_unauthenticated_peers_out_of_administration() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    for channel in [server.remote(None).await, server.remote(Some(&node)).await] {
        let mut agents = AgentClient::new(channel.clone());
        let refused = agents
            .list_agents(ListAgentsRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let refused = EntryClient::new(channel)
            .list_entries(ListEntriesRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
}

#[tokio::test]
async fn refuses_a_version_that_would_write_to_an_operators_terminal() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut client = AgentClient::new(server.remote(Some(&node)).await);
    let refused = client
        .post_status(PostStatusRequest {
            current_bundle_serial: 0,
            agent_version: "1.0\u{1b}[2J".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(server.registry.agent(&node.id).unwrap().agent_version, "");
}

#[tokio::test]
async fn a_watching_agent_tells_its_version_with_the_watch() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut client = proto::plastron::server::v1::watch_client::WatchClient::new(
        server.remote(Some(&node)).await,
    );
    let request = proto::plastron::server::v1::WatchRequest {
        agent_version: "9.9".to_owned(),
        ..Default::default()
    };
    let stream = client.watch(request).await.unwrap();
    assert_eq!(
        server.registry.agent(&node.id).unwrap().agent_version,
        "9.9"
    );
    drop(stream);
}
