//! `entry delete`: ends registrations.

use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchDeleteEntryRequest, BatchDeleteEntryResponse};

use super::batch;
use super::entry::ENTRY_ID;
use crate::cli::args::Args;
use crate::cli::command::{self, Command};
use crate::cli::context::{Context, Frontend};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::json_input::{Json, Object};
use crate::cli::output::{self, Output};

const FILE: Flag<String> = Flag::text(
    "file",
    "file",
    "JSON file {\"ids\": [...]} of the entries to delete; - is standard input",
)
.value("FILE");

const FLAGS: &[FlagSpec] = &[ENTRY_ID.positional().spec, FILE.spec];

pub(crate) const COMMAND: Command = Command::of_server(
    &["entry", "delete"],
    "Delete registration entries",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.object(command::Object::Entry);

/// The IDs of `{"ids": [...]}`.
fn parse(json: &[u8], frontend: Frontend) -> Result<Vec<String>, CliError> {
    let invalid =
        |fault: String| CliError::usage(format!("the file of entry IDs is not valid: {fault}"));
    if json.trim_ascii().is_empty() {
        return Err(invalid("nothing was given".to_owned()));
    }
    let document: Json =
        serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    let file = Object::new(&document, "", frontend).map_err(invalid)?;
    let ids = file.texts("ids").map_err(invalid)?;
    for warning in file.finish().map_err(invalid)? {
        output::say(&format!("Warning: {warning}"));
    }
    if ids.is_empty() && frontend == Frontend::Native {
        return Err(invalid("it has no IDs, so nothing is done".to_owned()));
    }
    Ok(ids)
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let ids = match (args.optional(FILE), args.optional(ENTRY_ID)) {
        (Some(path), _) => parse(&context.read_input(path)?, context.frontend)?,
        (None, Some(id)) => vec![id.to_owned()],
        (None, None) => return Err(CliError::usage("an entry ID is required")),
    };
    let reply = EntryClient::new(context.channel().await?)
        .batch_delete_entry(BatchDeleteEntryRequest { ids })
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    outcome(&reply)
}

fn outcome(reply: &BatchDeleteEntryResponse) -> Result<Output, CliError> {
    let split = batch::split(&reply.results, |result| result.status.as_ref());
    let deleted: String = split
        .done
        .iter()
        .map(|result| format!("Deleted entry with ID: {}\n", result.id))
        .collect();
    let refused = split
        .failed
        .iter()
        .map(|result| batch::Refused {
            object: result.id.clone(),
            paragraph: batch::paragraph(
                &format!("Failed to delete entry with ID {}", result.id),
                result.status.as_ref(),
                "",
            ),
            status: result.status.as_ref(),
        })
        .collect();
    let (done, failed) = (split.done.len(), split.failed.len());
    let mut output = Output::text(spire_text(&deleted, done, failed))
        .reply("spire.api.server.entry.v1.BatchDeleteEntryResponse", reply)?;
    output.unterminated = true;
    output.native_text = Some(match failed {
        0 => format!("{deleted}Deleted {done} entries successfully"),
        _ => deleted,
    });
    output.partial_failure = batch::failure("failed to delete one or more entries", refused);
    Ok(output)
}

/// SPIRE writes two line feeds after each of its two lists, and none at the end.
fn spire_text(deleted: &str, done: usize, failed: usize) -> String {
    let gap = |count: usize| if count > 0 { "\n\n" } else { "" };
    let sum = match (done, failed) {
        (_, 0) => format!("Deleted {done} entries successfully"),
        (0, _) => format!("Failed to delete {failed} entries"),
        _ => format!("Deleted {done} entries successfully, but failed to delete {failed} entries"),
    };
    format!("{deleted}{}{}{sum}", gap(done), gap(failed))
}

#[cfg(test)]
mod tests {
    use super::{Frontend, parse};

    #[test]
    fn a_file_without_ids_is_refused_natively() {
        for json in [
            "",
            " ",
            "{}",
            r#"{"ids":null}"#,
            r#"{"ids":[]}"#,
            r#"{"IDs":["a"]}"#,
            "[]",
        ] {
            parse(json.as_bytes(), Frontend::Native).unwrap_err();
        }
    }

    #[test]
    fn the_shim_reads_the_ids_as_go_does() {
        for (json, ids) in [
            (r#"{"IDs":["a","b"],"other":1}"#, &["a", "b"][..]),
            (r#"{"ids":["a"]}"#, &["a"]),
        ] {
            assert_eq!(parse(json.as_bytes(), Frontend::Spire).unwrap(), ids);
        }
    }
}
