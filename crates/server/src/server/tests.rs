//! The server as a whole: its end when a part of it fails, and several servers on one database. The latter need
//! `PLASTRON_TEST_POSTGRES_URL`; without it there is nothing to test there.

use std::time::Duration;

use proto::plastron::server::v1::WatchRequest;
use proto::plastron::server::v1::watch_client::WatchClient;
use proto::spire::api::server::agent::v1::BanAgentRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use proto::spire::api::types::permission_denied_details::Reason;
use spiffe::key::{KeyPair, KeyType};

use crate::testing::{TestServer, csr, postgres, reason, wire_id};

async fn pair(case: &str) -> Option<(TestServer, TestServer)> {
    let datastore = postgres(case).await?;
    let one = TestServer::start_with(|config| config.datastore = datastore.clone()).await;
    let two = TestServer::start_with(|config| config.datastore = datastore).await;
    // Each must have heard of the other's authority before peers can move between them.
    for server in [&one, &two] {
        let mut revisions = server.registry.subscribe();
        let both = async {
            while server
                .registry
                .bundle(server.registry.trust_domain())
                .unwrap()
                .x509_authorities
                .len()
                < 2
            {
                revisions.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap();
    }
    Some((one, two))
}

#[tokio::test]
async fn a_server_whose_datastore_writer_panicked_ends_and_says_so() {
    let server = TestServer::start().await;
    server.datastore.poison().await;
    let fault = tokio::time::timeout(Duration::from_secs(30), server.ended()).await;
    let text = fault.unwrap().to_string();
    assert!(
        text.contains("the server's datastore writer stopped unexpectedly"),
        "{text}"
    );
}

#[tokio::test]
async fn an_agent_of_one_server_is_at_once_an_agent_of_the_other() {
    let Some((one, two)) = pair("agent").await else {
        return;
    };
    for _ in 0..5 {
        let node = one.agent().await;
        let made = one.entry(&node, &format!("/web{}", node.id.path())).await;
        let mut client = EntryClient::new(two.remote(Some(&node)).await);
        let request = GetAuthorizedEntriesRequest::default();
        client.get_authorized_entries(request).await.unwrap();
        let mut revisions = two.registry.subscribe();
        while two.registry.entry(&made.id).is_none() {
            revisions.changed().await.unwrap();
        }
        let params = vec![NewX509svidParams {
            entry_id: made.id,
            csr: csr(&KeyPair::generate(KeyType::EcP256).unwrap()),
        }];
        let mut client = SvidClient::new(two.remote(Some(&node)).await);
        let result = client
            .batch_new_x509svid(BatchNewX509svidRequest { params })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(result.results[0].status.clone().unwrap().code, 0);
    }
}

#[tokio::test]
async fn one_of_many_redeemers_wins_across_servers() {
    let Some((one, two)) = pair("token").await else {
        return;
    };
    for _ in 0..3 {
        let token = one.token().await;
        let outcomes = tokio::join!(
            one.attest(&token),
            two.attest(&token),
            one.attest(&token),
            two.attest(&token)
        );
        let won = [
            outcomes.0.is_ok(),
            outcomes.1.is_ok(),
            outcomes.2.is_ok(),
            outcomes.3.is_ok(),
        ];
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    }
}

#[tokio::test]
async fn a_ban_at_one_server_ends_the_watch_at_the_other() {
    let Some((one, two)) = pair("ban").await else {
        return;
    };
    let node = one.agent().await;
    let mut client = WatchClient::new(two.remote(Some(&node)).await);
    let mut events = client
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    events.message().await.unwrap().unwrap();
    let made = one.entry(&node, "/web").await;
    let event = tokio::time::timeout(Duration::from_secs(10), events.message())
        .await
        .unwrap();
    assert_eq!(event.unwrap().unwrap().entries[0].id, made.id);
    let mut admin = AgentClient::new(one.local().await);
    admin
        .ban_agent(BanAgentRequest {
            id: Some(wire_id(node.id.path())),
        })
        .await
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), events.message())
        .await
        .unwrap();
    assert_eq!(reason(&ended.unwrap_err()), Reason::AgentBanned);
}
