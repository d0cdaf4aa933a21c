//! AttestAgent on the wire: a stream on which a node attestor may ask the node for more before it decides.
//!
//! The attestor's budget bounds the conversation in time, bytes and checks. It runs in a task of its own, so that its time
//! also passes for a node that stops reading; the task ends with the stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use plugin::node_attestor::server::Transport;
use plugin::{Error as PluginError, ErrorKind};
use proto::spire::api::server::agent::v1::{
    AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response,
};
use spiffe::secret::Secret;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::api::request_body::BODY_TIMEOUT;
use crate::api::wire;
use crate::caller::Caller;
use crate::error::{Kind, OpError, failed, refused};
use crate::ops::attestations::{AttestationRequest, Attestations};

type Step = attest_agent_response::Step;

/// Begins the conversation. The first answer, or the refusal, is there when this returns.
pub(super) async fn begin(
    caller: Caller,
    mut requests: Streaming<AttestAgentRequest>,
    attestations: Arc<Attestations>,
) -> Result<Answers, OpError> {
    let request = first(&mut requests).await?;
    let (challenges, mut answers) = mpsc::channel(1);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut transport = Wire {
            challenges: challenges.clone(),
            requests,
        };
        let attested = attestations.attest(&caller, request, &mut transport).await;
        let last = attested.map(|attested| {
            Step::Result(attest_agent_response::Result {
                svid: Some(wire::x509_svid(&attested.svid)),
                reattestable: attested.can_reattest,
            })
        });
        // A node that went away is not answered; what it was issued was recorded.
        drop(challenges.send(last).await);
    });
    let first = answers.recv().await.unwrap_or_else(|| {
        Err(refused(
            Kind::Internal,
            "the attestation ended without an answer; this is a fault of the server",
        ))
    })?;
    Ok(Answers {
        first: Some(first),
        rest: answers,
        _task: task,
    })
}

async fn first(
    requests: &mut Streaming<AttestAgentRequest>,
) -> Result<AttestationRequest, OpError> {
    const FAILED: &str = "failed to receive request from stream";
    let received = tokio::time::timeout(BODY_TIMEOUT, requests.message())
        .await
        .map_err(|_elapsed| {
            let late = format!(
                "the request did not arrive within {} s",
                BODY_TIMEOUT.as_secs()
            );
            failed(Kind::InvalidArgument, FAILED, late)
        })?
        .map_err(|error| failed(Kind::InvalidArgument, FAILED, error.message()))?;
    let request = received.ok_or_else(|| failed(Kind::InvalidArgument, FAILED, "EOF"))?;
    attestation_request(request)
        .map_err(|missing| failed(Kind::InvalidArgument, "malformed param", missing))
}

fn attestation_request(request: AttestAgentRequest) -> Result<AttestationRequest, &'static str> {
    let Some(attest_agent_request::Step::Params(params)) = request.step else {
        return Err("missing params");
    };
    let data = params.data.ok_or("missing attestation data")?;
    let svid = params.params.ok_or("missing X509-SVID parameters")?;
    if svid.csr.is_empty() {
        return Err("missing CSR");
    }
    if data.r#type.is_empty() {
        return Err("missing attestation data type");
    }
    if data.payload.is_empty() {
        return Err("missing attestation data payload");
    }
    Ok(AttestationRequest {
        attestor: data.r#type,
        payload: Secret::new(data.payload),
        csr: svid.csr,
    })
}

/// The node, as the attestor sees it.
struct Wire {
    challenges: mpsc::Sender<Result<Step, OpError>>,
    requests: Streaming<AttestAgentRequest>,
}

#[async_trait]
impl Transport for Wire {
    async fn exchange(&mut self, challenge: Vec<u8>) -> Result<Secret<Vec<u8>>, PluginError> {
        let gone = |what: &'static str| PluginError::new("server", ErrorKind::Permanent, what);
        self.challenges
            .send(Ok(Step::Challenge(challenge)))
            .await
            .map_err(|_closed| gone("the node left before it answered the challenge"))?;
        match self.requests.message().await {
            Ok(Some(AttestAgentRequest {
                step: Some(attest_agent_request::Step::ChallengeResponse(answer)),
            })) => Ok(Secret::new(answer)),
            Ok(Some(_)) => Err(gone("expected a challenge response")),
            Ok(None) | Err(_) => Err(gone("the node left before it answered the challenge")),
        }
    }
}

/// The server's side of the stream.
pub(crate) struct Answers {
    first: Option<Step>,
    rest: mpsc::Receiver<Result<Step, OpError>>,
    /// Ends with the stream.
    _task: JoinSet<()>,
}

impl Stream for Answers {
    type Item = Result<AttestAgentResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = |step| AttestAgentResponse { step: Some(step) };
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(answer(first))));
        }
        self.rest
            .poll_recv(context)
            .map(|next| next.map(|next| next.map(answer).map_err(Status::from)))
    }
}

#[cfg(test)]
mod tests;
