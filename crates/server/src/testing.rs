//! A whole server for tests: real sockets, TLS, database and services, on a clock that the test owns.

pub(crate) mod proxy;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use daemon::telemetry::Telemetry;
use plugin::catalog::ServerPlugins;
use proto::convert::bundle_from_wire;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_request,
    attest_agent_response,
};
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use proto::spire::api::types::{self, permission_denied_details::Reason};
use spiffe::bundle::X509Bundle;
use spiffe::clock::{Clock, ManualClock, from_unix};
use spiffe::csr::build_csr;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::svid::x509::BundleSource;
use spiffe::tls::{CertResolver, Expected, KeyExchange, SpiffeServerVerifier, client_config};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Subject;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::audit::AuditSink;
use crate::ca::IssuanceConfig;
use crate::config::{Config, LogConfig, RateLimitConfig};
use crate::datastore::{DatastoreConfig, DatastoreKind};
use crate::{Bound, Environment, Server};

pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn wire_id(path: &str) -> types::Spiffeid {
    types::Spiffeid {
        trust_domain: "example.org".to_owned(),
        path: path.to_owned(),
    }
}

pub(crate) fn wire_selector(value: &str) -> types::Selector {
    types::Selector {
        r#type: "unix".to_owned(),
        value: value.to_owned(),
    }
}

/// A running server. Dropping it stops it.
pub(crate) struct TestServer {
    pub(crate) clock: ManualClock,
    pub(crate) socket: PathBuf,
    pub(crate) address: String,
    pub(crate) health: Option<String>,
    pub(crate) registry: Arc<crate::registry::Registry>,
    pub(crate) datastore: crate::datastore::Datastore,
    stop: Option<oneshot::Sender<()>>,
    stopped: tokio::task::JoinHandle<Result<(), config::fault::Fault>>,
    _directory: tempfile::TempDir,
}

/// What an agent, administrator or downstream server shows.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) id: SpiffeId,
    pub(crate) key: KeyPair,
    pub(crate) chain: Vec<Vec<u8>>,
}

/// A configuration that listens on free ports below `directory`.
pub(crate) fn config(directory: &std::path::Path) -> Config {
    Config {
        trust_domain: own(),
        data_dir: directory.join("data"),
        bind_address: "127.0.0.1".to_owned(),
        bind_port: 0,
        socket_path: directory.join("run").join("api.sock"),
        admin_ids: Vec::new(),
        issuance: IssuanceConfig {
            trust_domain: own(),
            ca_key_type: KeyType::EcP256,
            jwt_key_type: KeyType::EcP256,
            ca_subject: Subject::spire(),
            ca_ttl: Duration::from_secs(86_400),
            agent_ttl: Duration::from_secs(3_600),
            x509_svid_ttl: Duration::from_secs(3_600),
            jwt_svid_ttl: Duration::from_secs(300),
            jwt_issuer: None,
            jwt_svids: true,
        },
        audit_log: true,
        log: LogConfig {
            level: "INFO".to_owned(),
            json: false,
            file: None,
            source_location: false,
        },
        rate_limits: RateLimitConfig {
            attestation: false,
            signing: false,
        },
        pruning: None,
        agent_id_as_selector: false,
        require_pq_kem: false,
        health: None,
        datastore: DatastoreConfig::new(DatastoreKind::Sqlite {
            path: directory.join("data.sqlite3"),
        }),
        plugins: plugins(),
        lost_keys: crate::ca::LostKeys::Refuse,
        notices: Vec::new(),
    }
}

fn plugins() -> ServerPlugins {
    let text = "plugins { DataStore \"sql\" {} KeyManager \"memory\" {} }";
    let document = config::Document::parse("server.conf", text, None).unwrap();
    let plugins = ServerPlugins::from_section(&document.root());
    document.check().unwrap();
    plugins.unwrap()
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(change, |_| {}).await
    }

    /// A server whose audit trail goes to `audit`.
    pub(crate) async fn start_audited(audit: Arc<dyn AuditSink>) -> Self {
        Self::start_in(|_| {}, |environment| environment.audit = Some(audit)).await
    }

    pub(crate) async fn start_in(
        change: impl FnOnce(&mut Config),
        change_environment: impl FnOnce(&mut Environment),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        change(&mut config);
        let clock = ManualClock::new(from_unix(NOW));
        let mut environment = Environment {
            clock: Arc::new(clock.clone()),
            random: Arc::new(SystemRandom),
            log: None,
            audit: None,
            telemetry: Telemetry::default(),
            node_attestors: Vec::new(),
        };
        change_environment(&mut environment);
        let bound = Server::bind_in(config, environment).await.unwrap();
        let (stop, stopping) = oneshot::channel();
        let (registry, datastore) = bound.state_for_tests();
        let Bound {
            tcp_addr,
            ref admin_socket,
            health_addr,
            ..
        } = bound;
        let socket = admin_socket.clone();
        let stopped = tokio::spawn(async move { bound.run(async { drop(stopping.await) }).await });
        Self {
            clock,
            socket,
            address: tcp_addr.to_string(),
            health: health_addr.map(|address| address.to_string()),
            registry,
            datastore,
            stop: Some(stop),
            stopped,
            _directory: directory,
        }
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.stopped).await.unwrap().unwrap();
    }

    /// Waits until the server ends by itself, which it does for a reason only.
    pub(crate) async fn ended(mut self) -> config::fault::Fault {
        (&mut self.stopped).await.unwrap().unwrap_err()
    }

    /// Asks the health listener; gives the HTTP status and the whole answer.
    pub(crate) async fn probe(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let address = self.health.as_ref().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    pub(crate) async fn local(&self) -> Channel {
        proto::channel::connect_uds(&self.socket).await.unwrap()
    }

    /// A connection over TLS, with an SVID or without.
    pub(crate) async fn remote(&self, identity: Option<&Identity>) -> Channel {
        self.try_remote(identity).await.unwrap()
    }

    pub(crate) async fn try_remote(
        &self,
        identity: Option<&Identity>,
    ) -> Result<Channel, proto::channel::ChannelError> {
        let config = self.client_config(identity).await;
        proto::channel::connect_tls(&self.address, config).await
    }

    /// A bare TLS connection that has agreed on HTTP/2.
    pub(crate) async fn tls(&self, identity: Option<&Identity>) -> TlsStream<TcpStream> {
        let config = self.client_config(identity).await;
        let stream = TcpStream::connect(&self.address).await.unwrap();
        TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into().unwrap(), stream)
            .await
            .unwrap()
    }

    pub(crate) async fn client_config(&self, identity: Option<&Identity>) -> rustls::ClientConfig {
        let bundle = BundleClient::new(self.local().await)
            .get_bundle(GetBundleRequest::default())
            .await
            .unwrap();
        let bundle = bundle_from_wire(bundle.get_ref()).unwrap();
        let servers = SpiffeServerVerifier::new(
            Expected::Id(SpiffeId::server(&own())),
            Arc::new(OneBundle(Arc::new(bundle.x509_bundle()))),
        );
        let resolver = identity.map(|identity| {
            let resolver = CertResolver::new();
            resolver
                .set(identity.chain.iter().map(Vec::as_slice), &identity.key)
                .unwrap();
            Arc::new(resolver)
        });
        let clock = Arc::new(self.clock.clone());
        client_config(Arc::new(servers), resolver, clock, KeyExchange::default()).unwrap()
    }

    pub(crate) async fn token(&self) -> String {
        let request = CreateJoinTokenRequest {
            ttl: 600,
            ..CreateJoinTokenRequest::default()
        };
        AgentClient::new(self.local().await)
            .create_join_token(request)
            .await
            .unwrap()
            .into_inner()
            .value
    }

    /// Attests with a token.
    pub(crate) async fn attest(&self, token: &str) -> Result<Identity, Status> {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let mut client = AgentClient::new(self.remote(None).await);
        let request = attestation(token, csr(&key));
        let mut answers = client
            .attest_agent(tokio_stream::once(request))
            .await?
            .into_inner();
        let answer = answers.message().await?.unwrap();
        let Some(attest_agent_response::Step::Result(result)) = answer.step else {
            panic!("no result")
        };
        Ok(identity(key, result.svid.unwrap()))
    }

    /// An attested node.
    pub(crate) async fn agent(&self) -> Identity {
        let token = self.token().await;
        self.attest(&token).await.unwrap()
    }

    pub(crate) async fn create(&self, entry: types::Entry) -> types::Entry {
        let request = BatchCreateEntryRequest {
            entries: vec![entry],
            output_mask: None,
        };
        let answer = EntryClient::new(self.local().await)
            .batch_create_entry(request)
            .await
            .unwrap()
            .into_inner();
        let result = answer.results.into_iter().next().unwrap();
        assert_eq!(result.status.unwrap().message, "OK");
        result.entry.unwrap()
    }

    /// An entry below this agent.
    pub(crate) async fn entry(&self, agent: &Identity, path: &str) -> types::Entry {
        self.create(entry(agent.id.path(), path)).await
    }

    pub(crate) fn unix_now(&self) -> i64 {
        spiffe::clock::unix_seconds(self.clock.now())
    }

    /// A workload of this agent, with its SVID.
    pub(crate) async fn workload(&self, agent: &Identity, path: &str) -> Identity {
        let entry = self.entry(agent, path).await;
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let param = NewX509svidParams {
            entry_id: entry.id,
            csr: csr(&key),
        };
        let request = BatchNewX509svidRequest {
            params: vec![param],
        };
        let answer = SvidClient::new(self.remote(Some(agent)).await)
            .batch_new_x509svid(request)
            .await
            .unwrap()
            .into_inner();
        let result = answer.results.into_iter().next().unwrap();
        identity(key, result.svid.unwrap())
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }
}

/// A database reached through a [`Proxy`](proxy::Proxy).
pub(crate) async fn proxied_postgres(case: &str) -> Option<(DatastoreConfig, proxy::Proxy)> {
    let mut config = postgres(case).await?;
    let DatastoreKind::Postgres(postgres) = &mut config.kind else {
        return None;
    };
    let proxy = proxy::Proxy::before(&postgres.url).await;
    postgres.url = proxy.url.clone();
    Some((config, proxy))
}

/// A schema of its own on the PostgreSQL server of the environment, or none without one.
pub(crate) async fn postgres(case: &str) -> Option<DatastoreConfig> {
    let url = std::env::var("PLASTRON_TEST_POSTGRES_URL")
        .expect("PLASTRON_TEST_POSTGRES_URL names a PostgreSQL server; tests/run starts one");
    let mark = if url.contains('?') { '&' } else { '?' };
    let url = if url.contains("sslmode=") {
        url
    } else {
        format!("{url}{mark}sslmode=disable")
    };
    let schema = format!("plastron_server_{case}");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let reset = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
    client.batch_execute(&reset).await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();
    let url = format!("{url}&options=-csearch_path%3D{schema}");
    let kind = DatastoreKind::Postgres(crate::datastore::PostgresConfig::new(url));
    Some(DatastoreConfig::new(kind))
}

pub(crate) fn entry(parent: &str, path: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(wire_id(path)),
        parent_id: Some(wire_id(parent)),
        selectors: vec![wire_selector(&format!("path:{path}"))],
        ..types::Entry::default()
    }
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    build_csr(key, &Subject::spire(), &[], &[]).unwrap()
}

pub(crate) fn attestation(token: &str, csr: Vec<u8>) -> AttestAgentRequest {
    let data = types::AttestationData {
        r#type: "join_token".to_owned(),
        payload: token.as_bytes().to_vec(),
    };
    let params = attest_agent_request::Params {
        data: Some(data),
        params: Some(AgentX509svidParams { csr }),
    };
    AttestAgentRequest {
        step: Some(attest_agent_request::Step::Params(params)),
    }
}

pub(crate) fn identity(key: KeyPair, svid: types::X509svid) -> Identity {
    let id = proto::convert::spiffe_id_from_wire(svid.id.as_ref()).unwrap();
    Identity {
        id,
        key,
        chain: svid.cert_chain,
    }
}

/// The reason in a denial's details.
pub(crate) fn reason(status: &Status) -> Reason {
    let decoded: tonic_types::pb::Status = prost::Message::decode(status.details()).unwrap();
    let details: types::PermissionDeniedDetails =
        prost::Message::decode(decoded.details[0].value.as_slice()).unwrap();
    details.reason()
}

#[derive(Debug)]
pub(crate) struct OneBundle(pub(crate) Arc<X509Bundle>);

impl BundleSource for OneBundle {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        (trust_domain == self.0.trust_domain()).then(|| Arc::clone(&self.0))
    }
}
