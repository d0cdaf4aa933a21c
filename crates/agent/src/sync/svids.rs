//! X509-SVIDs in batches: one batch at a time, smaller after a failure, and at once again when the server returns.

use std::sync::Arc;
use std::time::Duration;

use config::fault::Fault;
use spiffe::entry::Entry;
use spiffe::key::KeyType;
use tokio::time::Instant;

use super::{FIRST_SVID_PAUSE, Outcome, Sync};
use crate::backoff::Backoff;
use crate::cache::keys::KeyPool;
use crate::dial;
use crate::metrics::{SVID_BATCH, SVID_SYNC};
use crate::server_client::{Batch, ClientError, ServerClient, SvidRequest};

/// SPIRE: limits.SignLimitPerIP, one signing request each.
const LARGEST_BATCH: usize = 500;
/// The keys of a batch are made before the server is asked. RSA keys take a tenth of a second each (4096 bits: a second
/// and more), and nobody is to wait long for keys of others.
const LARGEST_BATCH_RSA_2048: usize = 10;
const LARGEST_BATCH_RSA_4096: usize = 1;

fn largest_batch(key_type: KeyType) -> usize {
    match key_type {
        KeyType::EcP256 | KeyType::EcP384 => LARGEST_BATCH,
        KeyType::Rsa2048 => LARGEST_BATCH_RSA_2048,
        KeyType::Rsa4096 => LARGEST_BATCH_RSA_4096,
    }
}

/// The state of issuance.
#[derive(Debug)]
pub(super) struct Issuance {
    pub(super) pool: KeyPool,
    busy: bool,
    limit: usize,
    backoff: Backoff,
    not_before: Option<Instant>,
    last_failure: Option<Instant>,
}

/// A batch that ended.
#[derive(Debug)]
pub(super) struct Issued {
    asked: Vec<Arc<str>>,
    outcome: Result<Batch, ClientError>,
}

impl Issuance {
    pub(super) fn new(pool: KeyPool, backoff: Backoff) -> Self {
        Self {
            limit: largest_batch(pool.key_type()),
            pool,
            busy: false,
            backoff,
            not_before: None,
            last_failure: None,
        }
    }

    /// Plans the next batch after the server could not be asked; gives the pause until then.
    pub(super) fn no_answer(&mut self) -> Duration {
        let (now, pause) = (Instant::now(), self.backoff.next());
        self.limit = (self.limit / 2).max(1);
        self.last_failure = Some(now);
        self.not_before = Some(now + pause);
        pause
    }

    fn answered(&mut self) {
        self.limit = largest_batch(self.pool.key_type()).min(self.limit * 2);
        self.backoff.reset();
    }

    #[cfg(test)]
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Ends the pause of an outage. Should only issuance go on failing, it is tried no faster than after a first failure.
    pub(super) fn server_returned(&mut self) {
        self.backoff.reset();
        if self.not_before.is_some() {
            self.not_before = self.last_failure.map(|when| when + FIRST_SVID_PAUSE);
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
        let (client, pool) = (self.client.clone(), self.svids.pool.clone());
        let telemetry = self.node.telemetry.clone();
        telemetry.sample(&SVID_BATCH, wanted.len(), []);
        self.call(async move {
            let asked = wanted.iter().map(|entry| Arc::clone(&entry.id)).collect();
            let timer = telemetry.start(&SVID_SYNC, []);
            let outcome = issue(&client, &pool, wanted).await;
            timer.end_with(&outcome);
            Outcome::Svids(Issued { asked, outcome })
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
                self.svids.answered();
                self.answered();
                self.cache.refused(&batch.refused);
                self.cache.put_svids(batch.issued);
                Ok(())
            }
            Err(error) => {
                let pause = self.svids.no_answer();
                self.cache.not_answered(&issued.asked, pause);
                self.failed(current, "X509-SVIDs not issued", &error)
            }
        }
    }
}

async fn issue(
    client: &ServerClient,
    pool: &KeyPool,
    wanted: Vec<Arc<Entry>>,
) -> Result<Batch, ClientError> {
    let unavailable = |error: &dyn std::fmt::Display| ClientError::Unavailable(error.to_string());
    let keys = pool
        .take(wanted.len())
        .await
        .map_err(|error| unavailable(&error))?;
    let mut requests = Vec::with_capacity(wanted.len());
    for (entry, key) in wanted.into_iter().zip(keys) {
        let csr = dial::workload_csr(&key, &entry).map_err(|error| unavailable(&error))?;
        requests.push(SvidRequest { entry, key, csr });
    }
    client.new_x509_svids(requests).await
}
