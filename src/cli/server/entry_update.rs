//! `entry update`: replaces a registration entry by what the flags say.

use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchUpdateEntryRequest, BatchUpdateEntryResponse, GetEntryRequest,
};
use proto::spire::api::types::Entry;
use tonic::transport::Channel;

use super::entry::{
    ADMIN, DATA, DNS, DOWNSTREAM, ENTRY_ID, EXPIRY, FEDERATES_WITH, HINT, JTI, JWT_TTL,
    NO_PREFETCH, PARENT_ID, SPIFFE_ID, STORE_SVID, X509_TTL, check_ttls, from_args, table, text,
};
use super::{batch, entry_check, entry_data};
use crate::cli::args::Args;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ids;
use crate::cli::output::Output;
use crate::cli::selectors::SELECTOR;
use crate::cli::spec::{Command, Endpoint, Flag, Program, Surface};

const FLAGS: &[Flag] = &[
    ENTRY_ID,
    SPIFFE_ID,
    PARENT_ID,
    SELECTOR,
    X509_TTL,
    JWT_TTL,
    DNS,
    FEDERATES_WITH,
    HINT,
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
        path: &["entry", "update"],
        about: "Replace a registration entry",
        flags: FLAGS,
        endpoint: Endpoint::ServerAdmin,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let parsed = match args.optional("data") {
        Some(path) => Some(entry_data::parse(&context.read_input(path)?, context.face)?),
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
    for (result, entry) in reply.results.iter_mut().zip(entries) {
        if !batch::succeeded(result.status.as_ref()) {
            result.entry = Some(entry);
        }
    }
    let mut output = outcome(&context, &reply)?;
    if output.partial_failure.is_none() {
        let updated: Vec<Entry> = reply
            .results
            .iter()
            .filter_map(|result| result.entry.clone())
            .collect();
        entry_check::warn(&context, &channel, &updated).await;
        if let Some(note) = entry_check::lifetime_note(&context, &channel, &updated).await {
            output = output.note(note);
        }
    }
    Ok(output)
}

fn check(args: &Args) -> Result<(), CliError> {
    let fault = if args.text("entryID").is_empty() {
        "entry ID is required"
    } else if args.list("selector").is_empty() {
        "at least one selector is required"
    } else if args.text("parentID").is_empty() {
        "a parent ID is required"
    } else if args.text("spiffeID").is_empty() {
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
    entry.spiffe_id = Some(ids::expand(context, channel, args.text("spiffeID")).await?);
    entry.parent_id = Some(ids::expand(context, channel, args.text("parentID")).await?);
    let (prefetch, jti) = (
        args.given("disableX509SVIDPrefetch"),
        args.given("jwtSVIDIncludeJTI"),
    );
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
            attributes.disable_x509_svid_prefetch = args.switch("disableX509SVIDPrefetch");
        }
        if jti {
            attributes.jwt_svid_include_jti = args.switch("jwtSVIDIncludeJTI");
        }
        entry.additional_attributes = Some(attributes);
    }
    Ok(entry)
}

fn outcome(context: &Context, reply: &BatchUpdateEntryResponse) -> Result<Output, CliError> {
    let split = batch::split(&reply.results, |result| result.status.as_ref());
    let made: Vec<Entry> = split
        .done
        .iter()
        .filter_map(|result| result.entry.clone())
        .collect();
    let refused = split
        .failed
        .iter()
        .map(|result| batch::refused_entry("update", result.status.as_ref(), result.entry.as_ref()))
        .collect();
    let mut output = Output::text(made.iter().map(text).collect::<String>())
        .reply("spire.api.server.entry.v1.BatchUpdateEntryResponse", reply)?;
    output.table = Some(table(&made));
    output.partial_failure =
        batch::failure(context, "failed to update one or more entries", refused);
    Ok(output)
}
