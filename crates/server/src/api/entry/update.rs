//! BatchUpdateEntry: the fields that the input mask names, entry by entry.

use std::sync::Arc;

use proto::convert::{entry_fields_from_wire, entry_to_wire};
use proto::spire::api::server::entry::v1::{BatchUpdateEntryRequest, batch_update_entry_response};
use proto::spire::api::types::{self, EntryMask};
use spiffe::entry::Entry;

use super::{EntryService, audit_fields, write_code};
use crate::caller::Caller;
use crate::datastore::EntryPatch;
use crate::error::{Kind, OpError, failed, malformed, refused};
use crate::status::{item, item_ok};

impl EntryService {
    /// Updates what can be read; every entry gets its own outcome, in the order of the request.
    pub(super) async fn update(
        &self,
        request: &BatchUpdateEntryRequest,
        caller: &Caller,
    ) -> Result<Vec<batch_update_entry_response::Result>, OpError> {
        let mask = request.output_mask.as_ref();
        let mut good = Vec::new();
        let read: Vec<Result<(), OpError>> = request
            .entries
            .iter()
            .map(|wire| {
                self.patch(wire, request.input_mask.as_ref())
                    .map(|patch| good.push(patch))
            })
            .collect();
        let mut outcomes = self.write_patches(good).await?.into_iter();
        let results = read.into_iter().zip(&request.entries).map(|(read, wire)| {
            let outcome = read.and_then(|()| {
                outcomes.next().unwrap_or_else(|| {
                    Err(refused(
                        Kind::Internal,
                        "failed to update entry: the datastore gave no outcome",
                    ))
                })
            });
            caller.item(outcome.as_ref().map(|_| ()), || audit_fields(wire));
            match outcome {
                Ok(entry) => batch_update_entry_response::Result {
                    status: Some(item_ok()),
                    entry: Some(entry_to_wire(&entry, mask)),
                },
                Err(refused) => batch_update_entry_response::Result {
                    status: Some(item(&refused)),
                    entry: None,
                },
            }
        });
        Ok(results.collect())
    }

    fn patch(&self, wire: &types::Entry, mask: Option<&EntryMask>) -> Result<EntryPatch, OpError> {
        let fields = entry_fields_from_wire(&self.trust_domain, wire, mask)
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

    async fn write_patches(
        &self,
        patches: Vec<EntryPatch>,
    ) -> Result<Vec<Result<Arc<Entry>, OpError>>, OpError> {
        if patches.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = self
            .datastore
            .update_entries(patches)
            .await
            .map_err(|error| failed(Kind::Internal, "failed to update entry", error))?;
        let outcomes = outcomes.into_iter().map(|outcome| {
            outcome.map_err(|error| match write_code(&error) {
                // SPIRE: a missing object's status carries no cause.
                Kind::NotFound => refused(Kind::NotFound, "failed to update entry"),
                code => failed(code, "failed to update entry", error),
            })
        });
        Ok(outcomes.collect())
    }
}
