//! X509-SVIDs in batches: one batch at a time, smaller after a failure.

use std::sync::Arc;
use std::time::Duration;

use config::fault::Fault;
use spiffe::entry::Entry;
use tokio::time::Instant;

use super::{Outcome, Sync};
use crate::backoff::Backoff;
use crate::cache::keys::KeyPool;
use crate::dial;
use crate::link::{Batch, Link, LinkError, SvidOrder};

/// SPIRE: limits.SignLimitPerIP, one signing request each.
const LARGEST_BATCH: usize = 500;
/// An entry that the server refused alone is tried again after this time.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The state of issuance.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) pool: KeyPool,
    busy: bool,
    limit: usize,
    backoff: Backoff,
    not_before: Option<Instant>,
}

/// A batch that ended.
#[derive(Debug)]
pub(super) struct Issued {
    asked: Vec<Arc<str>>,
    outcome: Result<Batch, LinkError>,
}

impl Line {
    pub(super) fn new(pool: KeyPool, backoff: Backoff) -> Self {
        Self {
            pool,
            busy: false,
            limit: LARGEST_BATCH,
            backoff,
            not_before: None,
        }
    }

    /// How long issuance still rests after a failure; nothing when it does not.
    pub(super) fn pause_left(&self) -> Option<Duration> {
        self.not_before
            .map(|when| when.saturating_duration_since(Instant::now()))
    }
}

impl Sync {
    pub(super) fn start_issuing(&mut self) {
        if self.svids.busy
            || self
                .svids
                .not_before
                .is_some_and(|when| Instant::now() < when)
        {
            return;
        }
        self.svids.not_before = None;
        let wanted = self.cache.take_wanted(self.svids.limit);
        if wanted.is_empty() {
            return;
        }
        self.svids.busy = true;
        let (link, pool) = (self.link.clone(), self.svids.pool.clone());
        self.call(async move {
            let asked = wanted.iter().map(|entry| Arc::clone(&entry.id)).collect();
            Outcome::Svids(Issued {
                asked,
                outcome: issue(&link, &pool, wanted).await,
            })
        });
    }

    pub(super) fn svids_issued(&mut self, current: bool, issued: Issued) -> Result<(), Fault> {
        self.svids.busy = false;
        match issued.outcome {
            Ok(batch) => {
                tracing::debug!(
                    issued = batch.issued.len(),
                    refused = batch.refused.len(),
                    "X509-SVIDs issued"
                );
                self.svids.limit = LARGEST_BATCH.min(self.svids.limit * 2);
                self.svids.backoff.reset();
                self.answered();
                self.cache.failed(&batch.refused, REFUSED_PAUSE);
                self.cache.put_svids(batch.issued);
                Ok(())
            }
            Err(error) => {
                let pause = self.svids.backoff.next();
                self.svids.limit = (self.svids.limit / 2).max(1);
                self.svids.not_before = Some(Instant::now() + pause);
                self.cache.failed(&issued.asked, pause);
                self.failed(current, "X509-SVIDs not issued", &error)
            }
        }
    }
}

async fn issue(link: &Link, pool: &KeyPool, wanted: Vec<Arc<Entry>>) -> Result<Batch, LinkError> {
    let unavailable = |error: &dyn std::fmt::Display| LinkError::Unavailable(error.to_string());
    let keys = pool
        .take(wanted.len())
        .await
        .map_err(|error| unavailable(&error))?;
    let mut orders = Vec::with_capacity(wanted.len());
    for (entry, key) in wanted.into_iter().zip(keys) {
        let csr = dial::workload_csr(&key, &entry).map_err(|error| unavailable(&error))?;
        orders.push(SvidOrder { entry, key, csr });
    }
    link.new_x509_svids(orders).await
}
