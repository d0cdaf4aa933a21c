//! Asking the server for entries: all of a filter, page by page, or the first of them with the members that are needed.

use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{ListEntriesRequest, list_entries_request};
use proto::spire::api::types::{Entry, EntryMask};
use tonic::Status;
use tonic::transport::Channel;

use crate::cli::error::CliError;

/// Entries a page (SPIRE: 500, well below the 4 MiB of a message).
const PAGE: i32 = 500;
/// What a check looks at: more entries than this tell it nothing more.
const FEW: i32 = 100;
/// A page of entries with many selectors is larger than gRPC's usual 4 MiB.
const MAX_PAGE_BYTES: usize = 64 * 1024 * 1024;

/// The members of an entry that a check needs. The ID always comes.
#[derive(Clone, Copy)]
pub(crate) struct Part(EntryMask);

impl Part {
    const NONE: EntryMask = EntryMask {
        spiffe_id: false,
        parent_id: false,
        selectors: false,
        x509_svid_ttl: false,
        federates_with: false,
        admin: false,
        downstream: false,
        expires_at: false,
        dns_names: false,
        revision_number: false,
        store_svid: false,
        jwt_svid_ttl: false,
        hint: false,
        created_at: false,
        additional_attributes: false,
    };
    pub(crate) const ID: Self = Self(Self::NONE);
    pub(crate) const SPIFFE_ID: Self = Self(EntryMask {
        spiffe_id: true,
        ..Self::NONE
    });
    pub(crate) const SELECTORS: Self = Self(EntryMask {
        spiffe_id: true,
        selectors: true,
        ..Self::NONE
    });
    pub(crate) const PARENT: Self = Self(EntryMask {
        parent_id: true,
        selectors: true,
        ..Self::NONE
    });
}

/// Every entry that the filter lets through, whole.
pub(crate) async fn all(
    channel: Channel,
    filter: list_entries_request::Filter,
) -> Result<Vec<Entry>, CliError> {
    let mut client = EntryClient::new(channel).max_decoding_message_size(MAX_PAGE_BYTES);
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token,
        };
        let page = client
            .list_entries(request)
            .await
            .map_err(|status| CliError::status("error fetching entries", status))?
            .into_inner();
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(entries);
        }
    }
}

/// The first hundred entries that the filter lets through, with the members that `part` names.
pub(crate) async fn matching(
    channel: &Channel,
    filter: list_entries_request::Filter,
    part: Part,
) -> Result<Vec<Entry>, Status> {
    let request = ListEntriesRequest {
        filter: Some(filter),
        output_mask: Some(part.0),
        page_size: FEW,
        page_token: String::new(),
    };
    let reply = EntryClient::new(channel.clone())
        .list_entries(request)
        .await?;
    Ok(reply.into_inner().entries)
}
