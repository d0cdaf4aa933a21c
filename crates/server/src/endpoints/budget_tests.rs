//! Peers that take more than their class is worth, for real: TLS, HTTP/2 and the services.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code as Grpc;
use tonic::transport::Channel;

use crate::budget::Limits;
use crate::config::HealthConfig;
use crate::principal::Class;
use crate::testing::{Identity, TestServer};

/// Connects again and again with one SVID and holds on to every connection.
async fn take_connections(
    server: &TestServer,
    who: &Identity,
    count: usize,
) -> Vec<impl Send + use<>> {
    let config = Arc::new(server.client_config(Some(who)).await);
    let mut held = Vec::new();
    for _ in 0..count {
        let stream = TcpStream::connect(&server.address).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&config));
        // The server may have hung up on it already.
        let connecting = connector.connect("localhost".try_into().unwrap(), stream);
        held.push(connecting.await.ok());
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lets_new_agents_attest_beside_three_thousand_connections_of_a_workload() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let workload = server.workload(&node, "/greedy").await;
    let channel = server.remote(Some(&node)).await;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.extend(take_connections(&server, &workload, 500).await);
        let joined = server.agent().await;
        let entries = EntryClient::new(server.remote(Some(&joined)).await)
            .get_authorized_entries(GetAuthorizedEntriesRequest::default())
            .await;
        entries.unwrap();
    }
    assert_eq!(held.len(), 3_000);
    let mut client = EntryClient::new(channel);
    let entries = client.get_authorized_entries(GetAuthorizedEntriesRequest::default());
    assert_eq!(
        entries.await.unwrap().get_ref().entries.len(),
        1,
        "an agent's connection from before is still the same"
    );
}

/// A request of which all but the last byte has been sent, and the gRPC status if the server has answered already.
struct Unfinished {
    body: mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>,
    answer: tokio::task::JoinHandle<Option<String>>,
}

type Sender = hyper::client::conn::http2::SendRequest<
    StreamBody<ReceiverStream<Result<Frame<Bytes>, std::convert::Infallible>>>,
>;

async fn http2(server: &TestServer, who: &Identity) -> Sender {
    let stream = TokioIo::new(server.tls(Some(who)).await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    // It ends with the server.
    tokio::spawn(async move { drop(connection.await) });
    sender
}

async fn begin(sender: &mut Sender, path: &str, length: u32) -> Unfinished {
    let (body, sent) = mpsc::channel(4);
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.resize(5 + usize::try_from(length).unwrap() - 1, 0);
    body.send(Ok(Frame::data(Bytes::from(message))))
        .await
        .unwrap();
    let request = http::Request::post(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(ReceiverStream::new(sent)))
        .unwrap();
    sender.ready().await.unwrap();
    let response = sender.send_request(request);
    let answer = tokio::spawn(async move {
        let (head, body) = response.await.ok()?.into_parts();
        let trailers = body.collect().await.ok()?.trailers().cloned();
        let status = trailers.unwrap_or(head.headers).get("grpc-status")?.clone();
        Some(status.to_str().ok()?.to_owned())
    });
    Unfinished { body, answer }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_few_unfinished_requests_for_a_workload_however_many_it_begins() {
    const LENGTH: u32 = 60 << 10;
    let server = TestServer::start().await;
    let node = server.agent().await;
    let workload = server.workload(&node, "/greedy").await;
    let path = "/spire.api.server.bundle.v1.Bundle/GetBundle";
    let (mut senders, mut begun) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        senders.push(http2(&server, &workload).await);
    }
    // Two at once on a connection, which is what its window holds.
    for number in 0..16 {
        begun.push(begin(&mut senders[number / 2], path, LENGTH).await);
    }
    let held = Limits::of(Class::Workload).bytes / usize::try_from(LENGTH).unwrap();
    let (answers, mut bodies): (FuturesUnordered<_>, Vec<_>) =
        begun.into_iter().map(|one| (one.answer, one.body)).unzip();
    let refused: Vec<_> = answers.take(16 - held).collect().await;
    for answer in refused {
        assert_eq!(answer.unwrap().as_deref(), Some("8"), "ResourceExhausted");
    }
    server.agent().await;
    bodies.clear();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_few_lists_for_an_agent_and_answers_its_other_calls_and_others() {
    let server = TestServer::start().await;
    let (greedy, other) = (server.agent().await, server.agent().await);
    let channels = [
        server.remote(Some(&greedy)).await,
        server.remote(Some(&greedy)).await,
    ];
    let mut syncs = tokio::task::JoinSet::<()>::new();
    for number in 0..Limits::of(Class::Agent).lists {
        let mut client = EntryClient::new(channels[number % 2].clone());
        // Conversations in which the agent says nothing; the server ends each after a while.
        syncs.spawn(async move {
            loop {
                stays_silent(&mut client).await;
            }
        });
    }
    let list = GetAuthorizedEntriesRequest::default;
    let mut client = EntryClient::new(channels[0].clone());
    let refused = loop {
        // Answered until the last of the conversations has reached the server.
        if let Err(refused) = client.get_authorized_entries(list()).await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Grpc::ResourceExhausted, "{refused}");
    let fresh = EntryClient::new(server.remote(Some(&greedy)).await)
        .get_authorized_entries(list())
        .await
        .unwrap_err();
    assert_eq!(
        fresh.code(),
        Grpc::ResourceExhausted,
        "by any connection: {fresh}"
    );

    let mut bundles = BundleClient::new(channels[0].clone());
    bundles
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
    let mut others = EntryClient::new(server.remote(Some(&other)).await);
    others.get_authorized_entries(list()).await.unwrap();
    // Room again as soon as the server knows that one is gone.
    syncs.abort_all();
    while client.get_authorized_entries(list()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn answers_probes_beside_hundreds_of_idle_connections() {
    let server = TestServer::start_with(|config| {
        config.health = Some(HealthConfig {
            bind_address: "0.0.0.0".to_owned(),
            bind_port: 0,
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        });
    })
    .await;
    let address = server.health.clone().unwrap();
    let port = address.rsplit_once(':').unwrap().1;
    let mut idle = Vec::new();
    for host in 1..=40 {
        for _ in 0..10 {
            let from = tokio::net::TcpSocket::new_v4().unwrap();
            from.bind(format!("127.0.0.{host}:0").parse().unwrap())
                .unwrap();
            let to = format!("127.0.0.1:{port}").parse().unwrap();
            let mut stream = from.connect(to).await.unwrap();
            // The server may have hung up on it already.
            drop(stream.write_all(b"GET /live HTTP/1.1\r\n").await);
            idle.push(stream);
        }
    }
    let mut probe = TcpStream::connect(format!("127.0.0.1:{port}"))
        .await
        .unwrap();
    probe
        .write_all(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let answered = tokio::time::timeout(Duration::from_secs(4), probe.read_to_string(&mut answer));
    answered
        .await
        .expect("before any idle connection times out")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Opens a conversation and says nothing until the server ends it.
async fn stays_silent(client: &mut EntryClient<Channel>) {
    let silent = tokio_stream::pending();
    if let Err(ended) = client.sync_authorized_entries(silent).await {
        tracing::trace!(%ended, "conversation");
    }
}

/// A request for `count` SVIDs that is as large as a message may be.
fn large_batch(count: usize) -> BatchNewX509svidRequest {
    let param = NewX509svidParams {
        entry_id: String::new(),
        csr: vec![7; 4_150_000 / count],
    };
    BatchNewX509svidRequest {
        params: vec![param; count],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_few_batches_of_an_agent_that_wait_for_their_turn_however_many_it_sends() {
    let server = TestServer::start_with(|config| config.rate_limits.signing = true).await;
    let node = server.agent().await;
    let channel = server.remote(Some(&node)).await;
    let mut calls = tokio::task::JoinSet::new();
    // Each waits for a second more than the one before.
    for _ in 0..40 {
        let mut client = SvidClient::new(channel.clone());
        calls.spawn(async move { client.batch_new_x509svid(large_batch(500)).await });
    }
    let fit = Limits::of(Class::Agent).bytes / large_batch(500).encoded_len();
    assert_eq!(fit, 4);
    let mut refused = 0;
    while refused < 30 {
        if let Err(status) = calls.join_next().await.unwrap().unwrap() {
            assert_eq!(status.code(), Grpc::ResourceExhausted, "{status}");
            let full = "too many bytes of requests";
            assert!(status.message().contains(full), "{status}");
            refused += 1;
        }
    }
    // What they held is free again when their caller has gone.
    drop(calls);
    let mut client = SvidClient::new(channel);
    while let Err(status) = client.batch_new_x509svid(large_batch(1)).await {
        assert_eq!(status.code(), Grpc::ResourceExhausted, "{status}");
    }
}
