//! The Entry service: registration entries, for administrators to keep and for agents to receive.

use std::sync::Arc;

use config::fault::Code;
use proto::convert::{entry_to_wire, new_entry_from_wire};
use proto::spire::api::server::entry::v1::entry_server::Entry as EntryApi;
use proto::spire::api::server::entry::v1::{
    self as rpc, batch_create_entry_response, batch_delete_entry_response,
};
use proto::spire::api::types;
use spiffe::entry::Entry;
use spiffe::trust_domain::TrustDomain;
use tonic::{Request, Response, Status, Streaming};

use super::wire;
use crate::audit::Fields;
use crate::authz::Authorizer;
use crate::caller::Caller;
use crate::datastore::{Datastore, EntryWriteError};
use crate::error::{Kind, OpError, failed, malformed, refused};
use crate::registry::Registry;
use crate::status::{item, item_ok};

mod filter;
mod sync;
#[cfg(test)]
mod tests;
mod update;

#[derive(Debug)]
pub(crate) struct EntryService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) datastore: Datastore,
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
        let count = self.registry.entry_count(&filter.read(&self.trust_domain)?);
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
        let listed = self
            .registry
            .entries(&filter.read(&self.trust_domain)?, &page)
            .map_err(|error| failed(Kind::InvalidArgument, "failed to list entries", error))?;
        let mask = request.output_mask.as_ref();
        let entries = listed
            .items
            .iter()
            .map(|entry| entry_to_wire(entry, mask))
            .collect();
        Ok(Response::new(rpc::ListEntriesResponse {
            entries,
            next_page_token: listed.next_token,
        }))
    }

    async fn get_entry(
        &self,
        request: Request<rpc::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        if request.id.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing ID").into());
        }
        caller.describe(|| Fields::new().with("entry_id", &request.id));
        let found = self.registry.entry(&request.id).ok_or_else(|| {
            refused(Kind::NotFound, "entry not found").with_code(Code::EntryNotFound)
        })?;
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
        let results = self.create(&request, &caller).await?;
        Ok(Response::new(rpc::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<rpc::BatchUpdateEntryRequest>,
    ) -> Result<Response<rpc::BatchUpdateEntryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let results = self.update(&request.into_inner(), &caller).await?;
        Ok(Response::new(rpc::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<rpc::BatchDeleteEntryRequest>,
    ) -> Result<Response<rpc::BatchDeleteEntryResponse>, Status> {
        let caller = Caller::of(&request)?;
        let results = self.delete(request.into_inner().ids, &caller).await?;
        Ok(Response::new(rpc::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<rpc::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<rpc::GetAuthorizedEntriesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mask = request.get_ref().output_mask.as_ref();
        let authorized = self.registry.authorized_entries(&caller.agent()?.id);
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
        let entries = self.registry.authorized_entries(&caller.agent()?.id);
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
    /// Creates what can be read; every entry gets its own outcome, in the order of the request.
    async fn create(
        &self,
        request: &rpc::BatchCreateEntryRequest,
        caller: &Caller,
    ) -> Result<Vec<batch_create_entry_response::Result>, OpError> {
        let mask = request.output_mask.as_ref();
        let mut good = Vec::new();
        let read: Vec<Result<(), OpError>> = request
            .entries
            .iter()
            .map(|wire| self.new_entry(wire).map(|entry| good.push(entry)))
            .collect();
        let mut outcomes = self.write(good).await?.into_iter();
        let results = read.into_iter().zip(&request.entries).map(|(read, wire)| {
            let outcome = match read {
                Err(refused) => Err((refused, None)),
                Ok(()) => outcomes.next().unwrap_or_else(|| {
                    Err((
                        refused(
                            Kind::Internal,
                            "failed to create entry: the datastore gave no outcome",
                        ),
                        None,
                    ))
                }),
            };
            caller.item(
                outcome.as_ref().map(|_| ()).map_err(|(refused, _)| refused),
                || audit_fields(wire),
            );
            match outcome {
                Ok(entry) => batch_create_entry_response::Result {
                    status: Some(item_ok()),
                    entry: Some(entry_to_wire(&entry, mask)),
                },
                Err((refused, similar)) => batch_create_entry_response::Result {
                    status: Some(item(&refused)),
                    entry: similar.map(|entry| entry_to_wire(&entry, mask)),
                },
            }
        });
        Ok(results.collect())
    }

    fn new_entry(&self, wire: &types::Entry) -> Result<Entry, OpError> {
        let entry = new_entry_from_wire(&self.trust_domain, wire)
            .map_err(malformed("failed to convert entry"))?;
        entry.validate(&self.trust_domain).map_err(|error| {
            failed(
                Kind::InvalidArgument,
                "failed to create entry: datastore-validation",
                error,
            )
        })?;
        Ok(entry)
    }

    async fn write(
        &self,
        entries: Vec<Entry>,
    ) -> Result<Vec<Result<Arc<Entry>, Refusal>>, OpError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = self
            .datastore
            .create_entries(entries)
            .await
            .map_err(|error| failed(Kind::Internal, "failed to create entry", error))?;
        Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.map(|created| created.entry).map_err(create_refusal))
            .collect())
    }

    async fn delete(
        &self,
        ids: Vec<String>,
        caller: &Caller,
    ) -> Result<Vec<batch_delete_entry_response::Result>, OpError> {
        let named: Vec<String> = ids.iter().filter(|id| !id.is_empty()).cloned().collect();
        let mut outcomes = self
            .datastore
            .delete_entries(named)
            .await
            .map_err(|error| failed(Kind::Internal, "failed to delete entry", error))?
            .into_iter();
        let results = ids.into_iter().map(|id| {
            let outcome = if id.is_empty() {
                Err(refused(Kind::InvalidArgument, "missing entry ID"))
            } else if outcomes.next().is_some_and(|outcome| outcome.is_ok()) {
                Ok(())
            } else {
                Err(refused(Kind::NotFound, "entry not found").with_code(Code::EntryNotFound))
            };
            caller.item(outcome.as_ref().copied(), || {
                Fields::new().with("entry_id", &id)
            });
            let status = outcome.map_or_else(|refused| item(&refused), |()| item_ok());
            batch_delete_entry_response::Result {
                status: Some(status),
                id,
            }
        });
        Ok(results.collect())
    }
}

/// An item's refusal, and the entry that is in the way if one is.
type Refusal = (OpError, Option<Arc<Entry>>);

fn create_refusal(error: EntryWriteError) -> Refusal {
    match error {
        // SPIRE's clients match on the code and read the entry that is there already.
        EntryWriteError::Similar(existing) => (
            refused(Kind::AlreadyExists, "similar entry already exists")
                .with_code(Code::SimilarEntry),
            Some(existing),
        ),
        other => (
            failed(write_code(&other), "failed to create entry", other),
            None,
        ),
    }
}

fn write_code(error: &EntryWriteError) -> Kind {
    match error {
        EntryWriteError::Similar(_) | EntryWriteError::IdTaken(_) => Kind::AlreadyExists,
        EntryWriteError::NotFound => Kind::NotFound,
        EntryWriteError::UnknownFederatedBundle(_) | EntryWriteError::Invalid(_) => {
            Kind::InvalidArgument
        }
    }
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
