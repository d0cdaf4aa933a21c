use std::time::{Duration, SystemTime};

use spiffe::clock::{ManualClock, from_unix};
use spiffe::entry::Entry;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use super::*;
use crate::datastore::{DEFAULT_STALENESS, Datastore, DatastoreConfig, DatastoreKind};
use crate::principal::Class;
use crate::registry::Agent;

const NOW: i64 = 1_800_000_000;

struct Fixture {
    authorizer: Arc<Authorizer>,
    datastore: Datastore,
    clock: ManualClock,
    directory: tempfile::TempDir,
}

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&own(), path).unwrap()
}

async fn fixture() -> Fixture {
    world_with(DEFAULT_STALENESS).await
}

async fn world_with(max_staleness: Duration) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(from_unix(NOW));
    let config = DatastoreConfig {
        kind: DatastoreKind::Sqlite {
            path: directory.path().join("data.sqlite3"),
        },
        max_staleness,
    };
    let (datastore, registry) = Datastore::open(
        config,
        own(),
        Arc::new(clock.clone()),
        daemon::telemetry::Telemetry::default(),
    )
    .await
    .unwrap();
    let admin_ids = HashSet::from([SpiffeId::parse("spiffe://far.example/admin").unwrap()]);
    let authorizer = Authorizer {
        registry,
        agents: datastore.agents.clone(),
        clock: Arc::new(clock.clone()),
        admin_ids,
        follow_for: Duration::ZERO,
    };
    Fixture {
        authorizer: Arc::new(authorizer),
        datastore,
        clock,
        directory,
    }
}

fn svid(id: SpiffeId, serial: &str) -> PeerSvid {
    PeerSvid::for_tests(id, serial, from_unix(NOW + 3_600))
}

fn remote(svid: Option<PeerSvid>) -> Arc<Connection> {
    Arc::new(Connection::remote_for_tests(
        "192.0.2.1:5000".parse().unwrap(),
        svid,
    ))
}

fn local() -> Arc<Connection> {
    Arc::new(Connection::local_for_tests())
}

fn agent(id: SpiffeId, serial: &str, new_serial: &str) -> Agent {
    Agent {
        id,
        attestation_type: "join_token".to_owned(),
        serial: serial.to_owned(),
        expires_at: NOW + 3_600,
        new_serial: new_serial.to_owned(),
        new_expires_at: NOW + 7_200,
        can_reattest: false,
        banned: false,
        selectors: SelectorSet::default(),
        agent_version: String::new(),
    }
}

fn entry(path: &str, change: impl Fn(&mut Entry)) -> Entry {
    let selectors = SelectorSet::from(vec![Selector::new("unix", "uid:0").unwrap()]);
    let mut entry = Entry::new("", id(path), id("/spire/agent/join_token/x"), selectors);
    change(&mut entry);
    entry
}

const SIGN: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";
const LIST: &str = "/spire.api.server.entry.v1.Entry/ListEntries";
const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
const DOWNSTREAM_CA: &str = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA";
const GET_FEDERATED: &str = "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle";

impl Fixture {
    async fn ask(&self, method: &str, connection: Arc<Connection>) -> Result<Caller, OpError> {
        self.authorizer
            .authorize(row(method).unwrap(), &connection, &Arc::default())
            .await
    }

    async fn refusal(&self, method: &str, connection: Arc<Connection>) -> OpError {
        let refused = self
            .ask(method, connection)
            .await
            .map(|caller| caller.authority)
            .unwrap_err();
        assert_eq!(refused.kind(), Kind::PermissionDenied, "{refused}");
        assert!(
            refused
                .message()
                .starts_with(&format!("authorization denied for method {method}")),
            "{refused}"
        );
        refused
    }
}

fn reason(refused: &OpError) -> AgentRefusal {
    refused.agent_refusal().unwrap()
}

#[tokio::test]
async fn denies_an_agent_that_is_not_attested() {
    let fixture = fixture().await;
    let refused = fixture
        .refusal(
            SIGN,
            remote(Some(svid(id("/spire/agent/join_token/x"), "1"))),
        )
        .await;
    assert_eq!(reason(&refused), AgentRefusal::NotAttested);
}

#[tokio::test]
async fn denies_an_agent_whose_svid_is_expired() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    fixture
        .datastore
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "1"))))
        .await
        .unwrap();
    fixture.clock.advance(Duration::from_secs(3_601));
    let refused = fixture.refusal(SIGN, remote(Some(svid(node, "1")))).await;
    assert_eq!(reason(&refused), AgentRefusal::Expired);
}

#[tokio::test]
async fn denies_an_agent_under_a_former_svid() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    fixture
        .datastore
        .agents
        .put(agent(node.clone(), "2", ""))
        .await
        .unwrap();
    let refused = fixture
        .refusal(SIGN, remote(Some(svid(node.clone(), "1"))))
        .await;
    assert_eq!(reason(&refused), AgentRefusal::NotActive);
    let refused = fixture.refusal(SIGN, remote(Some(svid(node, "")))).await;
    assert_eq!(
        reason(&refused),
        AgentRefusal::NotActive,
        "an empty serial must match nothing"
    );
}

#[tokio::test]
async fn denies_a_banned_agent_even_on_an_open_connection() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    fixture
        .datastore
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    let connection = remote(Some(svid(node.clone(), "1")));
    fixture.ask(SIGN, Arc::clone(&connection)).await.unwrap();
    fixture.datastore.agents.ban(&node).await.unwrap();
    assert_eq!(
        reason(&fixture.refusal(SIGN, connection).await),
        AgentRefusal::Banned
    );
    let end = fixture
        .authorizer
        .recheck_agent(&svid(node, "1"))
        .unwrap_err();
    assert!(matches!(end, StreamEnd::Denied(status) if reason(&status) == AgentRefusal::Banned));
}

#[tokio::test]
async fn a_call_that_waited_is_denied_when_its_agent_was_banned_meanwhile() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    let store = &fixture.datastore;
    store
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    let caller = fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "1"))))
        .await
        .unwrap();
    caller.still_entitled().unwrap();
    store.agents.ban(&node).await.unwrap();
    assert_eq!(
        reason(&caller.still_entitled().unwrap_err()),
        AgentRefusal::Banned
    );
}

#[tokio::test]
async fn a_call_that_waited_while_its_agent_renewed_is_asked_to_retry() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    let store = &fixture.datastore;
    store
        .agents
        .put(agent(node.clone(), "1", "2"))
        .await
        .unwrap();
    let caller = fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "1"))))
        .await
        .unwrap();
    store.agents.promote_serial(&node, "2").await.unwrap();
    assert_eq!(
        caller.still_entitled().unwrap_err().kind(),
        Kind::Unavailable
    );
}

#[tokio::test]
async fn a_call_that_waited_is_denied_when_its_downstream_entry_was_deleted_meanwhile() {
    let fixture = fixture().await;
    let store = &fixture.datastore;
    let below = entry("/below", |entry| entry.downstream = true);
    let made = store.entries.create(vec![below]).await.unwrap().remove(0);
    let made = made.unwrap().entry;
    let caller = fixture
        .ask(DOWNSTREAM_CA, remote(Some(svid(id("/below"), "7"))))
        .await
        .unwrap();
    caller.still_entitled().unwrap();
    store
        .entries
        .delete(vec![made.id.as_ref().to_owned()])
        .await
        .unwrap();
    assert_eq!(
        caller.still_entitled().unwrap_err().kind(),
        Kind::PermissionDenied
    );
}

#[tokio::test]
async fn an_attestation_in_flight_does_not_lift_a_ban() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    let store = &fixture.datastore;
    store
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    store.agents.ban(&node).await.unwrap();
    let written = store
        .agents
        .put(agent(node.clone(), "2", ""))
        .await
        .unwrap();
    assert!(written.banned);
    let refused = fixture.refusal(SIGN, remote(Some(svid(node, "2")))).await;
    assert_eq!(reason(&refused), AgentRefusal::Banned);
}

#[tokio::test]
async fn denies_an_evicted_agent() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    fixture
        .datastore
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    fixture.datastore.agents.delete(&node).await.unwrap();
    assert_eq!(
        reason(&fixture.refusal(SIGN, remote(Some(svid(node, "1")))).await),
        AgentRefusal::NotAttested
    );
}

#[tokio::test]
async fn makes_a_renewed_svid_the_current_one_on_first_use_and_denies_the_former() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    fixture
        .datastore
        .agents
        .put(agent(node.clone(), "1", "2"))
        .await
        .unwrap();
    fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "1"))))
        .await
        .unwrap();
    fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "2"))))
        .await
        .unwrap();
    let row = fixture.authorizer.registry.agent(&node).unwrap();
    assert_eq!((row.serial.as_str(), row.new_serial.as_str()), ("2", ""));
    assert_eq!(
        reason(&fixture.refusal(SIGN, remote(Some(svid(node, "1")))).await),
        AgentRefusal::NotActive
    );
}

#[tokio::test]
async fn denies_callers_without_an_svid() {
    let fixture = fixture().await;
    for method in [SIGN, LIST, DOWNSTREAM_CA, GET_FEDERATED] {
        fixture.refusal(method, remote(None)).await;
    }
    assert!(matches!(
        fixture
            .ask(GET_BUNDLE, remote(None))
            .await
            .unwrap()
            .authority,
        Authority::Anybody
    ));
}

#[tokio::test]
async fn denies_agents_and_plain_workloads_what_administrators_do() {
    let fixture = fixture().await;
    let node = id("/spire/agent/join_token/x");
    fixture
        .datastore
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    fixture
        .datastore
        .entries
        .create(vec![entry("/web", |_| {})])
        .await
        .unwrap();
    fixture.refusal(LIST, remote(Some(svid(node, "1")))).await;
    fixture
        .refusal(LIST, remote(Some(svid(id("/web"), "9"))))
        .await;
    fixture
        .refusal(DOWNSTREAM_CA, remote(Some(svid(id("/web"), "9"))))
        .await;
}

#[tokio::test]
async fn denies_the_admin_socket_what_agents_do() {
    let fixture = fixture().await;
    for method in [SIGN, DOWNSTREAM_CA] {
        fixture.refusal(method, local()).await;
    }
    assert!(matches!(
        fixture.ask(LIST, local()).await.unwrap().authority,
        Authority::Local
    ));
}

#[tokio::test]
async fn knows_administrators_by_configuration_and_by_entry() {
    let fixture = fixture().await;
    let far = SpiffeId::parse("spiffe://far.example/admin").unwrap();
    let near = svid(id("/admin"), "7");
    fixture.refusal(LIST, remote(Some(near.clone()))).await;
    fixture
        .datastore
        .entries
        .create(vec![entry("/admin", |entry| entry.admin = true)])
        .await
        .unwrap();
    assert_eq!(
        fixture
            .ask(LIST, remote(Some(near)))
            .await
            .unwrap()
            .authority
            .via(),
        "entries"
    );
    assert_eq!(
        fixture
            .ask(LIST, remote(Some(svid(far, "1"))))
            .await
            .unwrap()
            .authority
            .via(),
        "config"
    );
}

#[tokio::test]
async fn denies_administrators_whose_entry_or_svid_has_expired() {
    let fixture = fixture().await;
    let expiring = entry("/admin", |entry| {
        entry.admin = true;
        entry.expires_at = NOW + 60;
    });
    fixture
        .datastore
        .entries
        .create(vec![expiring])
        .await
        .unwrap();
    let caller = svid(id("/admin"), "7");
    fixture
        .ask(LIST, remote(Some(caller.clone())))
        .await
        .unwrap();
    fixture.clock.advance(Duration::from_secs(61));
    fixture.refusal(LIST, remote(Some(caller))).await;
    let admin = SpiffeId::parse("spiffe://far.example/admin").unwrap();
    let far = PeerSvid::for_tests(admin, "1", SystemTime::UNIX_EPOCH);
    fixture.refusal(LIST, remote(Some(far))).await;
}

#[tokio::test]
async fn tells_downstream_servers_from_administrators() {
    let fixture = fixture().await;
    fixture
        .datastore
        .entries
        .create(vec![entry("/below", |entry| entry.downstream = true)])
        .await
        .unwrap();
    let caller = svid(id("/below"), "7");
    let authority = fixture
        .ask(DOWNSTREAM_CA, remote(Some(caller.clone())))
        .await
        .unwrap()
        .authority;
    assert!(matches!(authority, Authority::Downstream(entry) if entry.spiffe_id == id("/below")));
    fixture.refusal(LIST, remote(Some(caller))).await;
}

#[tokio::test]
async fn tells_the_class_of_a_principal_by_what_is_registered_now() {
    let fixture = fixture().await;
    let (node, peer) = (id("/spire/agent/join_token/x"), id("/peer"));
    let class = |id: &SpiffeId, serial: &str| {
        let principal = fixture.authorizer.principal(svid(id.clone(), serial));
        principal.class()
    };
    let store = &fixture.datastore;
    assert_eq!(class(&node, "1"), Class::Workload, "not attested");
    store
        .agents
        .put(agent(node.clone(), "1", "2"))
        .await
        .unwrap();
    assert_eq!(class(&node, "1"), Class::Agent);
    assert_eq!(class(&node, "2"), Class::Agent, "renewed");
    assert_eq!(
        class(&node, "3"),
        Class::Workload,
        "another SVID of that ID"
    );
    store.agents.ban(&node).await.unwrap();
    assert_eq!(class(&node, "1"), Class::Workload, "banned");

    assert_eq!(class(&peer, "9"), Class::Workload);
    let downstream = entry("/peer", |entry| entry.downstream = true);
    store.entries.create(vec![downstream]).await.unwrap();
    assert_eq!(class(&peer, "9"), Class::Downstream);
    let brief = entry("/brief", |entry| {
        entry.admin = true;
        entry.expires_at = NOW + 60;
    });
    store.entries.create(vec![brief]).await.unwrap();
    assert_eq!(class(&id("/brief"), "9"), Class::Admin);
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(
        class(&id("/brief"), "9"),
        Class::Workload,
        "the entry expired"
    );
    let far = SpiffeId::parse("spiffe://far.example/admin").unwrap();
    assert_eq!(class(&far, "9"), Class::Admin, "by configuration");
    fixture.clock.advance(Duration::from_secs(3_600));
    assert_eq!(class(&far, "9"), Class::Workload, "the SVID expired");
}

#[tokio::test]
async fn refuses_those_whose_rights_the_database_may_have_changed_when_memory_is_stale() {
    // Nothing is ever fresh enough.
    let fixture = world_with(Duration::ZERO).await;
    let store = &fixture.datastore;
    let node = id("/spire/agent/join_token/x");
    store
        .agents
        .put(agent(node.clone(), "1", ""))
        .await
        .unwrap();
    let privileged = vec![
        entry("/down", |entry| entry.downstream = true),
        entry("/admin", |entry| entry.admin = true),
    ];
    store.entries.create(privileged).await.unwrap();
    for (method, who) in [
        (SIGN, node),
        (DOWNSTREAM_CA, id("/down")),
        (LIST, id("/admin")),
    ] {
        let refused = fixture.ask(method, remote(Some(svid(who, "1")))).await;
        let refused = refused.map(|caller| caller.authority).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable, "{method}: {refused}");
        assert!(
            refused.agent_refusal().is_none(),
            "no reason to give an identity up"
        );
        assert!(
            refused
                .message()
                .contains("confirm its state with the database")
        );
    }
    // Who is let in by the configuration or the socket's file mode can look after the server all the same.
    let configured = SpiffeId::parse("spiffe://far.example/admin").unwrap();
    fixture
        .ask(LIST, remote(Some(svid(configured, "1"))))
        .await
        .unwrap();
    fixture.ask(LIST, local()).await.unwrap();
    fixture.ask(GET_BUNDLE, remote(None)).await.unwrap();
}

#[tokio::test]
async fn lets_a_renewed_agent_in_although_the_database_cannot_be_written() {
    let fixture = fixture().await;
    let store = &fixture.datastore;
    let node = id("/spire/agent/join_token/x");
    store
        .agents
        .put(agent(node.clone(), "1", "2"))
        .await
        .unwrap();
    let other = rusqlite::Connection::open(fixture.directory.path().join("data.sqlite3")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "2"))))
        .await
        .unwrap();
    fixture
        .ask(SIGN, remote(Some(svid(node.clone(), "1"))))
        .await
        .unwrap();
    fixture.refusal(SIGN, remote(Some(svid(node, "3")))).await;
}
