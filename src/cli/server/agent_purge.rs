//! `agent purge`: deletes the nodes whose SVID expired long ago. (SPIRE asks for all nodes in one page; here they come
//! page by page.)

use std::time::Duration;

use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{DeleteAgentRequest, list_agents_request};
use proto::spire::api::types::AgentMask;
use serde_json::json;
use spiffe::clock::unix_seconds;
use tonic::Status;

use super::agent_list::pages;
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::{Batch, CliError, FailedItem};
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::ids;
use crate::cli::output::{Output, Shown, Table, View};

const EXPIRED_FOR: Flag<Duration> = Flag::duration(
    "expiredFor",
    "expired-for",
    "Only nodes whose SVID expired at least this long ago",
)
.or("30d");
const DRY_RUN: Flag<bool> = Flag::switch(
    "dryRun",
    "dry-run",
    "List the nodes that would be deleted without deleting them",
);

const FLAGS: &[FlagSpec] = &[EXPIRED_FOR.or_on_spire("720h0m0s").spec, DRY_RUN.spec];

pub(crate) const COMMAND: Command = Command::of_server(
    &["agent", "purge"],
    "Delete nodes that can re-attest and whose SVID expired long ago",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.object(Object::Agent)
.examples("  plastron server agent purge --expired-for 24h --dry-run");

/// One expired node and what became of it.
#[derive(Debug)]
struct Expired {
    id: String,
    /// `None`: a dry run.
    deleted: Option<Result<(), Box<Status>>>,
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let dry_run = args.get(DRY_RUN);
    let channel = context.channel().await?;
    let filter = list_agents_request::Filter {
        by_can_reattest: Some(true),
        ..Default::default()
    };
    let mask = AgentMask {
        x509svid_expires_at: true,
        ..Default::default()
    };
    let agents = pages(channel.clone(), filter, Some(mask))
        .await
        .map_err(|status| CliError::status("failed to list agents", status))?;
    let expired_for: Duration = args.get(EXPIRED_FOR);
    let limit = unix_seconds(context.clock.now())
        .saturating_sub(i64::try_from(expired_for.as_secs()).unwrap_or(i64::MAX));
    let mut client = AgentClient::new(channel);
    let mut expired = Vec::new();
    for agent in agents
        .into_iter()
        .filter(|agent| agent.x509svid_expires_at < limit)
    {
        let id = ids::text(agent.id.as_ref());
        let deleted = if dry_run {
            None
        } else {
            let outcome = client
                .delete_agent(DeleteAgentRequest { id: agent.id })
                .await;
            Some(outcome.map(drop).map_err(Box::new))
        };
        expired.push(Expired { id, deleted });
    }
    Ok(outcome(Purge { expired, dry_run }))
}

/// The expired nodes and what became of them.
#[derive(Debug)]
struct Purge {
    expired: Vec<Expired>,
    dry_run: bool,
}

fn outcome(purge: Purge) -> Output {
    let mut list = Vec::new();
    let mut items = Vec::new();
    for Expired { id, deleted } in &purge.expired {
        let mut item = json!({ "agent_id": id, "deleted": matches!(deleted, Some(Ok(()))) });
        if let (Some(Err(status)), Some(fields)) = (deleted, item.as_object_mut()) {
            fields.insert("error".to_owned(), spire_text(status).into());
            items.push(FailedItem {
                object: id.clone(),
                code: status.code(),
                message: status.message().to_owned(),
                paragraph: String::new(),
            });
        }
        list.push(item);
    }
    Output {
        replies: vec![json!({ "expired_agents": list })],
        partial_failure: (!items.is_empty()).then(|| Batch {
            text: "failed to purge one or more agents".to_owned(),
            items,
        }),
        ..Output::of(purge)
    }
}

impl Shown for Purge {
    fn spire(&self) -> String {
        let expired = &self.expired;
        if expired.is_empty() {
            return "No agents to purge.\n".to_owned();
        }
        let noun = if expired.len() == 1 {
            "agent"
        } else {
            "agents"
        };
        let mut text = format!("Found {} expired {noun}\n\n", expired.len());
        if self.dry_run {
            text.push_str("\nAgents that can be purged:\n");
            for node in expired {
                text.push_str(&format!("SPIFFE ID         : {}\n", node.id));
            }
            return text;
        }
        let (done, failed): (Vec<&Expired>, Vec<&Expired>) = expired
            .iter()
            .partition(|node| matches!(node.deleted, Some(Ok(()))));
        section(&mut text, "Agents purged:", done.into_iter());
        section(&mut text, "Agents not purged:", failed.into_iter());
        text
    }

    fn native(&self) -> View {
        let row = |node: &Expired| {
            let (state, error) = match &node.deleted {
                None => ("would be purged", String::new()),
                Some(Ok(())) => ("purged", String::new()),
                Some(Err(status)) => ("not purged", spire_text(status)),
            };
            vec![node.id.clone(), state.to_owned(), error]
        };
        View::Table(Table {
            headings: vec!["SPIFFE ID", "STATE", "ERROR"],
            rows: self.expired.iter().map(row).collect(),
        })
    }
}

fn spire_text(status: &Status) -> String {
    CliError::status("", status.clone()).to_string()
}

fn section<'n>(text: &mut String, heading: &str, nodes: impl Iterator<Item = &'n Expired>) {
    let mut nodes = nodes.peekable();
    if nodes.peek().is_none() {
        return;
    }
    text.push_str(&format!("{heading}\n"));
    for node in nodes {
        text.push_str(&format!("SPIFFE ID         : {}\n", node.id));
        if let Some(Err(status)) = &node.deleted {
            text.push_str(&format!("Error             : {}\n", spire_text(status)));
        }
    }
}
