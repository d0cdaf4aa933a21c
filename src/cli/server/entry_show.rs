//! `entry show` and `entry count`: what is registered, by filters.

use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    CountEntriesRequest, GetEntryRequest, ListEntriesResponse, count_entries_request,
    list_entries_request,
};
use proto::spire::api::types::Entry;
use tonic::transport::Channel;

use super::entry::{DOWNSTREAM, ENTRY_ID, Found, HINT, PARENT_ID, SPIFFE_ID};
use super::entry_list;
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::FlagSpec;
use crate::cli::ids;
use crate::cli::output::Output;
use crate::cli::selectors::{
    self, FEDERATES_WITH, MATCH_FEDERATES_WITH, MATCH_SELECTORS, SELECTOR,
};

const SHOW: &[FlagSpec] = &[
    ENTRY_ID.positional().spec,
    PARENT_ID.spec,
    SPIFFE_ID.spec,
    SELECTOR.spec,
    MATCH_SELECTORS.spec,
    FEDERATES_WITH.spec,
    MATCH_FEDERATES_WITH.spec,
    DOWNSTREAM.spec,
    HINT.spec,
];
const COUNT: &[FlagSpec] = &[
    PARENT_ID.spec,
    SPIFFE_ID.spec,
    SELECTOR.spec,
    MATCH_SELECTORS.spec,
    FEDERATES_WITH.spec,
    MATCH_FEDERATES_WITH.spec,
    DOWNSTREAM.spec,
    HINT.spec,
];

pub(crate) const COMMAND: Command = Command::of_server(
    &["entry", "show"],
    "Show registration entries",
    |context, args| Box::pin(show(context, args)),
)
.flags(SHOW)
.object(Object::Entry)
.aliases(&["list", "get"])
.examples(
    "\
  plastron server entry show --spiffe-id web
  plastron server entry show --selector unix:uid:1000 -o json",
);

pub(crate) const COUNT_COMMAND: Command = Command::of_server(
    &["entry", "count"],
    "Count registration entries",
    |context, args| Box::pin(count(context, args)),
)
.flags(COUNT)
.object(Object::Entry);

async fn show(context: Context, args: Args) -> Result<Output, CliError> {
    let one = args.optional(ENTRY_ID);
    if one.is_some()
        && (args.optional(PARENT_ID).is_some()
            || args.optional(SPIFFE_ID).is_some()
            || !args.get(SELECTOR).is_empty())
    {
        return Err(CliError::usage_of(
            "the -entryID flag can't be combined with others",
            "the --entry-id flag can't be combined with others",
        ));
    }
    let channel = context.channel().await?;
    let mut entries = match one {
        Some(id) => vec![
            EntryClient::new(channel)
                .get_entry(GetEntryRequest {
                    id: id.to_owned(),
                    output_mask: None,
                })
                .await
                .map_err(|status| {
                    CliError::status(format!("error fetching entry ID {id}"), status)
                })?
                .into_inner(),
        ],
        None => {
            let filter = filter(&context, &channel, &args).await?;
            entry_list::all(channel, filter).await?
        }
    };
    sort(&mut entries);
    let reply = ListEntriesResponse {
        entries,
        next_page_token: String::new(),
    };
    let mut output =
        Output::default().reply("spire.api.server.entry.v1.ListEntriesResponse", &reply)?;
    if reply.entries.is_empty() {
        output = output.note("no entry matches; register a workload with: plastron server entry create --spiffe-id web --selector unix:uid:1000");
    }
    Ok(output.showing(Found(reply.entries)))
}

async fn filter(
    context: &Context,
    channel: &Channel,
    args: &Args,
) -> Result<list_entries_request::Filter, CliError> {
    let unknown = |mode: &str| format!("match behavior {mode:?} unknown");
    Ok(list_entries_request::Filter {
        by_parent_id: match args.optional(PARENT_ID) {
            Some(id) => Some(ids::expand(context, channel, id).await.map_err(|error| {
                CliError::usage(format!("error parsing parent ID {id:?}: {error}"))
            })?),
            None => None,
        },
        by_spiffe_id: match args.optional(SPIFFE_ID) {
            Some(id) => Some(ids::expand(context, channel, id).await.map_err(|error| {
                CliError::usage(format!("error parsing SPIFFE ID {id:?}: {error}"))
            })?),
            None => None,
        },
        by_selectors: selectors::filter(args, unknown, |_text| {
            "error parsing selectors".to_owned()
        })?,
        by_federates_with: selectors::federates_with_filter(args, unknown)?,
        by_hint: args.optional(HINT).map(str::to_owned),
        by_downstream: Some(args.get(DOWNSTREAM)),
    })
}

async fn count(context: Context, args: Args) -> Result<Output, CliError> {
    let channel = context.channel().await?;
    let filter = filter(&context, &channel, &args).await?;
    let request = CountEntriesRequest {
        filter: Some(count_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        }),
    };
    let reply = EntryClient::new(channel)
        .count_entries(request)
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let noun = if reply.count == 1 { "entry" } else { "entries" };
    Output::text(format!("{} registration {noun}", reply.count))
        .reply("spire.api.server.entry.v1.CountEntriesResponse", &reply)
}

/// SPIRE's order: SPIFFE ID, parent ID, lifetimes, then selectors, with each entry's own selectors sorted.
fn sort(entries: &mut [Entry]) {
    for entry in entries.iter_mut() {
        entry
            .selectors
            .sort_by(|a, b| (&a.r#type, &a.value).cmp(&(&b.r#type, &b.value)));
    }
    entries.sort_by_cached_key(|entry| {
        let id = |id: &Option<proto::spire::api::types::Spiffeid>| {
            id.as_ref()
                .map(|id| (id.trust_domain.clone(), id.path.clone()))
        };
        let selectors: Vec<(String, String)> = entry
            .selectors
            .iter()
            .map(|s| (s.r#type.clone(), s.value.clone()))
            .collect();
        (
            id(&entry.spiffe_id),
            id(&entry.parent_id),
            entry.x509_svid_ttl,
            entry.jwt_svid_ttl,
            selectors.len(),
            selectors,
        )
    });
}
