//! The calls that the agent makes to its server, each with a deadline and with an answer in our own types.
//!
//! It decides nothing: what an error means for the node is in [`ClientError`], what to do about it is the sync task's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::{CallError, Telemetry};
use plugin::node_attestor::agent::Attempt;
use plugin::node_attestor::{MAX_CHALLENGES, MAX_MESSAGE as MAX_MESSAGE_OF_PLUGIN, TIME_LIMIT};
use proto::convert::ReceivedBundle;
use proto::plastron::server::v1::watch_client::WatchClient;
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use proto::spire::api::server::agent::v1 as agent_v1;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{GetBundleRequest, GetFederatedBundleRequest};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use spiffe::clock::from_unix;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::KeyPair;
use spiffe::secret::Secret;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

mod entries;
mod error;
pub(crate) mod issued;

pub(crate) use entries::{Known, WireEntries};
pub(crate) use error::{ClientError, Refusal};

use crate::cache::jwt::JwtToken;
use crate::cache::svids::IssuedSvid;
use crate::metrics::SERVER_CALL;
use issued::{AgentSvid, chain_facts};

/// SPIRE: client, rpcTimeout.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest message taken from the server: a batch of 500 SVIDs with long chains is below it.
const MAX_MESSAGE: usize = 16 << 20;

/// A challenge, or the SVID with its chain.
const MAX_ATTESTATION_MESSAGE: usize = 1 << 20;

/// Why an attestation brought no SVID.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestError {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The plugin could not answer a challenge.
    #[error(transparent)]
    Plugin(#[from] plugin::Error),
}

/// One connection to the server, authenticated as this node or, before attestation, without a client certificate.
#[derive(Debug, Clone)]
pub(crate) struct ServerClient {
    channel: Channel,
    telemetry: Telemetry,
}

/// A key and the entry that an SVID is wanted for.
#[derive(Debug)]
pub(crate) struct SvidRequest {
    pub(crate) entry: Arc<Entry>,
    pub(crate) key: KeyPair,
    pub(crate) csr: Vec<u8>,
}

/// What came of a batch: the SVIDs, and the entries that got none.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) issued: Vec<IssuedSvid>,
    pub(crate) refused: Vec<Arc<str>>,
}

impl ServerClient {
    pub(crate) fn new(channel: Channel, telemetry: Telemetry) -> Self {
        Self { channel, telemetry }
    }

    /// Proves who the node is and gets its SVID: `proof` gives the payload and the answers to the server's challenges.
    pub(crate) async fn attest(
        &self,
        attestor: &str,
        proof: &mut dyn Attempt,
        csr: Vec<u8>,
    ) -> Result<AgentSvid, AttestError> {
        let timer = self.telemetry.start(&SERVER_CALL, ["AttestAgent"]);
        let outcome = tokio::time::timeout(TIME_LIMIT, self.converse(attestor, proof, csr))
            .await
            .unwrap_or_else(|_elapsed| Err(ClientError::timed_out().into()));
        timer.end_with(&outcome);
        outcome
    }

    async fn converse(
        &self,
        attestor: &str,
        proof: &mut dyn Attempt,
        csr: Vec<u8>,
    ) -> Result<AgentSvid, AttestError> {
        use agent_v1::attest_agent_request::{Params, Step};
        use agent_v1::attest_agent_response::Step as Answer;
        let params = Params {
            data: Some(proto::spire::api::types::AttestationData {
                r#type: attestor.to_owned(),
                payload: proof.payload().expose().clone(),
            }),
            params: Some(agent_v1::AgentX509svidParams { csr }),
        };
        let (steps, outgoing) = mpsc::channel(1);
        let send = async |step| {
            let request = agent_v1::AttestAgentRequest { step: Some(step) };
            // A server that ended the stream says why in its answer.
            steps.send(request).await.ok();
        };
        send(Step::Params(params)).await;
        let mut client = AgentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ATTESTATION_MESSAGE);
        let mut answers = client
            .attest_agent(ReceiverStream::new(outgoing))
            .await
            .map_err(ClientError::from)?
            .into_inner();
        for _challenge in 0..=MAX_CHALLENGES {
            let answer = answers.message().await.map_err(ClientError::from)?;
            match answer.and_then(|answer| answer.step) {
                Some(Answer::Result(result)) => {
                    let svid = result
                        .svid
                        .ok_or_else(|| ClientError::malformed("attestation result without SVID"))?;
                    return Ok(AgentSvid::new(&svid.cert_chain, result.reattestable)?);
                }
                Some(Answer::Challenge(challenge)) if challenge.len() <= MAX_MESSAGE_OF_PLUGIN => {
                    let response = proof.answer(&challenge).await?;
                    send(Step::ChallengeResponse(response.expose().clone())).await;
                }
                Some(Answer::Challenge(_)) => {
                    return Err(ClientError::malformed(
                        "server sent a challenge that is too large",
                    )
                    .into());
                }
                None => {
                    return Err(ClientError::malformed(
                        "server ended the attestation without a result",
                    )
                    .into());
                }
            }
        }
        Err(ClientError::malformed("server sent too many challenges").into())
    }

    /// A new SVID for this node.
    pub(crate) async fn renew_agent(&self, csr: Vec<u8>) -> Result<AgentSvid, ClientError> {
        let request = agent_v1::RenewAgentRequest {
            params: Some(agent_v1::AgentX509svidParams { csr }),
        };
        let answer = self
            .call(
                "RenewAgent",
                AgentClient::new(self.channel.clone()).renew_agent(request),
            )
            .await?
            .into_inner();
        let svid = answer
            .svid
            .ok_or_else(|| ClientError::malformed("renewal without SVID"))?;
        AgentSvid::new(&svid.cert_chain, false)
    }

    pub(crate) async fn post_status(&self, agent_version: &str) -> Result<(), ClientError> {
        let request = agent_v1::PostStatusRequest {
            agent_version: agent_version.to_owned(),
            ..Default::default()
        };
        self.call(
            "PostStatus",
            AgentClient::new(self.channel.clone()).post_status(request),
        )
        .await?;
        Ok(())
    }

    /// The bundle of the server's trust domain.
    pub(crate) async fn bundle(&self) -> Result<ReceivedBundle, ClientError> {
        let mut client =
            BundleClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let answer = self
            .call("GetBundle", client.get_bundle(GetBundleRequest::default()))
            .await?
            .into_inner();
        proto::convert::bundle_from_server(&answer).map_err(ClientError::malformed)
    }

    /// Another trust domain's bundle, nothing if the server has none.
    pub(crate) async fn federated_bundle(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<ReceivedBundle>, ClientError> {
        let mut client =
            BundleClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let request = GetFederatedBundleRequest {
            trust_domain: trust_domain.as_str().to_owned(),
            output_mask: None,
        };
        let answer = self.call("GetFederatedBundle", client.get_federated_bundle(request));
        match answer.await {
            Ok(answer) => proto::convert::bundle_from_server(answer.get_ref())
                .map(Some)
                .map_err(ClientError::malformed),
            Err(ClientError::Refused(Refusal::NotFound, _)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// X509-SVIDs for up to 500 entries in one call.
    pub(crate) async fn new_x509_svids(
        &self,
        requests: Vec<SvidRequest>,
    ) -> Result<Batch, ClientError> {
        let params = requests
            .iter()
            .map(|request| NewX509svidParams {
                entry_id: request.entry.id.to_string(),
                csr: request.csr.clone(),
            })
            .collect();
        let mut client = SvidClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let answer = self
            .call(
                "BatchNewX509SVID",
                client.batch_new_x509svid(BatchNewX509svidRequest { params }),
            )
            .await?
            .into_inner();
        if answer.results.len() != requests.len() {
            return Err(ClientError::malformed(format!(
                "{} results for {} signing requests",
                answer.results.len(),
                requests.len()
            )));
        }
        let mut batch = Batch::default();
        for (request, result) in requests.into_iter().zip(answer.results) {
            let status = result.status.unwrap_or_default();
            let chain = result.svid.map(|svid| svid.cert_chain).unwrap_or_default();
            match accept(&request, status.code, chain) {
                Ok(svid) => batch.issued.push(svid),
                Err(because) => {
                    tracing::warn!(entry = %request.entry.id, spiffe_id = %request.entry.spiffe_id, %because, server = %status.message, "X509-SVID not issued");
                    batch.refused.push(Arc::clone(&request.entry.id));
                }
            }
        }
        Ok(batch)
    }

    /// A JWT-SVID for an entry, and the identity that the server put into it.
    pub(crate) async fn new_jwt_svid(
        &self,
        entry_id: &str,
        audience: Vec<String>,
    ) -> Result<(SpiffeId, JwtToken), ClientError> {
        let request = NewJwtsvidRequest {
            entry_id: entry_id.to_owned(),
            audience,
        };
        let answer = self
            .call(
                "NewJWTSVID",
                SvidClient::new(self.channel.clone()).new_jwtsvid(request),
            )
            .await?
            .into_inner();
        let svid = answer
            .svid
            .ok_or_else(|| ClientError::malformed("JWT-SVID response missing SVID"))?;
        let spiffe_id = proto::convert::spiffe_id_from_wire(svid.id.as_ref())
            .map_err(ClientError::malformed)?;
        if svid.issued_at <= 0 || svid.expires_at <= 0 || svid.issued_at > svid.expires_at {
            return Err(ClientError::malformed(
                "JWT-SVID with a lifetime that makes no sense",
            ));
        }
        let key_id = issued::jwt_key_id(&svid.token);
        let token = JwtToken {
            token: Secret::new(svid.token),
            issued_at: from_unix(svid.issued_at),
            expires_at: from_unix(svid.expires_at),
            key_id,
        };
        Ok((spiffe_id, token))
    }

    /// Opens the stream of changes since `cursor` of `epoch`.
    pub(crate) async fn watch(
        &self,
        cursor: u64,
        epoch: &str,
        agent_version: &str,
    ) -> Result<tonic::Streaming<WatchEvent>, ClientError> {
        let request = WatchRequest {
            cursor,
            epoch: epoch.to_owned(),
            agent_version: agent_version.to_owned(),
        };
        let mut client =
            WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        Ok(self
            .call("Watch", client.watch(request))
            .await?
            .into_inner())
    }

    /// SPIRE's sync: what of `known` is still authorized, and every entry that is new or changed.
    pub(crate) async fn sync_entries(
        &self,
        known: &BTreeMap<Arc<str>, Known>,
    ) -> Result<WireEntries, ClientError> {
        self.call(
            "SyncAuthorizedEntries",
            entries::sync(self.channel.clone(), known),
        )
        .await
    }

    /// One call with its deadline, measured.
    async fn call<T, E: Into<ClientError>>(
        &self,
        method: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ClientError> {
        let timer = self.telemetry.start(&SERVER_CALL, [method]);
        let outcome = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_elapsed) => Err(ClientError::timed_out()),
        };
        timer.end_with(&outcome);
        outcome
    }
}

impl CallError for AttestError {
    fn status(&self) -> &'static str {
        match self {
            Self::Client(error) => error.status(),
            Self::Plugin(_) => "Aborted",
        }
    }
}

/// Takes an SVID only if it is what was requested: for the entry's identity and for our key.
fn accept(request: &SvidRequest, code: i32, chain: Vec<Vec<u8>>) -> Result<IssuedSvid, String> {
    if code != 0 {
        return Err(format!("server answered {}", tonic::Code::from_i32(code)));
    }
    let facts = chain_facts(&chain)?;
    if facts.spiffe_id != request.entry.spiffe_id {
        return Err(format!("server issued {} instead", facts.spiffe_id));
    }
    if facts.public_key != *request.key.public_key() {
        return Err("server issued it for another key".to_owned());
    }
    let key = request
        .key
        .to_pkcs8_der()
        .map_err(|error| error.to_string())?;
    Ok(IssuedSvid {
        entry_id: Arc::clone(&request.entry.id),
        revision: request.entry.revision_number,
        spiffe_id: facts.spiffe_id,
        chain: chain.into_iter().map(Arc::from).collect(),
        key: Arc::new(key),
        not_before: facts.not_before,
        not_after: facts.not_after,
        issuers: facts.issuers,
    })
}
