//! Batch replies: which items were done, and how the failed ones are told.

use proto::spire::api::types::Status;

use crate::cli::context::{Context, Format};
use crate::cli::output;

/// The items of a reply by outcome, in their order.
pub(super) struct Split<'r, T> {
    pub(super) done: Vec<&'r T>,
    pub(super) failed: Vec<&'r T>,
}

/// Whether an item's status says OK; a missing status does not.
pub(super) fn succeeded(status: Option<&Status>) -> bool {
    status.is_some_and(|status| status.code == 0)
}

pub(super) fn split<T>(results: &[T], status: impl Fn(&T) -> Option<&Status>) -> Split<'_, T> {
    let (done, failed) = results.iter().partition(|result| succeeded(status(result)));
    Split { done, failed }
}

/// The name of a gRPC code as Go prints it.
pub(super) fn code_name(status: Option<&Status>) -> String {
    status.map_or_else(
        || "Unknown".to_owned(),
        |status| match status.code {
            0 => "OK".to_owned(),
            code => format!("{:?}", tonic::Code::from_i32(code)),
        },
    )
}

/// Writes one paragraph for each failed item to standard error, unless the reply itself is printed as data.
pub(super) fn report_failures<'r, T>(
    context: &Context,
    verb: &str,
    failed: &[&'r T],
    describe: impl Fn(&'r T) -> (Option<&'r Status>, String),
) {
    if matches!(context.format, Format::Json | Format::Yaml) {
        return;
    }
    for result in failed {
        let (status, text) = describe(result);
        let message = status.map_or("", |status| status.message.as_str());
        output::say(&format!(
            "Failed to {verb} the following entry (code: {}, msg: {message:?}):\n{}",
            code_name(status),
            text.strip_suffix('\n').unwrap_or(&text)
        ));
    }
}
