//! `entry delete`: ends registrations.

use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchDeleteEntryRequest, BatchDeleteEntryResponse};
use serde::Deserialize;

use super::batch;
use super::entry::ENTRY_ID;
use crate::cli::args::Args;
use crate::cli::context::{Context, Face, Format};
use crate::cli::error::CliError;
use crate::cli::output::{self, Output};
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[
    ENTRY_ID,
    flag(
        "file",
        "file",
        Kind::Text,
        "JSON file {\"ids\": [...]} of the entries to delete; - is standard input",
    ),
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Server,
        path: &["entry", "delete"],
        about: "Delete registration entries",
        flags: FLAGS,
        endpoint: Endpoint::ServerAdmin,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

#[derive(Deserialize)]
struct File {
    ids: Vec<String>,
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let ids = match (args.optional("file"), args.optional("entryID")) {
        (Some(path), _) => {
            let file: File =
                serde_json::from_slice(&context.read_input(path)?).map_err(|error| {
                    CliError::usage(format!("the file of entry IDs is not valid: {error}"))
                })?;
            file.ids
        }
        (None, Some(id)) => vec![id.to_owned()],
        (None, None) => return Err(CliError::usage("an entry ID is required")),
    };
    let reply = EntryClient::new(context.channel().await?)
        .batch_delete_entry(BatchDeleteEntryRequest { ids })
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    outcome(&context, &reply)
}

fn outcome(context: &Context, reply: &BatchDeleteEntryResponse) -> Result<Output, CliError> {
    let split = batch::split(&reply.results, |result| result.status.as_ref());
    let mut text: String = split
        .done
        .iter()
        .map(|result| format!("Deleted entry with ID: {}\n", result.id))
        .collect();
    if !split.done.is_empty() && context.face == Face::Shim {
        text.push_str("\n\n");
    }
    if !matches!(context.format, Format::Json | Format::Yaml) {
        for result in &split.failed {
            let message = result
                .status
                .as_ref()
                .map_or("", |status| status.message.as_str());
            output::say(&format!(
                "Failed to delete entry with ID {} (code: {}, msg: {message:?})",
                result.id,
                batch::code_name(result.status.as_ref())
            ));
        }
    }
    let (done, failed) = (split.done.len(), split.failed.len());
    let mut output =
        Output::default().reply("spire.api.server.entry.v1.BatchDeleteEntryResponse", reply)?;
    if failed == 0 {
        text.push_str(&format!("Deleted {done} entries successfully"));
    } else {
        if context.face == Face::Shim {
            text.push_str("\n\n");
        }
        text.push_str(&match done {
            0 => format!("Failed to delete {failed} entries"),
            _ => format!(
                "Deleted {done} entries successfully, but failed to delete {failed} entries"
            ),
        });
        output.partial_failure = Some("failed to delete one or more entries".to_owned());
    }
    output.text = text;
    Ok(output)
}
