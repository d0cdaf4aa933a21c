//! Batch replies: which items were done, and how the failed ones are reported.

use proto::spire::api::types::{Entry, Status};

use crate::cli::error::{Batch, FailedItem};
use crate::cli::ids;

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

/// What became of one failed item: the object's name, SPIRE's paragraph about it, and why.
pub(super) struct Refused<'r> {
    pub(super) object: String,
    pub(super) paragraph: String,
    pub(super) status: Option<&'r Status>,
}

/// The paragraph that SPIRE writes about a failed item, what it concerns being the last part.
pub(super) fn paragraph(opening: &str, status: Option<&Status>, about: &str) -> String {
    let code = status.map_or_else(
        || "Unknown".to_owned(),
        |status| match status.code {
            0 => "OK".to_owned(),
            code => format!("{:?}", tonic::Code::from_i32(code)),
        },
    );
    let message = status.map_or("", |status| status.message.as_str());
    format!("{opening} (code: {code}, msg: {message:?}){about}")
}

/// The failure that the failed items amount to; `None` when none failed.
pub(super) fn failure(text: &str, failed: Vec<Refused<'_>>) -> Option<Batch> {
    if failed.is_empty() {
        return None;
    }
    let items = failed
        .into_iter()
        .map(|item| FailedItem {
            object: item.object,
            code: item.status.map_or(tonic::Code::Unknown, |status| {
                tonic::Code::from_i32(status.code)
            }),
            message: item
                .status
                .map_or_else(String::new, |status| status.message.clone()),
            paragraph: item.paragraph,
        })
        .collect();
    Some(Batch {
        text: text.to_owned(),
        items,
    })
}

/// A failed item of `entry create` and `entry update`, where SPIRE shows the whole entry.
fn refused_entry<'r>(verb: &str, status: Option<&'r Status>, entry: Option<&Entry>) -> Refused<'r> {
    let shown = entry.map(super::entry::text).unwrap_or_default();
    let about = format!(":\n{}", shown.strip_suffix('\n').unwrap_or(&shown));
    Refused {
        object: entry.map_or_else(String::new, |entry| {
            let id = ids::text(entry.spiffe_id.as_ref());
            if entry.id.is_empty() {
                id
            } else {
                format!("{id} (entry {})", entry.id)
            }
        }),
        paragraph: paragraph(
            &format!("Failed to {verb} the following entry"),
            status,
            &about,
        ),
        status,
    }
}

/// The reply of `entry create` or `entry update`, item by item.
pub(super) struct EntryResult {
    pub(super) status: Option<Status>,
    pub(super) entry: Option<Entry>,
}

/// What became of the entries of a batch: those that the server took, and the failure that the others amount to. A failed
/// item carries no entry: what was asked for is shown.
pub(super) fn entries(
    verb: &str,
    results: &[EntryResult],
    asked: &[Entry],
) -> (Vec<Entry>, Option<Batch>) {
    let mut done = Vec::new();
    let mut refused = Vec::new();
    for (result, asked) in results.iter().zip(asked) {
        if succeeded(result.status.as_ref()) {
            done.extend(result.entry.clone());
        } else {
            refused.push(refused_entry(verb, result.status.as_ref(), Some(asked)));
        }
    }
    let text = format!("failed to {verb} one or more entries");
    let failure = failure(&text, refused);
    (done, failure)
}
