//! SyncAuthorizedEntries: what an agent is authorized for, as a full list when short, else as revisions of which the agent
//! asks for those that it lacks.
//!
//! SPIRE: the first answer to up to 500 entries is one message with all of them and the end of the stream.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use proto::convert::entry_to_wire;
use proto::spire::api::server::entry::v1::{
    EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use proto::spire::api::types::EntryMask;
use spiffe::entry::Entry;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

use crate::authz::{Authorizer, StreamEnd};
use crate::caller::Caller;
use crate::error::{Kind, log_account, refused};

/// SPIRE: the entry page size.
const PAGE: usize = 500;
/// Pages made ahead of what the agent has read.
const AHEAD: usize = 2;

pub(super) type Answers =
    Pin<Box<dyn Stream<Item = Result<SyncAuthorizedEntriesResponse, Status>> + Send>>;

pub(super) async fn answer(
    mut requests: Streaming<SyncAuthorizedEntriesRequest>,
    entries: Vec<Arc<Entry>>,
    caller: Caller,
    authorizer: Arc<Authorizer>,
) -> Result<Answers, Status> {
    let Some(first) = requests.message().await? else {
        return Ok(Box::pin(tokio_stream::empty()));
    };
    if !first.ids.is_empty() {
        return Err(refused(
            Kind::InvalidArgument,
            "specifying IDs on initial request is not supported",
        )
        .into());
    }
    let mask = first.output_mask;
    if mask.is_some_and(|mask| !mask.revision_number) {
        return Err(refused(Kind::InvalidArgument, "revision number cannot be masked").into());
    }
    if entries.len() <= PAGE {
        let entries = entries
            .iter()
            .map(|entry| entry_to_wire(entry, mask.as_ref()))
            .collect();
        let all = SyncAuthorizedEntriesResponse {
            entries,
            ..SyncAuthorizedEntriesResponse::default()
        };
        return Ok(Box::pin(tokio_stream::once(Ok(all))));
    }
    let (answers, stream) = mpsc::channel(AHEAD);
    let conversation = Conversation {
        entries,
        mask,
        caller,
        authorizer,
        answers,
    };
    tokio::spawn(log_account::inherited(conversation.run(requests)));
    Ok(Box::pin(ReceiverStream::new(stream)))
}

/// What the agent may have of what it asks for, each once. All that is kept of its request: an agent that does not read its answers makes
/// the server hold a pointer for each of its entries, whatever it asked for.
fn wanted<'a>(ids: &[String], by_id: &HashMap<&str, &'a Arc<Entry>>) -> Vec<&'a Arc<Entry>> {
    let unique: BTreeMap<&str, &'a Arc<Entry>> = ids
        .iter()
        .filter_map(|id| by_id.get_key_value(id.as_str()))
        .map(|(id, entry)| (*id, *entry))
        .collect();
    unique.into_values().collect()
}

struct Conversation {
    entries: Vec<Arc<Entry>>,
    mask: Option<EntryMask>,
    caller: Caller,
    authorizer: Arc<Authorizer>,
    answers: mpsc::Sender<Result<SyncAuthorizedEntriesResponse, Status>>,
}

/// The agent went away; there is nobody to tell.
struct Gone;

impl Conversation {
    async fn run(self, mut requests: Streaming<SyncAuthorizedEntriesRequest>) {
        let mut closing = self.caller.connection.closing();
        let talk = async {
            self.send_revisions().await?;
            let by_id: HashMap<&str, &Arc<Entry>> = self
                .entries
                .iter()
                .map(|entry| (entry.id.as_ref(), entry))
                .collect();
            // The end of the requests, or of the connection, is the normal end.
            while let Some(Ok(request)) = requests.next().await {
                self.recheck().await?;
                let entries = wanted(&request.ids, &by_id);
                drop(request);
                self.send_entries(entries).await?;
            }
            Ok::<(), Gone>(())
        };
        tokio::select! {
            // Gone: there is nobody to tell.
            _ended = talk => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }

    /// Goes on only with an agent that is still one.
    async fn recheck(&self) -> Result<(), Gone> {
        let standing = self.caller.agent().map_err(StreamEnd::Denied);
        let Err(end) = standing.and_then(|svid| self.authorizer.recheck_agent(svid.svid())) else {
            return Ok(());
        };
        if let StreamEnd::Denied(denied) = end {
            self.answers
                .send(Err(denied.into()))
                .await
                .map_err(|_gone| Gone)?;
        }
        Err(Gone)
    }

    async fn send_revisions(&self) -> Result<(), Gone> {
        let mut pages = self.entries.chunks(PAGE).peekable();
        while let Some(page) = pages.next() {
            let entry_revisions = page
                .iter()
                .map(|entry| EntryRevision {
                    id: entry.id.as_ref().to_owned(),
                    revision_number: entry.revision_number,
                    created_at: entry.created_at,
                })
                .collect();
            self.send(SyncAuthorizedEntriesResponse {
                entry_revisions,
                more: pages.peek().is_some(),
                entries: Vec::new(),
            })
            .await?;
        }
        Ok(())
    }

    /// Each request is answered in full, its last page without `more`, before the next is read.
    async fn send_entries(&self, wanted: Vec<&Arc<Entry>>) -> Result<(), Gone> {
        let mut page = SyncAuthorizedEntriesResponse::default();
        for entry in wanted {
            if page.entries.len() == PAGE {
                page.more = true;
                self.send(std::mem::take(&mut page)).await?;
            }
            page.entries.push(entry_to_wire(entry, self.mask.as_ref()));
        }
        self.send(page).await
    }

    async fn send(&self, page: SyncAuthorizedEntriesResponse) -> Result<(), Gone> {
        self.answers.send(Ok(page)).await.map_err(|_gone| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::entry;

    #[test]
    fn keeps_of_what_an_agent_asks_for_each_of_its_entries_once() {
        let made = |id: &str| {
            let wire = entry("/spire/agent/a", &format!("/{id}"));
            let mut read = proto::convert::entry_from_wire(&wire).unwrap();
            read.id = id.into();
            Arc::new(read)
        };
        let (one, two) = (made("1"), made("2"));
        let by_id = HashMap::from([("1", &one), ("2", &two)]);
        let mut ids = vec!["2".to_owned(); 10_000];
        ids.extend(["1".to_owned(), "nosuch".to_owned(), String::new()]);
        assert_eq!(wanted(&ids, &by_id), [&one, &two]);
    }
}
