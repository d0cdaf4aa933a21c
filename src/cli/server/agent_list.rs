//! `agent list`, `agent count` and `agent show`: the attested nodes.

use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    CountAgentsRequest, GetAgentRequest, ListAgentsRequest, ListAgentsResponse,
    count_agents_request, list_agents_request,
};
use proto::spire::api::types::{Agent, AgentMask};
use spiffe::clock::unix_seconds;
use tonic::transport::Channel;

use super::node;
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;

/// Nodes a page (SPIRE: 1,000).
const PAGE: i32 = 1000;

pub(crate) const LIST_COMMAND: Command = Command::of_server(
    &["agent", "list"],
    "List the attested nodes",
    |context, args| Box::pin(list(context, args)),
)
.flags(node::FILTERS)
.object(Object::Agent);

pub(crate) const COUNT_COMMAND: Command = Command::of_server(
    &["agent", "count"],
    "Count the attested nodes",
    |context, args| Box::pin(count(context, args)),
)
.flags(node::FILTERS)
.object(Object::Agent);

pub(crate) const SHOW_COMMAND: Command = Command::of_server(
    &["agent", "show"],
    "Show one attested node",
    |context, args| Box::pin(show(context, args)),
)
.flags(&[node::NODE_ID.spec])
.object(Object::Agent)
.aliases(&["get"]);

/// All nodes that the filter lets through, page by page.
pub(super) async fn pages(
    channel: Channel,
    filter: list_agents_request::Filter,
    mask: Option<AgentMask>,
) -> Result<Vec<Agent>, tonic::Status> {
    let mut client = AgentClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest {
            filter: Some(filter.clone()),
            output_mask: mask,
            page_size: PAGE,
            page_token,
        };
        let page = client.list_agents(request).await?.into_inner();
        agents.extend(page.agents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(agents);
        }
    }
}

async fn list(context: Context, args: Args) -> Result<Output, CliError> {
    let filter = node::filter(&args, context.frontend)?;
    let filter = list_agents_request::Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    };
    let agents = pages(context.channel().await?, filter, None)
        .await
        .map_err(|status| CliError::status("", status))?;
    let reply = ListAgentsResponse {
        agents,
        next_page_token: String::new(),
    };
    let mut output =
        Output::default().reply("spire.api.server.agent.v1.ListAgentsResponse", &reply)?;
    if reply.agents.is_empty() {
        output = output.note(
            "no node matches; generate a join token for one with: plastron server token generate",
        );
    }
    Ok(output.showing(node::Found {
        agents: reply.agents,
        now: unix_seconds(context.clock.now()),
    }))
}

async fn count(context: Context, args: Args) -> Result<Output, CliError> {
    let filter = node::filter(&args, context.frontend)?;
    let request = CountAgentsRequest {
        filter: Some(count_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        }),
    };
    let reply = AgentClient::new(context.channel().await?)
        .count_agents(request)
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let noun = if reply.count == 1 { "agent" } else { "agents" };
    Output::text(format!("{} attested {noun}", reply.count))
        .reply("spire.api.server.agent.v1.CountAgentsResponse", &reply)
}

async fn show(context: Context, args: Args) -> Result<Output, CliError> {
    let id = node::id(&args)?;
    let agent = AgentClient::new(context.channel().await?)
        .get_agent(GetAgentRequest {
            id: Some(id),
            output_mask: None,
        })
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let selectors: String = agent
        .selectors
        .iter()
        .map(|s| format!("Selectors         : {}:{}\n", s.r#type, s.value))
        .collect();
    let text = format!(
        "Found an attested agent given its SPIFFE ID\n\n{}{selectors}",
        node::text(&agent)
    );
    Output::text(text).reply("spire.api.types.Agent", &agent)
}
