//! `entry create`: registers workloads.

use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{ListAgentsRequest, list_agents_request};
use proto::spire::api::server::entry::v1::BatchCreateEntryRequest;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::types::{AgentMask, Entry, Spiffeid};
use tonic::transport::Channel;

use super::entry::{
    ADMIN, DATA, DNS, DOWNSTREAM, ENTRY_ID, EXPIRY, HINT, JTI, JWT_TTL, NO_PREFETCH, PARENT_ID,
    SPIFFE_ID, STORE_SVID, X509_TTL, check_ttls, from_args,
};
use super::{batch, entry_check, entry_data};
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::{Context, Frontend};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::ids;
use crate::cli::output::Output;
use crate::cli::selectors::{FEDERATES_WITH, SELECTOR};

const NODE: Flag<bool> = Flag::switch(
    "node",
    "node",
    "The entry names a set of nodes (an alias), not workloads",
);

const FLAGS: &[FlagSpec] = &[
    SPIFFE_ID.spec,
    PARENT_ID.spec,
    SELECTOR.spec,
    NODE.spec,
    X509_TTL.spec,
    JWT_TTL.spec,
    DNS.spec,
    FEDERATES_WITH.spec,
    HINT.spec,
    ENTRY_ID.spec,
    EXPIRY.spec,
    ADMIN.spec,
    DOWNSTREAM.spec,
    STORE_SVID.spec,
    NO_PREFETCH.spec,
    JTI.spec,
    DATA.spec,
    entry_check::ALLOW_UNKNOWN.spec,
];

pub(crate) const COMMAND: Command = Command::of_server(
    &["entry", "create"],
    "Create registration entries",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.object(Object::Entry)
.examples(
    "\
A SPIFFE ID can be short: web is spiffe://TRUST-DOMAIN/web. Without --parent-id the parent is the
attested node, if there is exactly one.

  plastron server entry create --spiffe-id web --selector unix:uid:1000
  plastron server entry create --spiffe-id shop/api --selector unix:user:api --x509-svid-ttl 30m
  plastron server entry create --data entries.json",
);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let data = args.optional(DATA);
    if data.is_none() {
        check(&context, &args)?;
    }
    let parsed = data
        .map(|path| {
            context
                .read_input(path)
                .and_then(|json| entry_data::parse(&json, context.frontend))
        })
        .transpose()?;
    if parsed.is_none() && context.frontend == Frontend::Spire {
        // SPIRE refuses a bad ID first of all, and before it connects.
        ids::parse(args.get(SPIFFE_ID))?;
        if !args.get(NODE) {
            ids::parse(args.get(PARENT_ID))?;
        }
    }
    let own = if parsed.is_none() {
        Some(from_args(&args)?)
    } else {
        None
    };
    let channel = context.channel().await?;
    let entries = match (parsed, own) {
        (Some(entries), _) => entries,
        (None, Some(entry)) => vec![with_ids(entry, &context, &channel, &args).await?],
        (None, None) => Vec::new(),
    };
    entry_check::refuse(&context, &channel, &args, &entries).await?;
    let mut reply = EntryClient::new(channel.clone())
        .batch_create_entry(BatchCreateEntryRequest {
            entries: entries.clone(),
            output_mask: None,
        })
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let results: Vec<_> = reply
        .results
        .iter()
        .map(|result| batch::EntryResult {
            status: result.status.clone(),
            entry: result.entry.clone(),
        })
        .collect();
    for (result, entry) in reply.results.iter_mut().zip(&entries) {
        if !batch::succeeded(result.status.as_ref()) {
            result.entry = Some(entry.clone());
        }
    }
    let (made, failure) = batch::entries("create", &results, &entries);
    let output =
        Output::default().reply("spire.api.server.entry.v1.BatchCreateEntryResponse", &reply)?;
    let note = if failure.is_none() {
        what_next(&made)
    } else {
        None
    };
    let output = entry_check::written(&context, &channel, output, made, failure).await;
    Ok(note.into_iter().fold(output, Output::note))
}

/// Checks the flags as SPIRE does, before anything is sent.
fn check(context: &Context, args: &Args) -> Result<(), CliError> {
    let node = args.get(NODE);
    let fault = if args.get(SELECTOR).is_empty() {
        "at least one selector is required"
    } else if node && !args.get(FEDERATES_WITH).is_empty() {
        "node entries can not federate"
    } else if args.get(PARENT_ID).is_empty() && !node && context.frontend == Frontend::Spire {
        "a parent ID is required if the node flag is not set"
    } else if args.get(SPIFFE_ID).is_empty() {
        "a SPIFFE ID is required"
    } else {
        return check_ttls(args);
    };
    Err(CliError::usage(fault))
}

async fn with_ids(
    mut entry: Entry,
    context: &Context,
    channel: &Channel,
    args: &Args,
) -> Result<Entry, CliError> {
    let id = ids::expand(context, channel, args.get(SPIFFE_ID)).await?;
    let parent = if args.get(NODE) {
        Spiffeid {
            trust_domain: id.trust_domain.clone(),
            path: "/spire/server".to_owned(),
        }
    } else if let Some(parent) = args.optional(PARENT_ID) {
        ids::expand(context, channel, parent).await?
    } else {
        only_node(channel).await?
    };
    entry.spiffe_id = Some(id);
    entry.parent_id = Some(parent);
    Ok(entry)
}

/// The parent when none is named: the node, if exactly one is attested, by its alias where it has one, so that the entry
/// outlives the join token. With several nodes the user chooses, since a wrong guess would give the identity to the
/// wrong one.
pub(crate) async fn only_node(channel: &Channel) -> Result<Spiffeid, CliError> {
    let request = ListAgentsRequest {
        filter: Some(list_agents_request::Filter {
            by_banned: Some(false),
            ..Default::default()
        }),
        output_mask: Some(AgentMask::default()),
        page_size: 2,
        page_token: String::new(),
    };
    let agents = AgentClient::new(channel.clone())
        .list_agents(request)
        .await
        .map_err(|status| CliError::status("cannot list the nodes", status))?
        .into_inner()
        .agents;
    match <[_; 1]>::try_from(agents) {
        Ok([agent]) => match entry_check::alias(channel, agent.id.as_ref()).await {
            Some(alias) => Ok(alias),
            None => agent
                .id
                .ok_or_else(|| CliError::failed("the server listed a node without an ID")),
        },
        Err(agents) if agents.is_empty() => Err(CliError::usage(
            "no node is attested yet: join one first (`plastron server token generate`), or name the parent with --parent-id",
        )),
        Err(_several) => Err(CliError::usage(
            "several nodes are attested: name the entry's parent with --parent-id (see `plastron server agent list`)",
        )),
    }
}

/// Whether it has a selector that the unix attestor gives only when it looks for the program's file.
fn needs_discovery(entry: &Entry) -> bool {
    entry.selectors.iter().any(|selector| {
        selector.r#type == "unix"
            && ["path:", "sha256:"]
                .iter()
                .any(|kind| selector.value.starts_with(kind))
    })
}

/// What the operator can do with the first entry now, if it is one of a node.
fn what_next(made: &[Entry]) -> Option<String> {
    let on_a_node = |entry: &&Entry| {
        entry
            .parent_id
            .as_ref()
            .is_some_and(|parent| parent.path.starts_with("/spire/agent/"))
    };
    let entry = made.first().filter(on_a_node)?;
    let id = ids::text(entry.spiffe_id.as_ref());
    Some(if needs_discovery(entry) {
        format!(
            "created; the agent gives {id} to a matching process if its unix attestor has discover_workload_path = true"
        )
    } else {
        format!(
            "created; a matching process on the node can fetch {id} now: plastron agent api fetch x509"
        )
    })
}
