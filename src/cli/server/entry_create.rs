//! `entry create`: registers workloads.

use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{ListAgentsRequest, list_agents_request};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, BatchCreateEntryResponse};
use proto::spire::api::types::{AgentMask, Entry, Spiffeid};
use tonic::transport::Channel;

use super::entry::{
    ADMIN, DATA, DNS, DOWNSTREAM, ENTRY_ID, EXPIRY, FEDERATES_WITH, HINT, JTI, JWT_TTL,
    NO_PREFETCH, PARENT_ID, SPIFFE_ID, STORE_SVID, X509_TTL, check_ttls, from_args, table, text,
};
use super::{batch, entry_check, entry_data};
use crate::cli::args::Args;
use crate::cli::context::{Context, Face};
use crate::cli::error::CliError;
use crate::cli::ids;
use crate::cli::output::Output;
use crate::cli::selectors::SELECTOR;
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[
    SPIFFE_ID,
    PARENT_ID,
    SELECTOR,
    flag(
        "node",
        "node",
        Kind::Switch,
        "The entry names a set of nodes (an alias), not workloads",
    ),
    X509_TTL,
    JWT_TTL,
    DNS,
    FEDERATES_WITH,
    HINT,
    ENTRY_ID,
    EXPIRY,
    ADMIN,
    DOWNSTREAM,
    STORE_SVID,
    NO_PREFETCH,
    JTI,
    DATA,
    entry_check::ALLOW_UNKNOWN,
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Server,
        path: &["entry", "create"],
        about: "Create registration entries",
        flags: FLAGS,
        endpoint: Endpoint::ServerAdmin,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let data = args.optional("data");
    if data.is_none() {
        check(&context, &args)?;
    }
    let parsed = data
        .map(|path| {
            context
                .read_input(path)
                .and_then(|json| entry_data::parse(&json, context.face))
        })
        .transpose()?;
    if parsed.is_none() && context.face == Face::Shim {
        // SPIRE refuses a bad ID first of all, and before it connects.
        ids::parse(args.text("spiffeID"))?;
        if !args.switch("node") {
            ids::parse(args.text("parentID"))?;
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
    for (result, entry) in reply.results.iter_mut().zip(entries) {
        // A failed item carries no entry: show what was asked for.
        if !batch::succeeded(result.status.as_ref()) {
            result.entry = Some(entry);
        }
    }
    let mut output = outcome(&context, &reply)?;
    if output.partial_failure.is_none() {
        entry_check::warn(&context, &channel, &created(&reply)).await;
        if let Some(note) = entry_check::lifetime_note(&context, &channel, &created(&reply)).await {
            output = output.note(note);
        }
    }
    Ok(output)
}

fn created(reply: &BatchCreateEntryResponse) -> Vec<Entry> {
    reply
        .results
        .iter()
        .filter(|result| batch::succeeded(result.status.as_ref()))
        .filter_map(|result| result.entry.clone())
        .collect()
}

/// Checks the flags as SPIRE does, before anything is sent.
fn check(context: &Context, args: &Args) -> Result<(), CliError> {
    let node = args.switch("node");
    let fault = if args.list("selector").is_empty() {
        "at least one selector is required"
    } else if node && !args.list("federatesWith").is_empty() {
        "node entries can not federate"
    } else if args.text("parentID").is_empty() && !node && context.face == Face::Shim {
        "a parent ID is required if the node flag is not set"
    } else if args.text("spiffeID").is_empty() {
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
    let id = ids::expand(context, channel, args.text("spiffeID")).await?;
    let parent = if args.switch("node") {
        Spiffeid {
            trust_domain: id.trust_domain.clone(),
            path: "/spire/server".to_owned(),
        }
    } else if let Some(parent) = args.optional("parentID") {
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

fn outcome(context: &Context, reply: &BatchCreateEntryResponse) -> Result<Output, CliError> {
    let split = batch::split(&reply.results, |result| result.status.as_ref());
    let made = created(reply);
    let refused = split
        .failed
        .iter()
        .map(|result| batch::refused_entry("create", result.status.as_ref(), result.entry.as_ref()))
        .collect();
    let mut output = Output::text(made.iter().map(text).collect::<String>())
        .reply("spire.api.server.entry.v1.BatchCreateEntryResponse", reply)?;
    output.table = Some(table(&made));
    output.partial_failure =
        batch::failure(context, "failed to create one or more entries", refused);
    let on_a_node = |entry: &&Entry| {
        entry
            .parent_id
            .as_ref()
            .is_some_and(|parent| parent.path.starts_with("/spire/agent/"))
    };
    if output.partial_failure.is_none()
        && let Some(entry) = made.first().filter(on_a_node)
    {
        let id = ids::text(entry.spiffe_id.as_ref());
        output = output.note(if needs_discovery(entry) {
            format!(
                "created; the agent gives {id} to a matching process if its unix attestor has discover_workload_path = true"
            )
        } else {
            format!(
                "created; a matching process on the node can fetch {id} now: plastron agent api fetch x509"
            )
        });
    }
    Ok(output)
}
