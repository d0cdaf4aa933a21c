//! The Entry service: registration entries, for administrators to keep and for agents to receive.

use std::sync::Arc;

use proto::convert::{entry_fields_from_wire, entry_to_wire, new_entry_from_wire};
use proto::spire::api::server::entry::v1::entry_server::Entry as EntryApi;
use proto::spire::api::server::entry::v1::{
    self as rpc, batch_create_entry_response, batch_delete_entry_response,
    batch_update_entry_response,
};
use proto::spire::api::types::{self, EntryMask};
use spiffe::entry::Entry;
use tonic::{Request, Response, Status, Streaming};

use super::wire;
use crate::audit::Fields;
use crate::authz::Authorizer;
use crate::caller::Caller;
use crate::datastore::EntryPatch;
use crate::error::{Kind, OpError, malformed, refused};
use crate::ops::Batch;
use crate::ops::entries::Entries;
use crate::status::{item, item_ok};

mod filter;
mod sync;
#[cfg(test)]
mod tests;

#[derive(Debug)]
pub(crate) struct EntryService {
    pub(crate) entries: Entries,
    pub(crate) authorizer: Arc<Authorizer>,
}

#[tonic::async_trait]
impl EntryApi for EntryService {
    async fn count_entries(
        &self,
        request: Request<rpc::CountEntriesRequest>,
    ) -> Result<Response<rpc::CountEntriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let filter = request
            .into_inner()
            .filter
            .map(filter::Wire::from)
            .unwrap_or_default();
        caller.describe(|| filter.audit_fields());
        let count = self
            .entries
            .count(&filter.read(&self.entries.trust_domain)?);
        Ok(Response::new(rpc::CountEntriesResponse {
            count: wire::count(count),
        }))
    }

    async fn list_entries(
        &self,
        request: Request<rpc::ListEntriesRequest>,
    ) -> Result<Response<rpc::ListEntriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let filter = request.filter.map(filter::Wire::from).unwrap_or_default();
        caller.describe(|| filter.audit_fields());
        let page = wire::page(request.page_size, &request.page_token);
        let list = self
            .entries
            .list(&filter.read(&self.entries.trust_domain)?, &page)?;
        let entries = listed(&list.items, request.output_mask.as_ref())?;
        Ok(Response::new(rpc::ListEntriesResponse {
            entries,
            next_page_token: list.next_token,
        }))
    }

    async fn get_entry(
        &self,
        request: Request<rpc::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("entry_id", &request.id));
        let found = self.entries.get(&request.id)?;
        Ok(Response::new(entry_to_wire(
            &found,
            request.output_mask.as_ref(),
        )))
    }

    async fn batch_create_entry(
        &self,
        request: Request<rpc::BatchCreateEntryRequest>,
    ) -> Result<Response<rpc::BatchCreateEntryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mask = request.output_mask.as_ref();
        let read = |wire: &types::Entry| self.new_entry(wire);
        let batch = Batch::read(&caller, &request.entries, read, audit_fields);
        let created = self.entries.create(&caller, batch).await?;
        let results = created.into_iter().map(|outcome| {
            let (status, entry) = match outcome {
                Ok(entry) => (item_ok(), Some(entry)),
                Err(refused) => (item(&refused.error), refused.existing),
            };
            batch_create_entry_response::Result {
                status: Some(status),
                entry: entry.map(|entry| entry_to_wire(&entry, mask)),
            }
        });
        let results = results.collect();
        Ok(Response::new(rpc::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<rpc::BatchUpdateEntryRequest>,
    ) -> Result<Response<rpc::BatchUpdateEntryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let (written, shown) = (request.input_mask.as_ref(), request.output_mask.as_ref());
        let read = |wire: &types::Entry| self.patch(wire, written);
        let batch = Batch::read(&caller, &request.entries, read, audit_fields);
        let updated = self.entries.update(&caller, batch).await?;
        let results = updated.into_iter().map(|outcome| {
            let (status, entry) = match outcome {
                Ok(entry) => (item_ok(), Some(entry_to_wire(&entry, shown))),
                Err(refused) => (item(&refused), None),
            };
            batch_update_entry_response::Result {
                status: Some(status),
                entry,
            }
        });
        let results = results.collect();
        Ok(Response::new(rpc::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<rpc::BatchDeleteEntryRequest>,
    ) -> Result<Response<rpc::BatchDeleteEntryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let ids = request.into_inner().ids;
        let details = |id: &String| Fields::new().with("entry_id", id);
        let batch = Batch::read(&caller, &ids, |id| read_id(id), details);
        let deleted = self.entries.delete(&caller, batch).await?;
        let results = ids.into_iter().zip(deleted).map(|(id, outcome)| {
            let status = outcome.map_or_else(|refused| item(&refused), |()| item_ok());
            batch_delete_entry_response::Result {
                status: Some(status),
                id,
            }
        });
        let results = results.collect();
        Ok(Response::new(rpc::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<rpc::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<rpc::GetAuthorizedEntriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mask = request.get_ref().output_mask.as_ref();
        let authorized = self.entries.authorized(caller.agent()?.id());
        let entries = authorized
            .iter()
            .map(|entry| entry_to_wire(entry, mask))
            .collect();
        Ok(Response::new(rpc::GetAuthorizedEntriesResponse { entries }))
    }

    type SyncAuthorizedEntriesStream = sync::Answers;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<rpc::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let caller = Caller::of(&request)?;
        let entries = self.entries.authorized(caller.agent()?.id());
        sync::answer(
            request.into_inner(),
            entries,
            caller,
            Arc::clone(&self.authorizer),
        )
        .await
        .map(Response::new)
    }
}

impl EntryService {
    fn new_entry(&self, wire: &types::Entry) -> Result<Entry, OpError> {
        let entry = new_entry_from_wire(&self.entries.trust_domain, wire)
            .map_err(malformed("failed to convert entry"))?;
        self.entries.check_new(entry)
    }

    fn patch(&self, wire: &types::Entry, mask: Option<&EntryMask>) -> Result<EntryPatch, OpError> {
        let fields = entry_fields_from_wire(&self.entries.trust_domain, wire, mask)
            .map_err(malformed("failed to convert entry"))?;
        Ok(EntryPatch {
            id: wire.id.clone(),
            parent_id: fields.parent_id,
            spiffe_id: fields.spiffe_id,
            admin: fields.admin,
            dns_names: fields.dns_names,
            downstream: fields.downstream,
            expires_at: fields.expires_at,
            federates_with: fields.federates_with,
            selectors: fields.selectors,
            store_svid: fields.store_svid,
            x509_svid_ttl: fields.x509_svid_ttl,
            jwt_svid_ttl: fields.jwt_svid_ttl,
            hint: fields.hint,
            disable_x509_svid_prefetch: fields.disable_x509_svid_prefetch,
            jwt_svid_include_jti: fields.jwt_svid_include_jti,
        })
    }
}

/// The largest answer that a gRPC client takes by default.
const MAX_ANSWER: usize = 4 << 20;

/// A list as it goes on the wire.
///
/// # Errors
/// ResourceExhausted as soon as no default client could take the answer, whatever is left to convert.
fn listed(entries: &[Arc<Entry>], mask: Option<&EntryMask>) -> Result<Vec<types::Entry>, OpError> {
    let mut size = 0;
    let mut converted = Vec::with_capacity(entries.len());
    for entry in entries {
        let entry = entry_to_wire(entry, mask);
        size += prost::Message::encoded_len(&entry);
        if size > MAX_ANSWER {
            return Err(refused(
                Kind::ResourceExhausted,
                format!(
                    "the answer would exceed {} MiB, the most that gRPC clients take by default; \
                     set page_size (SPIRE's command line asks for 500)",
                    MAX_ANSWER >> 20
                ),
            ));
        }
        converted.push(entry);
    }
    Ok(converted)
}

fn read_id(id: &str) -> Result<String, OpError> {
    if id.is_empty() {
        return Err(refused(Kind::InvalidArgument, "missing entry ID"));
    }
    Ok(id.to_owned())
}

/// SPIRE: fields of an entry in the audit log.
fn audit_fields(wire: &types::Entry) -> Fields {
    Fields::new()
        .with("entry_id", &wire.id)
        .with("spiffe_id", wire::id_text(wire.spiffe_id.as_ref()))
        .with("parent_id", wire::id_text(wire.parent_id.as_ref()))
        .with("selectors", wire::selectors_text(&wire.selectors))
        .with("x509_svid_ttl", wire.x509_svid_ttl)
        .with("jwt_svid_ttl", wire.jwt_svid_ttl)
        .with("federates_with", wire.federates_with.join(","))
        .with("admin", wire.admin)
        .with("downstream", wire.downstream)
        .with("expires_at", wire.expires_at)
        .with("dns_name", wire.dns_names.join(","))
        .with("revision_number", wire.revision_number)
        .with("store_svid", wire.store_svid)
        .with("hint", &wire.hint)
        .with("created_at", wire.created_at)
}
