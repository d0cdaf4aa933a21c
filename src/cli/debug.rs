//! `debug getinfo` of both daemons: how long it runs, what it holds, which certificates it shows.

use std::time::Duration;

use proto::spire::agent::debug::v1 as agent_api;
use proto::spire::api::server::debug::v1 as server_api;
use proto::spire::api::types::Spiffeid;

use super::args::Args;
use super::command::{Command, Endpoint, Kind, Program};
use super::context::Context;
use super::error::CliError;
use super::output::Output;
use super::{duration, ids, timefmt};

pub(crate) const SERVER_COMMAND: Command = Command::of_server(
    &["debug", "getinfo"],
    "Show what the running server holds",
    |context, args| Box::pin(server(context, args)),
);

pub(crate) const AGENT_COMMAND: Command = Command::new(
    Program::Agent,
    Kind::Call(Endpoint::AgentAdmin),
    &["debug", "getinfo"],
    "Show what the running agent holds",
    |context, args| Box::pin(agent(context, args)),
);

async fn server(context: Context, _args: Args) -> Result<Output, CliError> {
    let reply = server_api::debug_client::DebugClient::new(context.channel().await?)
        .get_info(server_api::GetInfoRequest {})
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let mut text = "Server Debug Info:\n".to_owned();
    for (label, value) in [
        ("Uptime", uptime(reply.uptime)),
        ("Registered Agents", reply.agents_count.to_string()),
        ("Registration Entries", reply.entries_count.to_string()),
        (
            "Federated Bundles",
            reply.federated_bundles_count.to_string(),
        ),
    ] {
        text.push_str(&format!("  {:<24} {value}\n", format!("{label}:")));
    }
    let chain: Vec<Shown<'_>> = reply
        .svid_chain
        .iter()
        .map(|cert| (cert.id.as_ref(), cert.subject.as_str(), cert.expires_at))
        .collect();
    text.push_str(&chain_text(&chain));
    Output::text(text).reply("spire.api.server.debug.v1.GetInfoResponse", &reply)
}

async fn agent(context: Context, _args: Args) -> Result<Output, CliError> {
    let reply = agent_api::debug_client::DebugClient::new(context.channel().await?)
        .get_info(agent_api::GetInfoRequest {})
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let synced = match reply.last_sync_success {
        0 => "(never)".to_owned(),
        at => timefmt::rfc3339(at),
    };
    let mut text = "Agent Debug Info:\n".to_owned();
    for (label, value) in [
        ("Uptime", uptime(reply.uptime)),
        ("Last Sync Success", synced),
        (
            "Cached X.509 SVIDs",
            reply.cached_x509_svids_count.to_string(),
        ),
        ("Cached JWT SVIDs", reply.cached_jwt_svids_count.to_string()),
        (
            "Cached SVID Store X.509 SVIDs",
            reply.cached_svidstore_x509_svids_count.to_string(),
        ),
    ] {
        text.push_str(&format!("  {:<32} {value}\n", format!("{label}:")));
    }
    let chain: Vec<Shown<'_>> = reply
        .svid_chain
        .iter()
        .map(|cert| (cert.id.as_ref(), cert.subject.as_str(), cert.expires_at))
        .collect();
    text.push_str(&chain_text(&chain));
    Output::text(text).reply("spire.agent.debug.v1.GetInfoResponse", &reply)
}

fn uptime(seconds: i32) -> String {
    duration::go_text(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// A certificate's SPIFFE ID, subject and end; the two APIs have messages of the same fields.
type Shown<'c> = (Option<&'c Spiffeid>, &'c str, i64);

fn chain_text(chain: &[Shown<'_>]) -> String {
    if chain.is_empty() {
        return String::new();
    }
    let mut text = "  SVID Chain:\n".to_owned();
    for (index, (id, subject, expires_at)) in chain.iter().enumerate() {
        let id = id.map_or_else(|| "(none)".to_owned(), |id| ids::text(Some(id)));
        text.push_str(&format!(
            "    [{index}] SPIFFE ID:  {id}\n        Subject:    {subject}\n        Expires At: {}\n",
            timefmt::rfc3339(*expires_at)
        ));
    }
    text
}
