//! The server as a whole: its end when a part of it fails, and several servers on one database. The latter need
//! `PLASTRON_TEST_POSTGRES_URL`; without it they are ignored, and fail when they are run all the same.

use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Telemetry;
use daemon::telemetry::totals::Totals;
use proto::plastron::server::v1::WatchRequest;
use proto::plastron::server::v1::watch_client::WatchClient;
use proto::spire::api::server::agent::v1::BanAgentRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, GetAuthorizedEntriesRequest};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use proto::spire::api::types::permission_denied_details::Reason;
use spiffe::key::{KeyPair, KeyType};

use crate::metrics::{
    AGENTS, AUTHORITY_ACTIVATED, AUTHORITY_EXPIRES, AUTHORITY_PREPARED, BUNDLES, COMMIT,
    COMMIT_WRITES, CONNECTIONS, ISSUED, RATE_LIMIT, RPC, SERVER_SVID_RENEWAL, STARTED, WATCHERS,
    WATCHERS_WOKEN,
};
use crate::registry::Condition;
use crate::testing::proxy::Mode;
use crate::testing::{TestServer, csr, entry, postgres, proxied_postgres, reason, wire_id};

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
async fn every_component_measures_what_it_does() {
    let totals = Arc::new(Totals::default());
    let telemetry = Telemetry::new(Arc::<Totals>::clone(&totals));
    let server = TestServer::start_in(
        |config| config.rate_limits.signing = true,
        |environment| environment.telemetry = telemetry,
    )
    .await;
    let node = server.agent().await;
    let mut client = WatchClient::new(server.remote(Some(&node)).await);
    let request = WatchRequest::default();
    let mut stream = client.watch(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    server.workload(&node, "/web").await;
    stream.message().await.unwrap().unwrap();
    let used = server.token().await;
    server.attest(&used).await.unwrap();
    assert!(server.attest(&used).await.is_err());

    let calls = |metric, labels: &[&str], status| totals.calls(metric, labels, status);
    let own = [env!("CARGO_PKG_VERSION"), "example.org"];
    assert_eq!(totals.gauge(STARTED.metric(), &own), Some(1.0));
    // The endpoints and the boundary; a conversation counts by its end.
    assert!(totals.count(CONNECTIONS.metric(), &["mtls", "accepted"]) >= 2);
    assert!(totals.count(CONNECTIONS.metric(), &["admin", "accepted"]) >= 1);
    let attest = ["agent.v1.Agent", "AttestAgent"];
    assert_eq!(calls(RPC.metric(), &attest, "OK"), 2);
    assert_eq!(calls(RPC.metric(), &attest, "InvalidArgument"), 1);
    let sign = ["svid.v1.SVID", "BatchNewX509SVID"];
    assert_eq!(calls(RPC.metric(), &sign, "OK"), 1);
    let signing = ["x509_signing"];
    assert_eq!(calls(RATE_LIMIT.metric(), &signing, "OK"), 1);
    // The datastore and the registry.
    assert!(calls(COMMIT.metric(), &[], "OK") >= 3);
    assert!(totals.sum(COMMIT_WRITES.metric(), &[]) >= 3.0);
    assert_eq!(totals.gauge(AGENTS.metric(), &[]), Some(2.0));
    assert_eq!(totals.gauge(BUNDLES.metric(), &[]), Some(1.0));
    // The authorities and the gate: agents, the workload, the server.
    for authority in ["x509_ca", "jwt_key"] {
        let authority = [authority];
        assert_eq!(calls(AUTHORITY_PREPARED.metric(), &authority, "OK"), 1);
        assert_eq!(totals.count(AUTHORITY_ACTIVATED.metric(), &authority), 1);
        assert!(totals.gauge(AUTHORITY_EXPIRES.metric(), &authority) > Some(1.0));
    }
    assert_eq!(calls(SERVER_SVID_RENEWAL.metric(), &[], "OK"), 1);
    assert_eq!(totals.count(ISSUED.metric(), &["x509_svid"]), 4);
    // The stream of changes.
    assert_eq!(totals.gauge(WATCHERS.metric(), &[]), Some(1.0));
    assert!(totals.sum(WATCHERS_WOKEN.metric(), &[]) >= 1.0);
}

#[tokio::test]
async fn a_method_that_a_peer_made_up_is_no_label() {
    let totals = Arc::new(Totals::default());
    let telemetry = Telemetry::new(Arc::<Totals>::clone(&totals));
    let server =
        TestServer::start_in(|_| {}, |environment| environment.telemetry = telemetry).await;
    let mut client = tonic::client::Grpc::new(server.local().await);
    client.ready().await.unwrap();
    let path = "/made.up.Service/Method".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let request = tonic::Request::new(());
    client.unary(request, path, codec).await.unwrap_err();
    let unknown = ["unknown", "unknown"];
    assert_eq!(totals.calls(RPC.metric(), &unknown, "Unimplemented"), 1);
}

#[tokio::test]
async fn a_server_whose_datastore_writer_panicked_ends_and_says_so() {
    let server = TestServer::start().await;
    server.datastore.poison().await;
    let fault = tokio::time::timeout(Duration::from_secs(30), server.ended()).await;
    let text = fault.unwrap().to_string();
    assert!(
        text.contains("the datastore writer stopped unexpectedly"),
        "{text}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
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
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
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
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
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
    // What the servers have to say of their authorities may come first.
    let event = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let event = events.message().await.unwrap().unwrap();
            if !event.entries.is_empty() {
                return event;
            }
        }
    });
    assert_eq!(event.await.unwrap().entries[0].id, made.id);
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

/// The database goes and comes back under a running server: agents are served within the bound and refused beyond it, what
/// administrators write fails at once with the reason, and the probes tell the truth.
#[tokio::test]
#[ignore = "needs PostgreSQL: PLASTRON_TEST_POSTGRES_URL"]
async fn a_database_that_is_away_shows_everywhere_and_heals() {
    let Some((mut datastore, proxy)) = proxied_postgres("away").await else {
        return;
    };
    // Far longer than a look at the database takes, and short enough to wait for.
    datastore.max_staleness = Duration::from_secs(3);
    let server = TestServer::start_with(|config| {
        config.datastore = datastore;
        config.health = Some(crate::config::HealthConfig {
            bind_address: "127.0.0.1".to_owned(),
            bind_port: 0,
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        });
    })
    .await;
    let node = server.agent().await;
    let mut agent = EntryClient::new(server.remote(Some(&node)).await);
    let ask = GetAuthorizedEntriesRequest::default();
    agent.get_authorized_entries(ask).await.unwrap();
    let mut watch = WatchClient::new(server.remote(Some(&node)).await);
    let mut events = watch
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    events.message().await.unwrap().unwrap();
    assert_eq!(server.probe("/ready").await.0, 200);

    proxy.set(Mode::Stopped);
    let mut conditions = server.registry.freshness().conditions();
    conditions
        .wait_for(|condition| *condition != Condition::Well)
        .await
        .unwrap();
    let (status, details) = server.probe("/ready").await;
    assert_eq!(status, 500);
    assert!(details.contains("list_bundle_err"), "{details}");
    assert_eq!(
        server.probe("/live").await.0,
        200,
        "a restart would mend nothing"
    );
    let mut admin = EntryClient::new(server.local().await);
    let create = BatchCreateEntryRequest {
        entries: vec![entry("/spire/agent/x", "/web")],
        output_mask: None,
    };
    let refused = admin.batch_create_entry(create.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(
        refused.message().contains("the database is out of reach"),
        "{refused}"
    );

    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Err(ended) = events.message().await {
                return ended;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), tonic::Code::Unavailable);
    let refused = agent.get_authorized_entries(ask).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);

    proxy.set(Mode::Open);
    conditions
        .wait_for(|condition| *condition == Condition::Well)
        .await
        .unwrap();
    agent.get_authorized_entries(ask).await.unwrap();
    admin.batch_create_entry(create).await.unwrap();
    assert_eq!(server.probe("/ready").await.0, 200);
}
