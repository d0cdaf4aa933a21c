//! What a server keeps about itself: its authority journal, and the leases of periodic jobs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::clock::unix_seconds;

use super::DatastoreError;
use super::write_queue::WriteQueue;
use crate::registry::{Journal, Kind, Lease, Object};

/// The handle by which servers keep their authority journals.
#[derive(Debug, Clone)]
pub struct Journals(pub(super) Arc<WriteQueue>);

/// The handle by which one of several servers takes a periodic job.
#[derive(Debug, Clone)]
pub struct Leases(pub(super) Arc<WriteQueue>);

impl Journals {
    /// The journals of all servers of this database, those of other servers as of the last revision followed.
    pub fn all(&self) -> Vec<Arc<Journal>> {
        self.0.registry.journals()
    }

    /// Creates or replaces a journal.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn save(&self, id: &str, data: Vec<u8>) -> Result<(), DatastoreError> {
        let journal = Arc::new(Journal {
            id: id.to_owned(),
            data,
        });
        self.0
            .submit(1, move |draft| {
                draft.put(Object::Journal(Arc::clone(&journal)));
            })
            .await
    }

    /// Deletes a journal, if there is one.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn delete(&self, id: &str) -> Result<(), DatastoreError> {
        let id = id.to_owned();
        self.0
            .submit(1, move |draft| draft.delete(Kind::Journal, &id))
            .await
    }
}

impl Leases {
    /// Takes a lease, or keeps one that `holder` has, until `now + ttl`. False when another holds it.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn acquire(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<bool, DatastoreError> {
        let lease = Arc::new(Lease {
            name: name.to_owned(),
            holder: holder.to_owned(),
            expires_at: unix_seconds(now + ttl),
        });
        let now = unix_seconds(now);
        self.0.submit(1, move |draft| {
            let taken = matches!(
                draft.get(Kind::Lease, &lease.name),
                Some(Object::Lease(held)) if held.holder != lease.holder && held.expires_at > now
            );
            if !taken {
                draft.put(Object::Lease(Arc::clone(&lease)));
            }
            !taken
        })
        .await
    }
}
