//! Registration entries: creating, changing, deleting and finding them.

use std::sync::Arc;
use std::time::Duration;

use config::fault::Code;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use super::Batch;
use crate::audit::Outcome;
use crate::caller::Caller;
use crate::datastore::{self, EntryPatch, EntryWriteError};
use crate::error::{Kind, OpError, failed, refused, write_failed};
use crate::registry::{EntryFilter, Listing, Page, Registry};

#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) entries: datastore::Entries,
    /// SVIDs live no longer than the authority that signs them.
    pub(crate) ca_ttl: Duration,
}

/// Why an entry was not created, and the similar entry that exists already if there is one.
#[derive(Debug)]
pub(crate) struct NotCreated {
    pub(crate) error: OpError,
    pub(crate) existing: Option<Arc<Entry>>,
}

impl From<OpError> for NotCreated {
    fn from(error: OpError) -> Self {
        Self {
            error,
            existing: None,
        }
    }
}

impl From<&NotCreated> for Outcome {
    fn from(refused: &NotCreated) -> Self {
        Self::from(&refused.error)
    }
}

impl Entries {
    pub(crate) fn count(&self, filter: &EntryFilter) -> usize {
        self.registry.entry_count(filter)
    }

    /// A page of entries, in the order of their creation.
    ///
    /// # Errors
    /// InvalidArgument when the page token is not one of this server's.
    pub(crate) fn list(
        &self,
        filter: &EntryFilter,
        page: &Page,
    ) -> Result<Listing<Arc<Entry>>, OpError> {
        self.registry
            .entries(filter, page)
            .map_err(|error| failed(Kind::InvalidArgument, "failed to list entries", error))
    }

    /// # Errors
    /// InvalidArgument without an ID; NotFound.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Entry>, OpError> {
        if id.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing ID"));
        }
        self.registry.entry(id).ok_or_else(not_found)
    }

    /// The entries that an agent may have SVIDs of.
    pub(crate) fn authorized(&self, agent: &SpiffeId) -> Vec<Arc<Entry>> {
        self.registry.authorized_entries(agent)
    }

    /// Whether an entry can be created as far as it can be decided without the others.
    ///
    /// # Errors
    /// InvalidArgument.
    pub(crate) fn check_new(&self, entry: Entry) -> Result<Entry, OpError> {
        match entry.validate(&self.trust_domain) {
            Ok(()) => Ok(entry),
            Err(error) => Err(failed(
                Kind::InvalidArgument,
                "failed to create entry: datastore-validation",
                error,
            )
            .with_code(Code::InvalidEntry)),
        }
    }

    /// Creates what could be read.
    ///
    /// # Errors
    /// When nothing could be written.
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        mut batch: Batch<Entry>,
    ) -> Result<Vec<Result<Arc<Entry>, NotCreated>>, OpError> {
        let entries = batch.take();
        let mut written = Vec::new();
        if !entries.is_empty() {
            let created = self.entries.create(entries).await;
            written = created.map_err(|error| write_failed("failed to create entry", &error))?;
        }
        let written = written.into_iter().map(|outcome| match outcome {
            Ok(created) => {
                self.warn_of_lifetime(&created.entry);
                Ok(created.entry)
            }
            // SPIRE's clients match on the code and read the entry that exists.
            Err(EntryWriteError::Similar(existing)) => Err(NotCreated {
                error: refused(Kind::AlreadyExists, "similar entry already exists")
                    .with_code(Code::SimilarEntry),
                existing: Some(existing),
            }),
            Err(error) => Err(refusal("failed to create entry", error).into()),
        });
        let written = written.collect();
        Ok(batch.conclude(caller, written))
    }

    /// Writes the given fields of what could be read.
    ///
    /// # Errors
    /// When nothing could be written.
    pub(crate) async fn update(
        &self,
        caller: &Caller,
        mut batch: Batch<EntryPatch>,
    ) -> Result<Vec<Result<Arc<Entry>, OpError>>, OpError> {
        let patches = batch.take();
        let mut written = Vec::new();
        if !patches.is_empty() {
            let updated = self.entries.update(patches).await;
            written = updated.map_err(|error| write_failed("failed to update entry", &error))?;
        }
        let written = written.into_iter().map(|outcome| match outcome {
            Ok(entry) => {
                self.warn_of_lifetime(&entry);
                Ok(entry)
            }
            // SPIRE: a missing object's status carries no cause.
            Err(EntryWriteError::NotFound) => {
                Err(refused(Kind::NotFound, "failed to update entry")
                    .with_code(Code::EntryNotFound))
            }
            Err(error) => Err(refusal("failed to update entry", error)),
        });
        let written = written.collect();
        Ok(batch.conclude(caller, written))
    }

    /// Deletes by ID.
    ///
    /// # Errors
    /// When nothing could be written.
    pub(crate) async fn delete(
        &self,
        caller: &Caller,
        mut batch: Batch<String>,
    ) -> Result<Vec<Result<(), OpError>>, OpError> {
        let ids = batch.take();
        let mut written = Vec::new();
        if !ids.is_empty() {
            let deleted = self.entries.delete(ids).await;
            written = deleted.map_err(|error| write_failed("failed to delete entry", &error))?;
        }
        let written = written
            .into_iter()
            .map(|outcome| outcome.map(|_deleted| ()).map_err(|_absent| not_found()))
            .collect();
        Ok(batch.conclude(caller, written))
    }

    /// An SVID never outlives the authority that signs it, so a longer lifetime of an entry is a wish that nobody sees
    /// come true.
    fn warn_of_lifetime(&self, entry: &Entry) {
        let ca_ttl = self.ca_ttl.as_secs();
        let longer = |ttl: i32| u64::try_from(ttl).is_ok_and(|ttl| ttl > ca_ttl);
        if longer(entry.x509_svid_ttl) || longer(entry.jwt_svid_ttl) {
            tracing::warn!(
                entry_id = %entry.id,
                spiffe_id = %entry.spiffe_id,
                x509_svid_ttl = entry.x509_svid_ttl,
                jwt_svid_ttl = entry.jwt_svid_ttl,
                ca_ttl,
                "an entry's SVIDs will be shorter-lived than it says: its TTL exceeds ca_ttl"
            );
        }
    }
}

fn not_found() -> OpError {
    refused(Kind::NotFound, "entry not found").with_code(Code::EntryNotFound)
}

fn refusal(what: &str, error: EntryWriteError) -> OpError {
    let (kind, code) = match &error {
        EntryWriteError::Similar(_) => (Kind::AlreadyExists, Code::SimilarEntry),
        EntryWriteError::IdTaken(_) => (Kind::AlreadyExists, Code::EntryIdTaken),
        EntryWriteError::NotFound => (Kind::NotFound, Code::EntryNotFound),
        EntryWriteError::UnknownFederatedBundle(_) => {
            (Kind::InvalidArgument, Code::UnknownFederatedTrustDomain)
        }
        EntryWriteError::Invalid(_) => (Kind::InvalidArgument, Code::InvalidEntry),
    };
    failed(kind, what, error).with_code(code)
}
