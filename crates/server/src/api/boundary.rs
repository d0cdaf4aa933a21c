//! The end of every call: how it ended is read from the response itself and recorded before the response leaves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use daemon::telemetry::Timer;
use http::{HeaderMap, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::RefusedAttestations;
use crate::audit::{AuditCaller, CallContext, CallRecord, Outcome, Unfinished};
use crate::authz::{Lifetime, Row};
use crate::caller::Connection;
use crate::principal::Principal;

/// As much of an unknown method's path as an audit event keeps: the caller made it up.
const MAX_UNKNOWN_PATH: usize = 128;

/// A call's labels in the telemetry. What a peer made up is not among them.
pub(super) fn labels(row: Option<&'static Row>) -> [&'static str; 2] {
    let (service, method) = row.map_or(("unknown", "unknown"), Row::names);
    [short(service), method]
}

/// SPIRE: services go by their last three parts, as in `svid.v1.SVID`.
fn short(service: &'static str) -> &'static str {
    service.strip_prefix("spire.api.server.").unwrap_or(service)
}

/// What the audit trail says of a call from its beginning.
pub(super) fn context(
    row: Option<&'static Row>,
    path: &str,
    connection: &Connection,
) -> CallContext {
    let (service, method) = match row {
        Some(row) => {
            let (service, method) = row.names();
            (short(service).to_owned(), method.to_owned())
        }
        None => (
            String::new(),
            path.chars()
                .take(MAX_UNKNOWN_PATH)
                .flat_map(char::escape_default)
                .collect(),
        ),
    };
    CallContext {
        request_id: uuid::Uuid::new_v4().to_string(),
        service,
        method,
        authorized_as: "nobody",
        authorized_via: "",
        caller: caller(connection),
    }
}

fn caller(connection: &Connection) -> AuditCaller {
    match connection.principal() {
        Principal::Local(peer) => {
            let path = peer.program();
            AuditCaller::Local {
                uid: peer.uid,
                gid: peer.gid,
                path: path.map(|path| path.display().to_string()),
            }
        }
        remote => AuditCaller::Remote {
            address: connection
                .address()
                .map(|address| address.to_string())
                .unwrap_or_default(),
            id: remote.svid().map(|svid| svid.id().clone()),
        },
    }
}

/// The answer to a call whose handler panicked. The panic itself was reported by the panic hook.
pub(super) fn panicked(record: &CallRecord) -> Response<Body> {
    let status = Status::internal(
        "the server failed while it handled the call; this is a fault of the server",
    );
    record.finish_now(Outcome::from(&status));
    status.into_http()
}

/// How a call ended, or for a stream, how it began.
pub(super) fn outcome(response: &Response<Body>) -> Outcome {
    outcome_in(response.headers())
}

/// From headers or trailers: gRPC has the same fields in both.
fn outcome_in(fields: &HeaderMap) -> Outcome {
    match Status::from_header_map(fields) {
        Some(status) if status.code() != Code::Ok => Outcome::from(&status),
        _ => Outcome::Success,
    }
}

/// Records how the call ended, then lets the response go. A conversation's end is recorded when its stream ends. A node attestation
/// is watched for a refusal even when nothing is audited.
pub(super) async fn conclude(
    response: Response<Body>,
    lifetime: Lifetime,
    unfinished: Unfinished,
    attestation: Option<AttestationCall>,
) -> Response<Body> {
    if !unfinished.0.is_enabled() && attestation.is_none() {
        return response;
    }
    let outcome = outcome(&response);
    let failed = outcome.is_error();
    if !failed && lifetime == Lifetime::Conversation {
        return response.map(|body| {
            Body::new(Recorded {
                body,
                unfinished,
                attestation,
            })
        });
    }
    if let Some(attestation) = attestation {
        attestation.ended(&outcome);
    }
    match unfinished.0.finish(outcome).await {
        Ok(()) => response,
        Err(error) => {
            tracing::error!(%error, "a call ended without its audit event");
            if failed {
                response
            } else {
                // What the call changed stays changed, but the caller must not take it for done.
                Status::unavailable(error.to_string()).into_http()
            }
        }
    }
}

/// Ends the measurement of a call with its answer, or of a conversation with its stream.
pub(super) fn measure(
    response: Response<Body>,
    lifetime: Lifetime,
    timer: Timer<'static, 2>,
) -> Response<Body> {
    if !timer.is_running() {
        return response;
    }
    let outcome = outcome(&response);
    if lifetime == Lifetime::Conversation && !outcome.is_error() {
        let timer = Some(timer);
        return response.map(|body| Body::new(Measured { body, timer }));
    }
    timer.end(outcome.code());
    response
}

/// The stream of a conversation that is measured.
struct Measured {
    body: Body,
    timer: Option<Timer<'static, 2>>,
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Some(outcome) = end_of(&frame)
            && let Some(timer) = self.timer.take()
        {
            timer.end(outcome.code());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How a stream ended, if it did with this frame.
fn end_of(frame: &Poll<Option<Result<Frame<Bytes>, Status>>>) -> Option<Outcome> {
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.trailers_ref().map(outcome_in),
        Poll::Ready(Some(Err(status))) => Some(Outcome::from(status)),
        Poll::Ready(None) => Some(Outcome::Success),
        Poll::Pending => None,
    }
}

/// The stream of a conversation, whose last frame says how the call ended.
struct Recorded {
    body: Body,
    unfinished: Unfinished,
    attestation: Option<AttestationCall>,
}

/// A node's call to be attested; the operator is warned when it is refused.
pub(super) struct AttestationCall {
    pub(super) refused: Arc<RefusedAttestations>,
    pub(super) connection: Arc<Connection>,
}

impl AttestationCall {
    fn ended(&self, outcome: &Outcome) {
        self.refused.warn(&self.connection, outcome);
    }
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Some(outcome) = end_of(&frame) {
            if let Some(attestation) = self.attestation.take() {
                attestation.ended(&outcome);
            }
            self.unfinished.0.finish_now(outcome);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
