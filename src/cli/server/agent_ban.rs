//! `agent ban` and `agent evict`: a node loses its identity, for good or until it attests again.

use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{BanAgentRequest, DeleteAgentRequest};

use super::node;
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;

pub(crate) const BAN_COMMAND: Command = Command::of_server(
    &["agent", "ban"],
    "Ban a node: it loses its identity and cannot attest again",
    |context, args| Box::pin(ban(context, args)),
)
.flags(&[node::NODE_ID.spec])
.object(Object::Agent);

pub(crate) const EVICT_COMMAND: Command = Command::of_server(
    &["agent", "evict"],
    "Evict a node: it loses its identity and has to attest again",
    |context, args| Box::pin(evict(context, args)),
)
.flags(&[node::NODE_ID.spec])
.object(Object::Agent);

async fn ban(context: Context, args: Args) -> Result<Output, CliError> {
    let id = node::id(&args)?;
    AgentClient::new(context.channel().await?)
        .ban_agent(BanAgentRequest { id: Some(id) })
        .await
        .map_err(|status| CliError::status("", status))?;
    Output::text("Agent banned successfully").reply("google.protobuf.Empty", &())
}

async fn evict(context: Context, args: Args) -> Result<Output, CliError> {
    let id = node::id(&args)?;
    AgentClient::new(context.channel().await?)
        .delete_agent(DeleteAgentRequest { id: Some(id) })
        .await
        .map_err(|status| CliError::status("", status))?;
    Output::text("Agent evicted successfully").reply("google.protobuf.Empty", &())
}
