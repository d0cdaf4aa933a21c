//! The queue into the writer, which every handle shares: an operation goes in, and its caller waits until it is durable.

use std::sync::{Arc, Mutex, PoisonError};

use spiffe::clock::{Clock, unix_seconds};
use spiffe::entry::Entry;
use spiffe::selector::SelectorSet;
use tokio::sync::{mpsc, oneshot};

use super::DatastoreError;
use super::draft::Draft;
use super::entries::{CommonSelectors, new_id};
use super::writer::{Operation, Work};
use crate::registry::Registry;

/// What an operation is prepared and queued with. The writer ends after the last handle that shares it is dropped.
pub(super) struct WriteQueue {
    pub(super) operations: mpsc::Sender<Box<dyn Work>>,
    pub(super) registry: Arc<Registry>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) common: Mutex<CommonSelectors>,
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue")
            .field("revision", &self.registry.revision())
            .finish_non_exhaustive()
    }
}

impl WriteQueue {
    /// Queues an operation and waits until it is durable.
    pub(super) async fn submit<T: Send + 'static>(
        &self,
        weight: usize,
        evaluate: impl FnMut(&mut Draft<'_>) -> T + Send + 'static,
    ) -> Result<T, DatastoreError> {
        let (reply, answer) = oneshot::channel();
        let operation = Box::new(Operation {
            weight,
            evaluate,
            outcome: None,
            reply,
        });
        self.operations
            .send(operation)
            .await
            .map_err(|_closed| DatastoreError::Closed)?;
        answer.await.map_err(|_gone| DatastoreError::Closed)?
    }

    /// Fills in what an entry's creator left to the store, and lets what entries have in common share its memory.
    pub(super) fn completed(&self, mut entry: Entry) -> Entry {
        let now = self.clock.now();
        if entry.id.is_empty() {
            entry.id = Arc::from(new_id(now));
        }
        if entry.created_at == 0 {
            entry.created_at = unix_seconds(now);
        }
        let mut common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = entry
            .selectors
            .iter()
            .map(|selector| common.shared(selector));
        entry.selectors = SelectorSet::from(shared.collect::<Vec<_>>());
        entry
    }
}
