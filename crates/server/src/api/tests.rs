//! The boundary: whatever becomes of a call, the audit trail has one event of it.

mod audit_names;
mod requests;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use proto::spire::api::server::svid;
use spiffe::key::{KeyPair, KeyType};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

use super::*;
use crate::audit::tests::Recording;
use crate::audit::{Event, EventKind, Outcome};
use crate::authz::{Allowed, rows};
use crate::testing::{Identity, TestServer, attestation, csr, identity};

/// Messages as bytes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Makes one call and reads its answer, of a subscription only the first message.
async fn call(channel: Channel, row: &Row, message: Bytes) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(row.method);
    let request = tonic::Request::new(tokio_stream::once(message));
    let mut answers = client.streaming(request, path, Raw).await?.into_inner();
    while answers.message().await?.is_some() {
        if row.lifetime == Lifetime::Subscription {
            break;
        }
    }
    Ok(())
}

/// A server with one caller of each class.
struct Fixture {
    server: TestServer,
    sink: Arc<Recording>,
    agent: Identity,
    downstream: Identity,
    entry_id: String,
}

impl Fixture {
    async fn new() -> Self {
        let sink = Arc::new(Recording::default());
        let server = TestServer::start_audited(Arc::<Recording>::clone(&sink)).await;
        let agent = server.agent().await;
        let mut below = crate::testing::entry(agent.id.path(), "/below");
        below.downstream = true;
        let entry_id = server.create(below).await.id;
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let request = svid::v1::BatchNewX509svidRequest {
            params: vec![svid::v1::NewX509svidParams {
                entry_id: entry_id.clone(),
                csr: csr(&key),
            }],
        };
        let mut client = svid::v1::svid_client::SvidClient::new(server.remote(Some(&agent)).await);
        let answer = client.batch_new_x509svid(request).await.unwrap();
        let issued = answer.into_inner().results.remove(0).svid.unwrap();
        let downstream = identity(key, issued);
        sink.take();
        Self {
            server,
            sink,
            agent,
            downstream,
            entry_id,
        }
    }

    /// A caller that the method lets in.
    async fn entitled(&self, row: &Row) -> Channel {
        let channel = if row.allowed.lets_in(Allowed::LOCAL) {
            self.server.local().await
        } else if row.allowed.lets_in(Allowed::AGENT) {
            self.server.remote(Some(&self.agent)).await
        } else if row.allowed.lets_in(Allowed::DOWNSTREAM) {
            self.server.remote(Some(&self.downstream)).await
        } else {
            return self.unauthenticated().await;
        };
        self.sink.take();
        channel
    }

    /// A caller without an identity. (To connect, the test asks for the bundle, which is an event, too.)
    async fn unauthenticated(&self) -> Channel {
        let channel = self.server.remote(None).await;
        self.sink.take();
        channel
    }

    /// The single event of the call that just ended, and the documents that it let out.
    fn event(&self, row: &Row, about: &str) -> (Event, usize) {
        let events = self.sink.take();
        let (calls, documents): (Vec<Event>, Vec<Event>) = events
            .into_iter()
            .partition(|event| matches!(event.kind, EventKind::Call { .. }));
        assert_eq!(calls.len(), 1, "{} {about}: {calls:?}", row.method);
        let event = calls.into_iter().next().unwrap();
        assert!(
            row.method.ends_with(&format!("/{}", event.call.method)),
            "{event:?}"
        );
        (event, documents.len())
    }
}

/// Methods that refuse even a right request, and with which code.
fn refused_for_now(row: &Row) -> Option<&'static str> {
    let (service, method) = row.names();
    match method {
        "BatchNewWITSVID" => None,
        "BatchCreateFederationRelationship" | "BatchUpdateFederationRelationship" | "List"
            if !service.ends_with("Entry") =>
        {
            Some("Unimplemented")
        }
        "RefreshBundle" => Some("InvalidArgument"),
        "GetFederationRelationship" => Some("NotFound"),
        "GetLogger" | "SetLogLevel" | "ResetLogLevel" => Some("Unimplemented"),
        "TaintX509UpstreamAuthority" | "RevokeX509UpstreamAuthority" => Some("FailedPrecondition"),
        _ if method.contains("WIT") => Some("Unimplemented"),
        _ => None,
    }
}

#[tokio::test]
async fn every_method_leaves_one_event_when_it_is_granted() {
    let fixture = Fixture::new().await;
    for row in rows() {
        let message = fixture.granted(row).await;
        let caller = fixture.entitled(row).await;
        let answered = call(caller, row, message).await;
        let (event, documents) = fixture.event(row, "granted");
        let EventKind::Call {
            outcome,
            documents: counted,
            ..
        } = event.kind
        else {
            panic!("no call")
        };
        assert_eq!(documents, counted, "{}", row.method);
        match (outcome, refused_for_now(row)) {
            (Outcome::Success, None) => answered.unwrap(),
            (Outcome::Error { code, .. }, Some(expected)) => {
                assert_eq!(code, expected, "{}", row.method);
                answered.unwrap_err();
            }
            (outcome, _) => panic!("{}: {outcome:?} {answered:?}", row.method),
        }
    }
}

#[tokio::test]
async fn every_method_leaves_one_event_when_it_is_denied() {
    let fixture = Fixture::new().await;
    for row in rows() {
        let message = if row.method.ends_with("/AttestAgent") {
            let key = KeyPair::generate(KeyType::EcP256).unwrap();
            attestation("no such token", csr(&key)).encode_to_vec()
        } else {
            Vec::new()
        };
        if row.method.ends_with("/GetBundle") {
            // Nobody is denied it.
            continue;
        }
        let refused = call(fixture.unauthenticated().await, row, message.into())
            .await
            .unwrap_err();
        let (event, documents) = fixture.event(row, "denied");
        assert_eq!(documents, 0);
        let EventKind::Call { outcome, .. } = event.kind else {
            panic!("no call")
        };
        let Outcome::Error { code, message } = outcome else {
            panic!("{} is open", row.method)
        };
        assert_eq!(message, refused.message());
        let expected = match row.names() {
            (service, _) if is_local_service(service) => "Unimplemented",
            (_, "AttestAgent") => "InvalidArgument",
            _ => "PermissionDenied",
        };
        assert_eq!(code, expected, "{}", row.method);
    }
}

#[tokio::test]
async fn every_method_leaves_one_event_when_its_request_cannot_be_read() {
    let fixture = Fixture::new().await;
    for row in rows() {
        let garbage = Bytes::from_static(&[0xff; 12]);
        let caller = fixture.entitled(row).await;
        call(caller, row, garbage).await.unwrap_err();
        let (event, documents) = fixture.event(row, "malformed");
        assert_eq!(documents, 0);
        let EventKind::Call { outcome, .. } = event.kind else {
            panic!("no call")
        };
        assert!(outcome.is_error(), "{}: {outcome:?}", row.method);
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_leaves_one_event() {
    let fixture = Fixture::new().await;
    let row = Row {
        method: "/a.B/C",
        allowed: Allowed::ANY,
        lifetime: Lifetime::Unary,
    };
    let refused = call(fixture.unauthenticated().await, &row, Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let events = fixture.sink.take();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].call.method, "/a.B/C");
}

/// A log switch that fails as nothing may.
#[derive(Debug)]
struct Panicking;

impl crate::LogControl for Panicking {
    fn level(&self) -> tracing::Level {
        tracing::Level::INFO
    }

    fn set_level(&self, _: tracing::Level) {
        panic!("a fault of the server")
    }
}

#[tokio::test]
async fn a_handler_that_panics_leaves_one_event_and_the_connection_goes_on() {
    let sink = Arc::new(Recording::default());
    let audit = Arc::<Recording>::clone(&sink);
    let server = TestServer::start_in(
        |_| {},
        |environment| {
            environment.audit = Some(audit);
            environment.log = Some(Arc::new(Panicking));
        },
    )
    .await;
    let channel = server.local().await;
    sink.take();
    let reset = row("/spire.api.server.logger.v1.Logger/ResetLogLevel").unwrap();
    let failed = call(channel.clone(), reset, Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::Internal);
    let look = row("/spire.api.server.logger.v1.Logger/GetLogger").unwrap();
    call(channel, look, Bytes::new()).await.unwrap();
    let codes: Vec<_> = sink.take().iter().map(code).collect();
    assert_eq!(codes, ["Internal", "OK"]);
}

/// The code of a call's event.
fn code(event: &Event) -> &'static str {
    match &event.kind {
        EventKind::Call {
            outcome: Outcome::Error { code, .. },
            ..
        } => code,
        EventKind::Call { .. } => "OK",
        EventKind::Document { .. } => "a document",
    }
}

fn limited(sink: &Arc<Recording>) -> impl Future<Output = TestServer> + use<> {
    let audit = Arc::<Recording>::clone(sink);
    TestServer::start_in(
        |config| {
            config.rate_limits = crate::config::RateLimitConfig {
                attestation: true,
                signing: true,
            };
        },
        |environment| environment.audit = Some(audit),
    )
}

#[tokio::test]
async fn a_call_beyond_its_rate_limit_leaves_one_event() {
    let sink = Arc::new(Recording::default());
    let server = limited(&sink).await;
    let agent = server.agent().await;
    let request = svid::v1::BatchNewX509svidRequest {
        params: vec![svid::v1::NewX509svidParams::default(); 501],
    };
    let mut client = svid::v1::svid_client::SvidClient::new(server.remote(Some(&agent)).await);
    sink.take();
    let refused = client.batch_new_x509svid(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let codes: Vec<_> = sink.take().iter().map(code).collect();
    assert_eq!(codes, ["ResourceExhausted"]);
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_answer_leaves_one_event() {
    let sink = Arc::new(Recording::default());
    let server = limited(&sink).await;
    let unauthenticated = server.remote(None).await;
    sink.take();
    let attest = row(ATTEST_AGENT).unwrap();
    // The second attestation of a second waits for its turn.
    let first = call(unauthenticated.clone(), attest, Bytes::new());
    first.await.unwrap_err();
    let second = tokio::spawn(call(unauthenticated, attest, Bytes::new()));
    tokio::task::yield_now().await;
    let mut codes: Vec<&str> = Vec::new();
    second.abort();
    while codes.len() < 2 {
        tokio::task::yield_now().await;
        codes.extend(sink.take().iter().map(code));
    }
    assert_eq!(codes, ["InvalidArgument", "Canceled"]);
}

#[tokio::test]
async fn answers_no_call_as_done_whose_event_was_not_kept() {
    let fixture = Fixture::new().await;
    let row = row("/spire.api.server.entry.v1.Entry/CountEntries").unwrap();
    fixture.sink.fail(true);
    let refused = call(fixture.server.local().await, row, Bytes::new())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    fixture.sink.fail(false);
    call(fixture.server.local().await, row, Bytes::new())
        .await
        .unwrap();
}
