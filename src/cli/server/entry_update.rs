//! `entry update`: replaces a registration entry by what the flags say.

use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchUpdateEntryRequest, GetEntryRequest};
use proto::spire::api::types::Entry;
use tonic::transport::Channel;

use super::entry::{
    ADMIN, DATA, DNS, DOWNSTREAM, ENTRY_ID, EXPIRY, HINT, JTI, JWT_TTL, NO_PREFETCH, PARENT_ID,
    SPIFFE_ID, STORE_SVID, X509_TTL, check_ttls, from_args,
};
use super::{batch, entry_check, entry_data};
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::FlagSpec;
use crate::cli::ids;
use crate::cli::output::Output;
use crate::cli::selectors::{FEDERATES_WITH, SELECTOR};

const FLAGS: &[FlagSpec] = &[
    ENTRY_ID.spec,
    SPIFFE_ID.spec,
    PARENT_ID.spec,
    SELECTOR.spec,
    X509_TTL.spec,
    JWT_TTL.spec,
    DNS.spec,
    FEDERATES_WITH.spec,
    HINT.spec,
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
    &["entry", "update"],
    "Replace a registration entry",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.object(Object::Entry)
.examples(
    "\
The entry is replaced by what the flags say: what is not given returns to its default.",
);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let parsed = match args.optional(DATA) {
        Some(path) => Some(entry_data::parse(
            &context.read_input(path)?,
            context.frontend,
        )?),
        None => {
            check(&args)?;
            None
        }
    };
    let own = if parsed.is_none() {
        Some(from_args(&args)?)
    } else {
        None
    };
    let channel = context.channel().await?;
    let entries = match (parsed, own) {
        (Some(entries), _) => entries,
        (None, Some(entry)) => vec![complete(entry, &context, &channel, &args).await?],
        (None, None) => Vec::new(),
    };
    entry_check::refuse(&context, &channel, &args, &entries).await?;
    let mut reply = EntryClient::new(channel.clone())
        .batch_update_entry(BatchUpdateEntryRequest {
            entries: entries.clone(),
            input_mask: None,
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
    let (made, failure) = batch::entries("update", &results, &entries);
    let output =
        Output::default().reply("spire.api.server.entry.v1.BatchUpdateEntryResponse", &reply)?;
    Ok(entry_check::written(&context, &channel, output, made, failure).await)
}

fn check(args: &Args) -> Result<(), CliError> {
    let fault = if args.get(ENTRY_ID).is_empty() {
        "entry ID is required"
    } else if args.get(SELECTOR).is_empty() {
        "at least one selector is required"
    } else if args.get(PARENT_ID).is_empty() {
        "a parent ID is required"
    } else if args.get(SPIFFE_ID).is_empty() {
        "a SPIFFE ID is required"
    } else {
        return check_ttls(args);
    };
    Err(CliError::usage(fault))
}

/// Fills in the IDs and keeps the additional attributes that the flags do not speak of: they have no mask of their own.
async fn complete(
    mut entry: Entry,
    context: &Context,
    channel: &Channel,
    args: &Args,
) -> Result<Entry, CliError> {
    entry.spiffe_id = Some(ids::expand(context, channel, args.get(SPIFFE_ID)).await?);
    entry.parent_id = Some(ids::expand(context, channel, args.get(PARENT_ID)).await?);
    let (prefetch, jti) = (args.given(NO_PREFETCH), args.given(JTI));
    if prefetch || jti {
        let existing = EntryClient::new(channel.clone())
            .get_entry(GetEntryRequest {
                id: entry.id.clone(),
                output_mask: None,
            })
            .await
            .map_err(|status| {
                CliError::status(
                    "failed to fetch existing entry to merge additional attributes",
                    status,
                )
            })?
            .into_inner();
        let mut attributes = existing.additional_attributes.unwrap_or_default();
        if prefetch {
            attributes.disable_x509_svid_prefetch = args.get(NO_PREFETCH);
        }
        if jti {
            attributes.jwt_svid_include_jti = args.get(JTI);
        }
        entry.additional_attributes = Some(attributes);
    }
    Ok(entry)
}
