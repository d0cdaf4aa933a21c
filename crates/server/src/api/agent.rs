//! The Agent service: attesting and renewing nodes, and keeping their list.

use std::sync::Arc;

use proto::convert::{
    agent_id_from_wire, selectors_to_wire, spiffe_id_to_wire, workload_id_from_wire,
};
use proto::spire::api::server::agent::v1 as rpc;
use proto::spire::api::server::agent::v1::agent_server::Agent as AgentApi;
use proto::spire::api::types::{self, AgentMask};
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;
use tonic::{Request, Response, Status, Streaming};

use super::wire;
use crate::audit::Fields;
use crate::caller::Caller;
use crate::error::{OpError, malformed};
use crate::ops::agents::Agents;
use crate::ops::attestations::Attestations;
use crate::ops::tokens::Tokens;
use crate::ratelimit::RateLimits;
use crate::registry::Agent;

mod conversation;
mod filter;
#[cfg(test)]
mod tests;

#[derive(Debug)]
pub(crate) struct AgentService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) agents: Arc<Agents>,
    pub(crate) attestations: Arc<Attestations>,
    pub(crate) tokens: Tokens,
    pub(crate) limits: Arc<RateLimits>,
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
        let count = self.agents.count(&filter.read()?);
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
        let listed = self.agents.list(
            &filter.read()?,
            &wire::page(request.page_size, &request.page_token),
        )?;
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
        let found = self.agents.get(&id)?;
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
        self.agents.delete(&id).await?;
        Ok(Response::new(()))
    }

    async fn ban_agent(
        &self,
        request: Request<rpc::BanAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request)?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        caller.describe(|| Fields::new().with("spiffe_id", &id));
        self.agents.ban(&id).await?;
        Ok(Response::new(()))
    }

    type AttestAgentStream = conversation::Answers;

    async fn attest_agent(
        &self,
        request: Request<Streaming<rpc::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .attest
            .take(&caller.connection, 1, "attest agent")
            .await?;
        let answers =
            conversation::begin(caller, request.into_inner(), Arc::clone(&self.attestations))
                .await?;
        Ok(Response::new(answers))
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
        let params = request.into_inner().params;
        let csr = params.as_ref().map(|params| params.csr.as_slice());
        let issued = self.agents.renew(&caller, csr).await?;
        let svid = Some(wire::x509_svid(&issued));
        Ok(Response::new(rpc::RenewAgentResponse { svid }))
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
        let named = request
            .agent_id
            .as_ref()
            .map(|id| workload_id_from_wire(&self.trust_domain, Some(id)))
            .transpose()
            .map_err(malformed("invalid agent ID"))?;
        let made = self
            .tokens
            .create(request.ttl, request.token, named)
            .await?;
        Ok(Response::new(types::JoinToken {
            value: made.value,
            expires_at: made.expires_at,
        }))
    }

    async fn post_status(
        &self,
        request: Request<rpc::PostStatusRequest>,
    ) -> Result<Response<rpc::PostStatusResponse>, Status> {
        let caller = Caller::of(&request)?;
        Agents::check_version(&request.get_ref().agent_version)?;
        self.limits
            .post_status
            .take(&caller.connection, 1, "post status")
            .await?;
        caller.still_entitled()?;
        let id = &caller.agent()?.svid().id();
        let version = request.into_inner().agent_version;
        caller.describe(|| {
            Fields::new()
                .with("spiffe_id", id)
                .with("agent_version", version.escape_debug())
        });
        self.agents.report_version(id, &version, || true).await?;
        Ok(Response::new(rpc::PostStatusResponse {}))
    }
}

impl AgentService {
    fn agent_id(&self, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, OpError> {
        agent_id_from_wire(&self.trust_domain, wire).map_err(malformed("invalid agent ID"))
    }
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
