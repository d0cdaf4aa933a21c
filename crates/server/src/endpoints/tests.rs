use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::fault::Code;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{ListAgentsRequest, PostStatusRequest};
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::debug::v1::GetInfoRequest;
use proto::spire::api::server::debug::v1::debug_client::DebugClient;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType};
use spiffe::x509::{CaTemplate, Issuer, LeafTemplate, Subject, issue_ca, issue_leaf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code as Grpc;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::admission::{Admission, Capacity};
use super::{MAX_CONNECTION_AGE, Serving, WITHDRAWN_GRACE, serve_connection};
use crate::Server;
use crate::caller::Connection;
use crate::config::HealthConfig;
use crate::datastore::{DatastoreConfig, DatastoreKind};
use crate::principal::{Account, Class, Principal};
use crate::testing::{Identity, TestServer, config};

#[tokio::test]
async fn says_which_port_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(directory.path());
    config.bind_port = holder.local_addr().unwrap().port();
    let fault = Server::bind(config.clone()).await.unwrap_err();
    assert_eq!(fault.code, Code::AddressInUse);
    assert!(
        fault
            .what
            .contains(&format!("port {} on 127.0.0.1 is in use", config.bind_port)),
        "{fault}"
    );
    assert!(
        !directory.path().join("data.sqlite3").exists(),
        "nothing was touched before the port was free"
    );
}

#[tokio::test]
async fn refuses_the_socket_of_a_live_server_and_takes_over_a_stale_one() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::bind(config(directory.path())).await.unwrap();
    let fault = Server::bind(config(directory.path())).await.unwrap_err();
    assert_eq!(fault.code, Code::SocketInUse, "{fault}");
    drop(first);
    let path = config(directory.path()).socket_path;
    assert!(!path.exists(), "a server takes its socket with it");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    // The first one's database is let go a moment after it was dropped.
    let mut other = config(directory.path());
    other.datastore = DatastoreConfig::new(DatastoreKind::Sqlite {
        path: directory.path().join("other.sqlite3"),
    });
    let again = Server::bind(other).await.unwrap();
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o770, 0o750));
    assert_eq!(mode(&directory.path().join("data")), 0o700);
    drop(again);
}

#[tokio::test]
async fn refuses_to_replace_a_file_that_is_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    std::fs::create_dir_all(config.socket_path.parent().unwrap()).unwrap();
    std::fs::write(&config.socket_path, "precious").unwrap();
    let fault = Server::bind(config.clone()).await.unwrap_err();
    assert_eq!(fault.code, Code::SocketUnusable, "{fault}");
    assert_eq!(
        std::fs::read_to_string(&config.socket_path).unwrap(),
        "precious"
    );
}

#[tokio::test]
async fn refuses_a_data_directory_that_is_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    std::fs::write(&config.data_dir, "x").unwrap();
    assert_eq!(
        Server::bind(config).await.unwrap_err().code,
        Code::DataDirUnusable
    );
}

#[tokio::test]
async fn serves_health_debug_and_logger_on_the_admin_socket_only() {
    let server = TestServer::start().await;
    let health = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut local = HealthClient::new(server.local().await);
    assert_eq!(
        local.check(health("")).await.unwrap().into_inner().status,
        1
    );
    let refused = local
        .check(health("spire.api.server.svid.v1.SVID"))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Grpc::InvalidArgument, "per-service health is not supported")
    );
    let refused = HealthClient::new(server.remote(None).await)
        .check(health(""))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Grpc::Unimplemented);
    let info = DebugClient::new(server.local().await)
        .get_info(GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            info.svid_chain.len(),
            info.svid_chain[0].id.clone().unwrap().path.as_str()
        ),
        (2, "/spire/server")
    );
    let refused = DebugClient::new(server.remote(None).await)
        .get_info(GetInfoRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Grpc::Unimplemented);
}

#[tokio::test]
async fn answers_unimplemented_to_what_it_does_not_know() {
    let server = TestServer::start().await;
    let mut grpc = tonic::client::Grpc::new(server.local().await);
    for path in [
        "/no.such.Service/Call",
        "/spire.api.server.svid.v1.SVID/Steal",
    ] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let refused = grpc
            .unary(tonic::Request::new(()), path, codec)
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(refused.code(), Grpc::Unimplemented, "{refused}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_for_its_age_ends_at_once_when_its_peer_is_withdrawn() {
    let directory = tempfile::tempdir().unwrap();
    let bound = Server::bind(config(directory.path())).await.unwrap();
    let tasks = daemon::tasks::Tasks::new();
    let serving = Serving {
        api: bound.api_for_tests(),
        random: Arc::new(spiffe::random::SystemRandom),
        shutdown: tasks.shutdown(),
    };
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    // Later than any connection is asked to end, and long before calls in flight are cut off for its age.
    let withdrawn = MAX_CONNECTION_AGE.mul_f64(1.2);
    let (client, server) = tokio::io::duplex(64 << 10);
    let (ended, at) = tokio::sync::oneshot::channel();
    let account = Account::Uid(0);
    let mut connections = Admission::new(Capacity::of(1));
    let admitted = connections.spawn(account.clone(), Class::Unauthenticated, |slot| async move {
        let class = Class::Unauthenticated;
        let budget = slot.enter(account, class);
        let principal = Principal::Unauthenticated;
        let connection = Connection::new(principal, None, budget, slot.closing());
        let withdrawn = tokio::time::sleep(withdrawn);
        serve_connection(server, connection, slot, serving, withdrawn).await;
        ended.send(began.elapsed()).unwrap();
    });
    assert!(admitted);
    // A caller that does not read its answer.
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(client));
    let (mut client, connection) = handshake.await.unwrap();
    let driven = tokio::spawn(connection);
    let call = http::Request::post("http://server/spire.api.server.bundle.v1.Bundle/GetBundle")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .unwrap();
    let answer = client.send_request(call).await.unwrap();
    let ended = at.await;
    drop(answer);
    driven.await.unwrap().ok();
    assert_eq!(
        ended.unwrap().as_secs(),
        (withdrawn + WITHDRAWN_GRACE).as_secs()
    );
}

/// A leaf for `id` under an authority that the server does not know, or that only claims to be ours.
async fn forged(id: &str) -> Identity {
    let (authority, key) = (
        KeyPair::generate(KeyType::EcP256).unwrap(),
        KeyPair::generate(KeyType::EcP256).unwrap(),
    );
    let id = SpiffeId::parse(id).unwrap();
    let year = Duration::from_secs(400 * 86_400);
    let now = spiffe::clock::from_unix(crate::testing::NOW);
    let ca = CaTemplate {
        serial: [1; 16],
        subject: Subject::spire(),
        id: id.trust_domain().id(),
        public_key: authority.public_key().clone(),
        not_before: now - year,
        not_after: now + year,
        path_len: None,
        subject_key_id: None,
    };
    issue_ca(&ca, None, &authority).await.unwrap();
    let leaf = LeafTemplate {
        serial: [2; 16],
        subject: Subject::spire(),
        id: id.clone(),
        dns_names: Vec::new(),
        public_key: key.public_key().clone(),
        not_before: now - year,
        not_after: now + year,
    };
    let key_id = authority.public_key().subject_key_id();
    let subject = Subject::spire().to_der();
    let issuer = Issuer {
        subject_der: &subject,
        key_id: &key_id,
        signer: &authority,
    };
    let leaf = issue_leaf(&leaf, &issuer).await.unwrap();
    Identity {
        id,
        key,
        chain: vec![leaf],
    }
}

#[tokio::test]
async fn refuses_certificates_that_it_did_not_issue() {
    let server = TestServer::start_with(|config| {
        config.admin_ids = vec![SpiffeId::parse("spiffe://far.example/admin").unwrap()];
    })
    .await;
    for id in [
        "spiffe://example.org/spire/agent/join_token/x",
        "spiffe://far.example/admin",
        "spiffe://other.example/a",
    ] {
        let identity = forged(id).await;
        let refused = match server.try_remote(Some(&identity)).await {
            Err(_) => true,
            Ok(channel) => BundleClient::new(channel)
                .get_bundle(GetBundleRequest::default())
                .await
                .is_err(),
        };
        assert!(refused, "{id}");
    }
}

#[tokio::test]
async fn goes_on_serving_beside_garbage_and_silence() {
    let server = TestServer::start().await;
    let mut garbage = TcpStream::connect(&server.address).await.unwrap();
    garbage.write_all(&[0x55; 4096]).await.unwrap();
    let mut closed = Vec::new();
    garbage.read_to_end(&mut closed).await.ok();
    let mut local = UnixStream::connect(&server.socket).await.unwrap();
    local.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    local.read_to_end(&mut closed).await.ok();
    let mut silent = Vec::new();
    for _ in 0..700 {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        // The beginning of a hello that never ends.
        stream.write_all(&[0x16, 3, 1]).await.unwrap();
        silent.push(stream);
    }
    let started = tokio::time::Instant::now();
    for _ in 0..1_200 {
        let stream = UnixStream::connect(&server.socket).await.unwrap();
        drop(stream);
    }
    BundleClient::new(server.remote(None).await)
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
    AgentClient::new(server.local().await)
        .list_agents(ListAgentsRequest::default())
        .await
        .unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "nobody waits for the silent"
    );
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_of_the_admin_socket() {
    let server = TestServer::start().await;
    let mut silent = Vec::new();
    for _ in 0..4_000 {
        // The server hangs up on the oldest; what this process may open is bounded too.
        if silent.len() > 1_500 {
            silent.drain(..500);
        }
        silent.push(UnixStream::connect(&server.socket).await.unwrap());
    }
    AgentClient::new(server.local().await)
        .list_agents(ListAgentsRequest::default())
        .await
        .unwrap();
}

/// The settings that the server announces to the peer of a connection.
async fn settings(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) -> std::collections::HashMap<u16, u32> {
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], 4, "the first frame is SETTINGS");
    let mut body = vec![0; usize::from(header[2])];
    stream.read_exact(&mut body).await.unwrap();
    body.chunks(6)
        .map(|pair| {
            let value = [pair[2], pair[3], pair[4], pair[5]];
            (
                u16::from_be_bytes([pair[0], pair[1]]),
                u32::from_be_bytes(value),
            )
        })
        .collect()
}

#[tokio::test]
async fn gives_unauthenticated_peers_small_limits() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut unauthenticated = server.tls(None).await;
    let mut agents = server.tls(Some(&node)).await;
    let mut local = UnixStream::connect(&server.socket).await.unwrap();
    let unauthenticated = settings(&mut unauthenticated).await;
    const STREAMS: u16 = 3;
    const WINDOW: u16 = 4;
    const HEADERS: u16 = 6;
    assert_eq!(unauthenticated[&STREAMS], 16);
    assert_eq!(unauthenticated[&WINDOW], 64 << 10);
    assert_eq!(unauthenticated[&HEADERS], 16 << 10);
    for known in [settings(&mut agents).await, settings(&mut local).await] {
        assert_eq!((known[&STREAMS], known[&HEADERS]), (1_000, 64 << 10));
    }
}

#[tokio::test]
async fn takes_no_large_message_from_unauthenticated_peers() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let large = crate::testing::attestation(&"x".repeat(70_000), Vec::new());
    for identity in [None, Some(&node)] {
        let mut client = AgentClient::new(server.remote(identity).await);
        let refused = client
            .attest_agent(tokio_stream::once(large.clone()))
            .await
            .map(|_| ())
            .unwrap_err();
        assert!(refused.message().contains("too large"), "{refused}");
    }
    let fits = crate::testing::attestation(&"x".repeat(30_000), Vec::new());
    let refused = AgentClient::new(server.remote(None).await)
        .attest_agent(tokio_stream::once(fits))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(!refused.message().contains("too large"), "{refused}");
    let status = PostStatusRequest {
        agent_version: "x".repeat(300_000),
        ..PostStatusRequest::default()
    };
    let refused = AgentClient::new(server.remote(Some(&node)).await)
        .post_status(status)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Grpc::InvalidArgument, "read, then refused");
}

async fn probe(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn answers_probes_and_nothing_else() {
    let server = TestServer::start_with(|config| {
        config.health = Some(HealthConfig {
            bind_address: "127.0.0.1".to_owned(),
            bind_port: 0,
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        });
    })
    .await;
    let address = server.health.clone().unwrap();
    let ask = |line: &str| format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    for (line, expected) in [
        ("GET /live", "HTTP/1.1 200"),
        ("GET /ready", "HTTP/1.1 200"),
        ("GET /", "HTTP/1.1 404"),
        ("GET /live/x", "HTTP/1.1 404"),
        ("POST /live", "HTTP/1.1 405"),
    ] {
        let answer = probe(&address, &ask(line)).await;
        assert!(answer.starts_with(expected), "{line}: {answer}");
    }
    assert!(
        probe(&address, &ask("GET /ready"))
            .await
            .contains("\"server.ca\":{}")
    );
}

#[tokio::test]
async fn stops_within_its_time_and_takes_its_socket_along() {
    let server = TestServer::start().await;
    let socket = server.socket.clone();
    let _idle = server.local().await;
    let (_stuck, started) = (
        UnixStream::connect(&socket).await.unwrap(),
        tokio::time::Instant::now(),
    );
    server.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert!(!socket.exists());
}

#[test]
fn spreads_the_ends_of_connections() {
    #[derive(Debug)]
    struct Fixed(u8);
    impl spiffe::random::Random for Fixed {
        fn fill(&self, out: &mut [u8]) {
            out.fill(self.0);
        }
    }
    let (low, high) = (Arc::new(Fixed(0)), Arc::new(Fixed(255)));
    let age = Duration::from_secs(180);
    assert_eq!(super::jittered(age, low.as_ref()), Duration::from_secs(162));
    assert!(super::jittered(age, high.as_ref()) > Duration::from_secs(197));
}
