//! Writes of registration entries.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use spiffe::clock::unix_seconds;
use spiffe::entry::{Entry, EntryError};
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use super::draft::Draft;
use super::write_queue::WriteQueue;
use super::{DatastoreError, PRUNE_BATCH};
use crate::registry::{Kind, Object};

/// The fields of an entry to write; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct EntryPatch {
    pub id: String,
    pub spiffe_id: Option<SpiffeId>,
    pub parent_id: Option<SpiffeId>,
    pub selectors: Option<SelectorSet>,
    pub x509_svid_ttl: Option<i32>,
    pub jwt_svid_ttl: Option<i32>,
    pub federates_with: Option<Vec<TrustDomain>>,
    pub admin: Option<bool>,
    pub downstream: Option<bool>,
    pub store_svid: Option<bool>,
    pub expires_at: Option<i64>,
    pub dns_names: Option<Vec<String>>,
    pub hint: Option<String>,
    pub disable_x509_svid_prefetch: Option<bool>,
    pub jwt_svid_include_jti: Option<bool>,
}

/// What became of an entry to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub entry: Arc<Entry>,
}

/// Why one entry was not written; the others of its batch are not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryWriteError {
    /// Another entry has the same parent, SPIFFE ID and selectors: this one.
    #[error("similar entry already exists")]
    Similar(Arc<Entry>),
    #[error("an entry with ID {0:?} already exists")]
    IdTaken(String),
    #[error("unable to find federated bundle {:?}", .0.as_str())]
    UnknownFederatedBundle(TrustDomain),
    #[error("record not found")]
    NotFound,
    #[error(transparent)]
    Invalid(#[from] EntryError),
}

/// The handle by which entries are written.
#[derive(Debug, Clone)]
pub struct Entries(pub(super) Arc<WriteQueue>);

impl Entries {
    /// Creates each entry or says why not. An empty ID is replaced by a new UUID; a creation time of 0 by now.
    ///
    /// An ID that its creator chose may be that of an entry deleted lately, also before a restart. The new entry's revision number then starts
    /// at the revision of the datastore, which no earlier entry of the ID has reached: a commit raises an entry's number by
    /// at most one. An agent that compares revision numbers thus never takes the new entry for the old one.
    ///
    /// # Errors
    /// When the store could not write any of them.
    pub async fn create(
        &self,
        entries: Vec<Entry>,
    ) -> Result<Vec<Result<Created, EntryWriteError>>, DatastoreError> {
        let trust_domain = self.0.registry.trust_domain().clone();
        let prepared: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let chosen = !entry.id.is_empty();
                let entry = self.0.completed(entry);
                entry
                    .validate(&trust_domain)
                    .map(|()| (Arc::new(entry), chosen))
            })
            .collect();
        self.0
            .submit(prepared.len(), move |draft| {
                let committed = draft.committed();
                let outcomes = prepared.iter().map(|prepared| match prepared {
                    Ok((entry, true))
                        if committed.deleted_entries.contains(&entry.id)
                            || committed.entries.get(&entry.id).is_some() =>
                    {
                        let entry = Entry {
                            revision_number: draft.revision(),
                            ..Entry::clone(entry)
                        };
                        create(draft, &Arc::new(entry)).map(|entry| Created { entry })
                    }
                    Ok((entry, _)) => create(draft, entry).map(|entry| Created { entry }),
                    Err(error) => Err(EntryWriteError::Invalid(error.clone())),
                });
                outcomes.collect()
            })
            .await
    }

    /// Writes the given fields of each entry and counts its revision number up.
    ///
    /// # Errors
    /// When the store could not write any of them.
    pub async fn update(
        &self,
        patches: Vec<EntryPatch>,
    ) -> Result<Vec<Result<Arc<Entry>, EntryWriteError>>, DatastoreError> {
        let trust_domain = self.0.registry.trust_domain().clone();
        self.0
            .submit(patches.len(), move |draft| {
                patches
                    .iter()
                    .map(|patch| update(draft, patch, &trust_domain))
                    .collect()
            })
            .await
    }

    /// Deletes by ID; the item is the deleted entry.
    ///
    /// # Errors
    /// When the store could not delete any of them.
    pub async fn delete(
        &self,
        ids: Vec<String>,
    ) -> Result<Vec<Result<Arc<Entry>, EntryWriteError>>, DatastoreError> {
        self.0
            .submit(ids.len(), move |draft| {
                let outcomes = ids.iter().map(|id| {
                    let entry = draft.entry(id).ok_or(EntryWriteError::NotFound)?;
                    draft.delete(Kind::Entry, id);
                    Ok(entry)
                });
                outcomes.collect()
            })
            .await
    }

    /// Deletes what has expired at `now`, not more than a batch of it, and returns it. Call again while there is any.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn prune(&self, now: SystemTime) -> Result<Vec<Arc<Entry>>, DatastoreError> {
        let now = unix_seconds(now);
        // Most of the time there is nothing to do, and looking costs no transaction.
        let is_nothing_due = {
            let state = self.0.registry.read();
            state.entries.expiring(i64::MIN, now).next().is_none()
        };
        if is_nothing_due {
            return Ok(Vec::new());
        }
        self.0
            .submit(1, move |draft| {
                let due = draft.committed().entries.expiring(i64::MIN, now);
                let mut pruned = Vec::new();
                for entry in due.take(PRUNE_BATCH) {
                    // An operation before this one may have changed it.
                    if let Some(entry) =
                        draft.entry(&entry.id).filter(|entry| entry.is_expired(now))
                    {
                        draft.delete(Kind::Entry, &entry.id);
                        pruned.push(entry);
                    }
                }
                pruned
            })
            .await
    }
}

/// Selectors that were seen lately: those of many entries are often the same.
#[derive(Debug, Default)]
pub(super) struct CommonSelectors(HashSet<Selector>);

impl CommonSelectors {
    /// Beyond this many it starts afresh: what is common will soon be there again.
    const LIMIT: usize = 8_192;

    pub(super) fn shared(&mut self, selector: &Selector) -> Selector {
        if let Some(known) = self.0.get(selector) {
            return known.clone();
        }
        if self.0.len() >= Self::LIMIT {
            self.0.clear();
        }
        self.0.insert(selector.clone());
        selector.clone()
    }
}

/// A UUID that begins with the time (version 7): rows created together then lie together in the database's index,
/// which makes a batch several times cheaper to write than random ones.
pub(super) fn new_id(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), since.subsec_nanos());
    uuid::Uuid::new_v7(time).to_string()
}

/// Creates a completed, valid entry.
pub(super) fn create(
    draft: &mut Draft<'_>,
    entry: &Arc<Entry>,
) -> Result<Arc<Entry>, EntryWriteError> {
    if let Some(existing) = draft.similar(entry) {
        return Err(EntryWriteError::Similar(existing));
    }
    if draft.entry(&entry.id).is_some() {
        return Err(EntryWriteError::IdTaken(entry.id.to_string()));
    }
    bundles_exist(draft, entry)?;
    let entry = match draft.committed().entries.known_parent(&entry.parent_id) {
        // Siblings share the memory of their parent's name.
        Some(parent_id) => Arc::new(Entry {
            parent_id,
            ..Entry::clone(entry)
        }),
        None => Arc::clone(entry),
    };
    draft.put(Object::Entry(Arc::clone(&entry)));
    Ok(entry)
}

fn update(
    draft: &mut Draft<'_>,
    patch: &EntryPatch,
    trust_domain: &TrustDomain,
) -> Result<Arc<Entry>, EntryWriteError> {
    let current = draft.entry(&patch.id).ok_or(EntryWriteError::NotFound)?;
    let mut entry = apply(&current, patch);
    entry.validate(trust_domain)?;
    if patch.federates_with.is_some() {
        bundles_exist(draft, &entry)?;
    }
    if entry == *current {
        // No new revision: nobody has to fetch the entry or renew an SVID for it.
        return Ok(current);
    }
    // Once for each commit (see [`Entries::create`]): what was between two commits nobody has seen.
    entry.revision_number = match draft.committed().get(Kind::Entry, &patch.id) {
        Some(Object::Entry(committed)) => entry.revision_number.max(committed.revision_number + 1),
        _ => entry.revision_number,
    };
    let entry = Arc::new(entry);
    if let Some(existing) = draft.similar(&entry)
        && existing.id != entry.id
    {
        return Err(EntryWriteError::Similar(existing));
    }
    draft.put(Object::Entry(Arc::clone(&entry)));
    Ok(entry)
}

fn apply(current: &Entry, patch: &EntryPatch) -> Entry {
    macro_rules! patched {
        ($($field:ident),*) => {
            Entry {
                id: Arc::clone(&current.id),
                revision_number: current.revision_number,
                created_at: current.created_at,
                $($field: patch.$field.clone().unwrap_or_else(|| current.$field.clone())),*
            }
        };
    }
    patched!(
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        jwt_svid_ttl,
        federates_with,
        admin,
        downstream,
        store_svid,
        expires_at,
        dns_names,
        hint,
        disable_x509_svid_prefetch,
        jwt_svid_include_jti
    )
}

fn bundles_exist(draft: &Draft<'_>, entry: &Entry) -> Result<(), EntryWriteError> {
    let mut seen = HashSet::new();
    for trust_domain in &entry.federates_with {
        if seen.insert(trust_domain) && draft.bundle(trust_domain).is_none() {
            return Err(EntryWriteError::UnknownFederatedBundle(
                trust_domain.clone(),
            ));
        }
    }
    Ok(())
}
