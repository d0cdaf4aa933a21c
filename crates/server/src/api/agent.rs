//! The Agent service: attesting and renewing nodes, and keeping their list.

use std::sync::Arc;

use config::fault::Code;
use plugin::builtin::node_attestor::JOIN_TOKEN;
use proto::convert::{
    agent_id_from_wire, selectors_to_wire, spiffe_id_to_wire, workload_id_from_wire,
};
use proto::spire::api::server::agent::v1::agent_server::Agent as AgentApi;
use proto::spire::api::server::agent::v1::{
    self as rpc, attest_agent_request, attest_agent_response,
};
use proto::spire::api::types::{self, AgentMask};
use spiffe::clock::{Clock, unix_seconds};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;
use tonic::{Request, Response, Status, Streaming};

use super::wire;
use crate::attest::{Attestation, requested_key};
use crate::audit::Fields;
use crate::ca::{Ca, Grant, IssuedX509};
use crate::caller::Caller;
use crate::datastore::{AgentWriteError, Datastore, JoinToken, TokenError};
use crate::error::{AgentRefusal, Kind, OpError, failed, malformed, refused, write_failed};
use crate::ratelimit::RateLimits;
use crate::registry::{Agent, AgentPatch, Registry};

mod filter;
#[cfg(test)]
mod tests;

/// SPIRE: the version's column width.
const MAX_VERSION: usize = 255;
/// The longest token that fits an ID's path segment with room to spare.
const MAX_TOKEN: usize = 255;

#[derive(Debug)]
pub(crate) struct AgentService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) datastore: Datastore,
    pub(crate) ca: Arc<Ca>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) attestation: Attestation,
}

#[tonic::async_trait]
impl AgentApi for AgentService {
    async fn count_agents(
        &self,
        request: Request<rpc::CountAgentsRequest>,
    ) -> Result<Response<rpc::CountAgentsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let filter = request
            .into_inner()
            .filter
            .map(filter::Wire::from)
            .unwrap_or_default();
        caller.describe(|| filter.audit_fields());
        let count = self.registry.agent_count(&filter.read()?);
        Ok(Response::new(rpc::CountAgentsResponse {
            count: wire::count(count),
        }))
    }

    async fn list_agents(
        &self,
        request: Request<rpc::ListAgentsRequest>,
    ) -> Result<Response<rpc::ListAgentsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let filter = request.filter.map(filter::Wire::from).unwrap_or_default();
        caller.describe(|| filter.audit_fields());
        let listed = self
            .registry
            .agents(
                &filter.read()?,
                &wire::page(request.page_size, &request.page_token),
            )
            .map_err(|error| failed(Kind::InvalidArgument, "failed to list agents", error))?;
        let mask = request.output_mask.as_ref();
        let agents = listed
            .items
            .iter()
            .map(|agent| agent_to_wire(agent, mask))
            .collect();
        Ok(Response::new(rpc::ListAgentsResponse {
            agents,
            next_page_token: listed.next_token,
        }))
    }

    async fn get_agent(
        &self,
        request: Request<rpc::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let id = self.agent_id(request.id.as_ref())?;
        caller.describe(|| Fields::new().with("spiffe_id", &id));
        let found = self.registry.agent(&id).ok_or_else(|| {
            refused(Kind::NotFound, "agent not found").with_code(Code::AgentNotFound)
        })?;
        Ok(Response::new(agent_to_wire(
            &found,
            request.output_mask.as_ref(),
        )))
    }

    async fn delete_agent(
        &self,
        request: Request<rpc::DeleteAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        caller.describe(|| Fields::new().with("spiffe_id", &id));
        self.datastore
            .delete_agent(&id)
            .await
            .map_err(|error| agent_write_refusal(error, "failed to remove agent"))?;
        tracing::info!(spiffe_id = %id, "Agent deleted");
        Ok(Response::new(()))
    }

    async fn ban_agent(
        &self,
        request: Request<rpc::BanAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        caller.describe(|| Fields::new().with("spiffe_id", &id));
        self.datastore
            .ban_agent(&id)
            .await
            .map_err(|error| agent_write_refusal(error, "failed to ban agent"))?;
        tracing::info!(spiffe_id = %id, "Agent banned");
        Ok(Response::new(()))
    }

    type AttestAgentStream = tokio_stream::Once<Result<rpc::AttestAgentResponse, Status>>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<rpc::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .attest
            .take(&caller.connection, 1, "attest agent")
            .await?;
        let mut requests = request.into_inner();
        let first = requests
            .message()
            .await
            .map_err(|error| {
                failed(
                    Kind::InvalidArgument,
                    "failed to receive request from stream",
                    error.message(),
                )
            })?
            .ok_or_else(|| {
                refused(
                    Kind::InvalidArgument,
                    "failed to receive request from stream: EOF",
                )
            })?;
        let params = attestation_params(first)
            .map_err(|missing| failed(Kind::InvalidArgument, "malformed param", missing))?;
        let outcome = self.attest(&caller, &params).await;
        let step = Some(attest_agent_response::Step::Result(outcome?));
        Ok(Response::new(tokio_stream::once(Ok(
            rpc::AttestAgentResponse { step },
        ))))
    }

    async fn renew_agent(
        &self,
        request: Request<rpc::RenewAgentRequest>,
    ) -> Result<Response<rpc::RenewAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .x509_signing
            .take(&caller.connection, 1, "renew agent")
            .await?;
        caller.still_entitled()?;
        let svid = self.renew(&caller, request.into_inner()).await?;
        Ok(Response::new(rpc::RenewAgentResponse { svid: Some(svid) }))
    }

    async fn create_join_token(
        &self,
        request: Request<rpc::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| {
            Fields::new()
                .with("ttl", request.ttl)
                .with("spiffe_id", wire::id_text(request.agent_id.as_ref()))
        });
        Ok(Response::new(self.create_token(request).await?))
    }

    async fn post_status(
        &self,
        request: Request<rpc::PostStatusRequest>,
    ) -> Result<Response<rpc::PostStatusResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .post_status
            .take(&caller.connection, 1, "post status")
            .await?;
        caller.still_entitled()?;
        let id = &caller.agent()?.svid().id;
        let version = request.into_inner().agent_version;
        caller.describe(|| Fields::new().with("spiffe_id", id));
        if version.len() > MAX_VERSION {
            return Err(refused(
                Kind::InvalidArgument,
                "agent version is too long (max 255 characters)",
            )
            .into());
        }
        caller.describe(|| Fields::new().with("agent_version", &version));
        let known = self
            .registry
            .agent(id)
            .is_some_and(|agent| agent.agent_version == version);
        if !version.is_empty() && !known {
            self.patch(
                id,
                AgentPatch {
                    agent_version: Some(version.clone()),
                    ..AgentPatch::default()
                },
            )
            .await?;
        }
        Ok(Response::new(rpc::PostStatusResponse {}))
    }
}

impl AgentService {
    fn agent_id(&self, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, OpError> {
        agent_id_from_wire(&self.trust_domain, wire).map_err(malformed("invalid agent ID"))
    }

    async fn attest(
        &self,
        caller: &Caller,
        params: &attest_agent_request::Params,
    ) -> Result<attest_agent_response::Result, OpError> {
        let kind = params
            .data
            .as_ref()
            .map(|data| data.r#type.clone())
            .unwrap_or_default();
        let csr = params
            .params
            .as_ref()
            .map(|params| params.csr.as_slice())
            .unwrap_or_default();
        caller.describe(|| Fields::new().with("node_attestor_type", &kind));
        // Read before the token is spent, so that a broken request does not cost it.
        let key = requested_key(csr)?;
        let attested = self.attestation.attest(params).await?;
        let (id, reattestable) = (attested.id().clone(), attested.can_reattest());
        let grant = Grant::agent(&attested)
            .with_field("agent_id", &id)
            .with_field("node_attestor_type", kind);
        let issued = self.sign(caller, &grant, &key).await?;
        self.attestation
            .record(
                attested,
                issued.serial.clone(),
                unix_seconds(issued.not_after),
            )
            .await?;
        tracing::info!(agent_id = %id, "Agent attestation request completed");
        Ok(attest_agent_response::Result {
            svid: Some(wire::x509_svid(&issued)),
            reattestable,
        })
    }

    async fn sign(
        &self,
        caller: &Caller,
        grant: &Grant,
        key: &PublicKey,
    ) -> Result<IssuedX509, OpError> {
        self.ca
            .issue_x509(grant, key, &caller.record)
            .await
            .map_err(|error| failed(Kind::Internal, "failed to sign X509 SVID", error))
    }

    async fn renew(
        &self,
        caller: &Caller,
        request: rpc::RenewAgentRequest,
    ) -> Result<types::X509svid, OpError> {
        let caller_agent = caller.agent()?;
        let id = &caller_agent.id;
        caller.describe(|| Fields::new().with("spiffe_id", id));
        let agent = self.registry.agent(id).ok_or_else(|| {
            refused(Kind::NotFound, "agent not found").with_code(Code::AgentNotFound)
        })?;
        if agent.can_reattest {
            let refusal = "agent must reattest instead of renew";
            return Err(refused(Kind::PermissionDenied, refusal).agent(AgentRefusal::MustReattest));
        }
        let params = request
            .params
            .ok_or_else(|| refused(Kind::InvalidArgument, "params cannot be nil"))?;
        if params.csr.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing CSR"));
        }
        let key = requested_key(&params.csr)?;
        let grant = Grant::renewal(caller_agent).with_field("csr", wire::digest(&params.csr));
        let issued = self.sign(caller, &grant, &key).await?;
        let patch = AgentPatch {
            new_serial: Some(issued.serial.clone()),
            new_expires_at: Some(unix_seconds(issued.not_after)),
            ..AgentPatch::default()
        };
        self.patch(id, patch).await?;
        Ok(wire::x509_svid(&issued))
    }

    async fn patch(&self, id: &SpiffeId, patch: AgentPatch) -> Result<(), OpError> {
        let outcome = self.datastore.update_agent(id, patch).await;
        outcome
            .map(|_| ())
            .map_err(|error| agent_write_refusal(error, "failed to update agent"))
    }

    async fn create_token(
        &self,
        request: rpc::CreateJoinTokenRequest,
    ) -> Result<types::JoinToken, OpError> {
        if request.ttl < 1 {
            return Err(refused(
                Kind::InvalidArgument,
                "ttl is required, you must provide one",
            ));
        }
        let named = request
            .agent_id
            .as_ref()
            .map(|id| workload_id_from_wire(&self.trust_domain, Some(id)))
            .transpose()
            .map_err(malformed("invalid agent ID"))?;
        let token = if request.token.is_empty() {
            uuid::Uuid::new_v4().to_string()
        } else {
            request.token
        };
        if token.len() > MAX_TOKEN {
            return Err(refused(
                Kind::InvalidArgument,
                format!("token is too long (max {MAX_TOKEN} characters)"),
            ));
        }
        let node =
            SpiffeId::from_segments(&self.trust_domain, &["spire", "agent", JOIN_TOKEN, &token])
                .map_err(|error| {
                    failed(
                        Kind::InvalidArgument,
                        "token cannot be part of an agent ID",
                        error,
                    )
                })?;
        let alias = named.map(|named| alias_entry(named, node)).transpose()?;
        let expires_at = unix_seconds(self.clock.now()).saturating_add(i64::from(request.ttl));
        let made = JoinToken {
            token: token.clone(),
            expires_at,
            alias,
        };
        self.datastore
            .create_join_token(made)
            .await
            .map_err(|error| match error {
                TokenError::Taken => failed(Kind::AlreadyExists, "failed to create token", error),
                TokenError::Alias(error) => failed(
                    Kind::InvalidArgument,
                    "failed to create join token registration entry",
                    error,
                ),
                error => write_failed("failed to create token", &error),
            })?;
        Ok(types::JoinToken {
            value: token,
            expires_at,
        })
    }
}

fn agent_write_refusal(error: AgentWriteError, what: &str) -> OpError {
    match error {
        AgentWriteError::NotFound => {
            refused(Kind::NotFound, "agent not found").with_code(Code::AgentNotFound)
        }
        other => write_failed(what, &other),
    }
}

/// The entry that gives a token's node the asked ID as well. SPIRE: its parent and its one selector name the node.
fn alias_entry(named: SpiffeId, node: SpiffeId) -> Result<Entry, OpError> {
    let selector = Selector::new("spiffe_id", node.as_str()).map_err(|error| {
        failed(
            Kind::Internal,
            "failed to create join token registration entry",
            error,
        )
    })?;
    Ok(Entry::new(
        "",
        named,
        node,
        SelectorSet::from(vec![selector]),
    ))
}

fn attestation_params(
    request: rpc::AttestAgentRequest,
) -> Result<attest_agent_request::Params, &'static str> {
    let Some(attest_agent_request::Step::Params(params)) = request.step else {
        return Err("missing params");
    };
    let Some(data) = &params.data else {
        return Err("missing attestation data");
    };
    let Some(svid) = &params.params else {
        return Err("missing X509-SVID parameters");
    };
    if svid.csr.is_empty() {
        return Err("missing CSR");
    }
    if data.r#type.is_empty() {
        return Err("missing attestation data type");
    }
    if data.payload.is_empty() {
        return Err("missing attestation data payload");
    }
    Ok(params)
}

fn agent_to_wire(agent: &Agent, mask: Option<&AgentMask>) -> types::Agent {
    let wanted = |pick: fn(&AgentMask) -> bool| mask.is_none_or(pick);
    let text = |wanted: bool, text: &str| {
        if wanted {
            text.to_owned()
        } else {
            String::new()
        }
    };
    types::Agent {
        id: Some(spiffe_id_to_wire(&agent.id)),
        attestation_type: text(
            wanted(|mask| mask.attestation_type),
            &agent.attestation_type,
        ),
        x509svid_serial_number: text(wanted(|mask| mask.x509svid_serial_number), &agent.serial),
        x509svid_expires_at: if wanted(|mask| mask.x509svid_expires_at) {
            agent.expires_at
        } else {
            0
        },
        selectors: if wanted(|mask| mask.selectors) {
            selectors_to_wire(&agent.selectors)
        } else {
            Vec::new()
        },
        banned: wanted(|mask| mask.banned) && agent.banned,
        can_reattest: wanted(|mask| mask.can_reattest) && agent.can_reattest,
        agent_version: text(wanted(|mask| mask.agent_version), &agent.agent_version),
    }
}
