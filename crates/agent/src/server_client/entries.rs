//! SPIRE's entry sync: revisions first, then the full entries that are new or changed.
//! SPIRE: client, streamAndSyncEntries; entry.v1 SyncAuthorizedEntries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::convert::{agent_entry_mask, entry_from_wire};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use proto::spire::api::types;
use spiffe::entry::Entry;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{ClientError, MAX_MESSAGE};

/// What the agent knows of an entry's age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) revision_number: i64,
    pub(crate) created_at: i64,
}

/// What a sync brought.
#[derive(Debug, Default)]
pub(crate) struct WireEntries {
    /// Entries that are new or changed.
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Entries that are not authorized any more.
    pub(crate) removed: Vec<Arc<str>>,
}

/// Entries asked for in one request; the server answers with pages of 500.
const IDS_PER_REQUEST: usize = 500;

pub(super) async fn sync(
    channel: Channel,
    known: &BTreeMap<Arc<str>, Known>,
) -> Result<WireEntries, ClientError> {
    let mut client = EntryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (requests, outgoing) = mpsc::channel(1);
    let first = SyncAuthorizedEntriesRequest {
        output_mask: Some(agent_entry_mask()),
        ids: Vec::new(),
    };
    requests
        .send(first)
        .await
        .map_err(|_closed| ClientError::timed_out())?;
    let mut answers = client
        .sync_authorized_entries(ReceiverStream::new(outgoing))
        .await?
        .into_inner();

    let mut gone: BTreeSet<Arc<str>> = known.keys().cloned().collect();
    let mut needed = Vec::new();
    let mut entries = Vec::new();
    loop {
        let page = next(&mut answers).await?;
        for revision in &page.entry_revisions {
            gone.remove(revision.id.as_str());
            if is_new(revision, known) {
                needed.push(revision.id.clone());
            }
        }
        take_entries(page.entries, &mut gone, &mut entries);
        if !page.more {
            break;
        }
    }
    for ids in needed.chunks(IDS_PER_REQUEST) {
        let request = SyncAuthorizedEntriesRequest {
            output_mask: None,
            ids: ids.to_vec(),
        };
        requests
            .send(request)
            .await
            .map_err(|_closed| ClientError::malformed("server closed the sync early"))?;
        loop {
            let page = next(&mut answers).await?;
            take_entries(page.entries, &mut gone, &mut entries);
            if !page.more {
                break;
            }
        }
    }
    Ok(WireEntries {
        entries,
        removed: gone.into_iter().collect(),
    })
}

async fn next(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, ClientError> {
    answers
        .message()
        .await?
        .ok_or_else(|| ClientError::malformed("server ended the sync early"))
}

fn is_new(revision: &EntryRevision, known: &BTreeMap<Arc<str>, Known>) -> bool {
    known.get(revision.id.as_str()).is_none_or(|known| {
        known.revision_number != revision.revision_number
            || (revision.created_at != 0 && known.created_at != revision.created_at)
    })
}

fn take_entries(
    wire: Vec<types::Entry>,
    gone: &mut BTreeSet<Arc<str>>,
    entries: &mut Vec<Arc<Entry>>,
) {
    for wire in wire {
        gone.remove(wire.id.as_str());
        match entry_from_wire(&wire) {
            Ok(entry) => entries.push(Arc::new(entry)),
            Err(because) => {
                tracing::warn!(entry = %wire.id, %because, "server sent a malformed entry; it is skipped");
            }
        }
    }
}
