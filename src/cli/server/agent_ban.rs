//! `agent ban` and `agent evict`: a node loses its identity, for good or until it attests again.

use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{BanAgentRequest, DeleteAgentRequest};

use super::node;
use crate::cli::args::Args;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::spec::{Command, Endpoint, Program, Surface};

pub(crate) fn ban_command() -> Command {
    Command {
        program: Program::Server,
        path: &["agent", "ban"],
        about: "Ban a node: it loses its identity and cannot attest again",
        flags: &[node::NODE_ID],
        endpoint: Endpoint::ServerAdmin,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(ban(context, args)),
    }
}

pub(crate) fn evict_command() -> Command {
    Command {
        path: &["agent", "evict"],
        about: "Evict a node: it loses its identity and has to attest again",
        run: |context, args| Box::pin(evict(context, args)),
        ..ban_command()
    }
}

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
