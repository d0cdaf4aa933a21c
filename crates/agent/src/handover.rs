//! The workloads' X509-SVIDs over a restart, in memory that systemd holds meanwhile: no disk, and no server needed.
//!
//! They are handed over when the agent stops as it should, and are in systemd's store only until the next agent takes
//! them up. The unit needs `Type=notify` and `FileDescriptorStoreMax=1`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use daemon::systemd::Systemd;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use zeroize::Zeroizing;

use crate::cache::Cache;
use crate::cache::svids::IssuedSvid;
use crate::state::last_good;

/// The name in the store.
pub(crate) const NAME: &str = "plastron-svids";

/// What the process before left, and the way to the process after.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    systemd: Arc<Systemd>,
    received: Mutex<Option<Zeroizing<Vec<u8>>>>,
}

impl Handover {
    /// Takes what is there out of the store.
    pub(crate) fn new(mut systemd: Systemd) -> Self {
        let received = systemd.take(NAME).and_then(|content| {
            content
                .inspect_err(|error| {
                    tracing::warn!(%error, "what systemd kept is not believed");
                })
                .ok()
        });
        Self {
            systemd: Arc::new(systemd),
            received: Mutex::new(received),
        }
    }

    pub(crate) fn systemd(&self) -> &Systemd {
        &self.systemd
    }

    /// The SVIDs for `agent_id` that are still good, once.
    pub(crate) fn receive(
        &self,
        agent_id: &SpiffeId,
        entries: &[Arc<Entry>],
        now: SystemTime,
    ) -> Vec<IssuedSvid> {
        let received = self
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        received.map_or_else(Vec::new, |bytes| {
            last_good::decode_svids(&bytes, agent_id, entries, now)
        })
    }

    /// Drops what was received: private keys that nobody takes up are not kept.
    pub(crate) fn discard(&self) {
        let received = self
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if received.is_some() {
            tracing::info!(
                "the SVIDs that systemd kept are dropped: they are of an identity of before"
            );
        }
    }

    /// Hands the SVIDs that the cache holds to the next process, if systemd will hold them.
    pub(crate) async fn send(&self, agent_id: &SpiffeId, cache: &Cache) {
        let content = match last_good::encode_svids(agent_id, &cache.snapshot().svids) {
            Ok(content) => content,
            Err(fault) => {
                tracing::warn!(%fault, "SVIDs not handed over");
                return;
            }
        };
        let systemd = Arc::clone(&self.systemd);
        let stored = tokio::task::spawn_blocking(move || systemd.store(NAME, content.expose()));
        match stored.await {
            Ok(Ok(true)) => tracing::info!("SVIDs handed to systemd for the next start"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "SVIDs not handed over"),
            Err(error) => tracing::warn!(%error, "SVIDs not handed over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_discarded_is_given_to_nobody() {
        let handover = Handover {
            received: Mutex::new(Some(Zeroizing::new(b"keys".to_vec()))),
            ..Handover::default()
        };
        handover.discard();
        assert!(handover.received.lock().unwrap().is_none());
    }
}
