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
use crate::cli::output::{self, Output, Shown, View};

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
    let deleted = Deleted {
        ids: split.done.iter().map(|result| result.id.clone()).collect(),
        failed: split.failed.len(),
    };
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
    let mut output =
        Output::of(deleted).reply("spire.api.server.entry.v1.BatchDeleteEntryResponse", reply)?;
    output.partial_failure = batch::failure("failed to delete one or more entries", refused);
    Ok(output)
}

/// What became of the entries of a batch.
#[derive(Debug)]
struct Deleted {
    ids: Vec<String>,
    failed: usize,
}

impl Deleted {
    fn lines(&self) -> String {
        let line = |id: &String| format!("Deleted entry with ID: {id}\n");
        self.ids.iter().map(line).collect()
    }
}

impl Shown for Deleted {
    /// SPIRE writes two line feeds after each of its two lists, and none at the end.
    fn spire(&self) -> String {
        let (done, failed) = (self.ids.len(), self.failed);
        let gap = |count: usize| if count > 0 { "\n\n" } else { "" };
        let sum = match (done, failed) {
            (_, 0) => format!("Deleted {done} entries successfully"),
            (0, _) => format!("Failed to delete {failed} entries"),
            _ => format!(
                "Deleted {done} entries successfully, but failed to delete {failed} entries"
            ),
        };
        format!("{}{}{}{sum}", self.lines(), gap(done), gap(failed))
    }

    /// What failed is an error of its own.
    fn native(&self) -> View {
        let lines = self.lines();
        View::Text(match self.failed {
            0 => format!("{lines}Deleted {} entries successfully", self.ids.len()),
            _ => lines,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Deleted, Frontend, Shown, View, parse};

    #[test]
    fn what_was_deleted_and_what_was_not_is_summed_up_in_each_command_lines_words() {
        let deleted = |ids: &[&str], failed| {
            let ids = ids.iter().map(|&id| id.to_owned()).collect();
            let deleted = Deleted { ids, failed };
            match deleted.native() {
                View::Text(native) => (deleted.spire(), native),
                View::Table(table) => panic!("{table:?}"),
            }
        };
        let lines = "Deleted entry with ID: a\nDeleted entry with ID: b\n";
        let all = "Deleted 2 entries successfully";
        assert_eq!(
            deleted(&["a", "b"], 0),
            (format!("{lines}\n\n{all}"), format!("{lines}{all}"))
        );
        let some = ", but failed to delete 1 entries";
        assert_eq!(
            deleted(&["a", "b"], 1),
            (format!("{lines}\n\n\n\n{all}{some}"), lines.to_owned())
        );
        let none = ("\n\nFailed to delete 1 entries".to_owned(), String::new());
        assert_eq!(deleted(&[], 1), none);
    }

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
