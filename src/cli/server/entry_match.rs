//! `entry match`: which entries a process with the given selectors matches, and on which nodes. For the operator who has
//! a refusal in hand: an agent knows the entries of its own node alone, so only the server can tell that an entry waits
//! under another one.

use std::collections::BTreeMap;

use proto::spire::api::server::agent::v1::list_agents_request;
use proto::spire::api::server::entry::v1::list_entries_request::Filter;
use proto::spire::api::types::{AgentMask, Entry, SelectorMatch, Spiffeid, selector_match};
use serde_json::json;
use tonic::transport::Channel;

use super::entry_list::{self, matching};
use super::{agent_list, entry};
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ids;
use crate::cli::output::{Output, Table};
use crate::cli::selectors::{self, SELECTOR};

/// Names of one parent are looked up to this depth: an alias below an alias below …
const MAX_DEPTH: usize = 8;
/// Nodes named for one entry; an alias may stand for thousands.
const MAX_NODES: usize = 20;

pub(crate) const COMMAND: Command = Command::of_server(
    &["entry", "match"],
    "Show which entries a process with these selectors matches, and on which nodes",
    |context, args| Box::pin(run(context, args)),
)
.natively()
.object(Object::Entry)
.flags(&[SELECTOR.spec])
.examples(
    "\
When an agent issues no identity, its log line has the user of the process, and the selectors that log_selectors names. An entry below another node is shown
with that node.

  plastron server entry match --selector unix:uid:1000 --selector unix:user:web",
);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let given = selectors::parse_all(args.get(SELECTOR))?;
    if given.is_empty() {
        return Err(CliError::usage(
            "at least one --selector is required: those of the process, such as unix:uid:1000",
        ));
    }
    let channel = context.channel().await?;
    let filter = Filter {
        by_selectors: Some(SelectorMatch {
            selectors: given,
            r#match: selector_match::MatchBehavior::MatchSubset.into(),
        }),
        ..Filter::default()
    };
    let entries = entry_list::all(channel.clone(), filter).await?;
    let mut nodes = Nodes {
        channel,
        known: BTreeMap::new(),
    };
    let mut rows = Vec::new();
    let mut items = Vec::new();
    for entry in &entries {
        let on = nodes.of_parent(entry.parent_id.as_ref()).await?;
        items.push(json!({
            "entry_id": entry.id,
            "spiffe_id": ids::text(entry.spiffe_id.as_ref()),
            "parent_id": ids::text(entry.parent_id.as_ref()),
            "selectors": entry::selector_texts(entry),
            "nodes": on,
        }));
        let shown = match on.as_slice() {
            [] => "(no attested node)".to_owned(),
            nodes => nodes.join(" "),
        };
        rows.push(vec![
            entry.id.clone(),
            ids::text(entry.spiffe_id.as_ref()),
            ids::text(entry.parent_id.as_ref()),
            shown,
        ]);
    }
    let table = Table {
        headings: vec!["ENTRY", "SPIFFE ID", "PARENT", "NODES"],
        rows,
    };
    let output = Output {
        replies: vec![json!({ "entries": items })],
        ..Output::text_and_table("", table)
    };
    Ok(match entries.is_empty() {
        true => output.note(
            "no entry of any node matches; register the process with: plastron server entry create --spiffe-id NAME --selector TYPE:VALUE",
        ),
        false => output.note(
            "a process gets the identity on these nodes only; for another node: plastron server entry create --parent-id NODE",
        ),
    })
}

/// The attested nodes that a parent ID stands for, each looked up once.
struct Nodes {
    channel: Channel,
    known: BTreeMap<String, Vec<String>>,
}

impl Nodes {
    /// The node itself, or the nodes of an alias: those that an entry below the server selects, and those below which an
    /// entry has the alias as its SPIFFE ID.
    async fn of_parent(&mut self, parent: Option<&Spiffeid>) -> Result<Vec<String>, CliError> {
        let Some(parent) = parent else {
            return Ok(Vec::new());
        };
        let name = ids::text(Some(parent));
        if let Some(nodes) = self.known.get(&name) {
            return Ok(nodes.clone());
        }
        let mut nodes = Vec::new();
        let mut open = vec![parent.clone()];
        let mut seen = open.clone();
        for _depth in 0..MAX_DEPTH {
            let (agents, aliases): (Vec<_>, Vec<_>) = open
                .into_iter()
                .partition(|id| id.path.starts_with("/spire/agent/"));
            nodes.extend(agents.iter().map(|id| ids::text(Some(id))));
            open = self.above(aliases, &mut nodes).await?;
            open.retain(|id| !seen.contains(id));
            seen.extend(open.iter().cloned());
        }
        nodes.sort();
        nodes.dedup();
        nodes.truncate(MAX_NODES);
        self.known.insert(name, nodes.clone());
        Ok(nodes)
    }

    /// The parents of the entries that grant these aliases. Nodes that such an entry selects are nodes of the alias.
    async fn above(
        &self,
        aliases: Vec<Spiffeid>,
        nodes: &mut Vec<String>,
    ) -> Result<Vec<Spiffeid>, CliError> {
        let mut parents = Vec::new();
        for alias in aliases {
            for entry in self.entries_of(alias).await? {
                match entry.parent_id.clone() {
                    Some(server) if server.path == "/spire/server" => {
                        nodes.extend(self.selected_by(entry).await?);
                    }
                    parent => parents.extend(parent),
                }
            }
        }
        Ok(parents)
    }

    async fn entries_of(&self, id: Spiffeid) -> Result<Vec<Entry>, CliError> {
        let filter = Filter {
            by_spiffe_id: Some(id),
            ..Filter::default()
        };
        matching(&self.channel, filter, entry_list::Part::PARENT)
            .await
            .map_err(|status| CliError::status("cannot look for the parent", status))
    }

    /// The nodes that have all selectors of a node alias.
    async fn selected_by(&self, alias: Entry) -> Result<Vec<String>, CliError> {
        let filter = list_agents_request::Filter {
            by_selector_match: Some(SelectorMatch {
                selectors: alias.selectors,
                r#match: selector_match::MatchBehavior::MatchSuperset.into(),
            }),
            ..list_agents_request::Filter::default()
        };
        let agents = agent_list::pages(self.channel.clone(), filter, Some(AgentMask::default()))
            .await
            .map_err(|status| CliError::status("cannot list the nodes", status))?;
        Ok(agents
            .iter()
            .map(|agent| ids::text(agent.id.as_ref()))
            .collect())
    }
}
