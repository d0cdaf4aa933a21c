//! The only task that writes: it takes what is queued, evaluates it against memory, commits it as one transaction,
//! then changes memory and answers. It also follows what other servers commit, so memory has one author.

use std::sync::Arc;

use spiffe::trust_domain::TrustDomain;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::backend::{Backend, Loader, Missed, decode_all};
use super::codec::Decoder;
use super::draft::Draft;
use super::error::DatastoreError;
use super::monitor::Monitor;
use crate::registry::{Registry, State};

/// Operations that may wait. More callers than this wait for a place in the queue.
pub(super) const QUEUE: usize = 4_096;
/// Operations in one transaction.
const GROUP_OPERATIONS: usize = 512;
/// Objects in one transaction, beyond which no further operation joins.
const GROUP_WEIGHT: usize = 4_096;

/// One queued operation.
pub(super) trait Work: Send {
    /// About how many objects it writes.
    fn weight(&self) -> usize;
    /// May be called again when the transaction is tried again.
    fn evaluate(&mut self, draft: &mut Draft<'_>);
    fn finish(self: Box<Self>, result: Result<(), DatastoreError>);
}

/// An operation as a closure, and who waits for it.
pub(super) struct Operation<T, F> {
    pub(super) weight: usize,
    pub(super) evaluate: F,
    pub(super) outcome: Option<T>,
    pub(super) reply: oneshot::Sender<Result<T, DatastoreError>>,
}

impl<T: Send, F: FnMut(&mut Draft<'_>) -> T + Send> Work for Operation<T, F> {
    fn weight(&self) -> usize {
        self.weight
    }

    fn evaluate(&mut self, draft: &mut Draft<'_>) {
        self.outcome = Some((self.evaluate)(draft));
    }

    fn finish(self: Box<Self>, result: Result<(), DatastoreError>) {
        let Self { outcome, reply, .. } = *self;
        let answer = match (result, outcome) {
            (Ok(()), Some(outcome)) => Ok(outcome),
            (Ok(()), None) => Err(DatastoreError::Closed),
            (Err(error), _) => Err(error),
        };
        // The caller may have given up; the write stands all the same.
        drop(reply.send(answer));
    }
}

pub(super) struct Writer {
    pub(super) backend: Backend,
    pub(super) queue: mpsc::Receiver<Box<dyn Work>>,
    /// Who asked for the end, to be told when it is reached.
    pub(super) closing: mpsc::Receiver<oneshot::Sender<()>>,
    pub(super) monitor: Monitor,
    pub(super) registry: Arc<Registry>,
}

impl Writer {
    /// Runs until it is asked to end, or until every handle of the datastore is gone and the queue is empty.
    pub(super) async fn run(mut self) {
        loop {
            let known = self.registry.revision();
            let done = tokio::select! {
                work = self.queue.recv() => match work {
                    Some(first) => self.commit_group(first).await,
                    None => return,
                },
                Some(asked) = self.closing.recv() => return self.close(asked).await,
                () = self.backend.woken(known) => self.follow().await,
            };
            if done == Err(DatastoreError::Closed) {
                // The thread that holds the connection is gone and won't come back: `Datastore::stopped` says so.
                tracing::error!("the database's thread ended; nothing can be written any more");
                return;
            }
        }
    }

    /// Commits what is queued, and then no more.
    async fn close(mut self, asked: oneshot::Sender<()>) {
        self.queue.close();
        while let Some(work) = self.queue.recv().await {
            // Whoever waits for the writes is told of a failure; here there is nothing left to do about it.
            drop(self.commit_group(work).await);
        }
        if let Err(error) = self.backend.close().await {
            tracing::warn!(%error, "the database was not closed cleanly; nothing is lost");
        }
        // Whoever asked may have gone meanwhile.
        if asked.send(()).is_err() {
            tracing::debug!("nobody waits for the end of the writer");
        }
    }

    /// Looks for other servers' commits, and at the same time confirms that memory is current.
    async fn follow(&mut self) -> Result<(), DatastoreError> {
        let began = Instant::now();
        let followed = match self.backend.look(self.registry.revision()).await {
            Ok(look) => self.catch_up(look.missed).await.map(|()| look.read_only),
            Err(error) => Err(error),
        };
        match followed {
            Ok(Some(because)) => {
                self.monitor.failed(&DatastoreError::ReadOnly { because });
                self.monitor.current(began);
            }
            Ok(None) if self.monitor.is_unwritable() => match self.backend.probe().await {
                Ok(()) => self.monitor.writable(began),
                Err(error) => {
                    self.monitor.failed(&error);
                    self.monitor.current(began);
                }
            },
            Ok(None) => self.monitor.current(began),
            Err(error) => {
                self.monitor.lost(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn commit_group(&mut self, first: Box<dyn Work>) -> Result<(), DatastoreError> {
        let mut weight = first.weight();
        let mut group = vec![first];
        while group.len() < GROUP_OPERATIONS
            && weight < GROUP_WEIGHT
            && let Ok(next) = self.queue.try_recv()
        {
            weight += next.weight();
            group.push(next);
        }
        let result = self.commit(&mut group).await;
        if group.len() > 1 && result.as_ref().is_err_and(DatastoreError::is_about_content) {
            // One of them may be what the database refuses: the others shall not suffer for it.
            for work in group {
                let mut alone = [work];
                let result = self.commit(&mut alone).await;
                let [work] = alone;
                work.finish(result);
            }
            return Ok(());
        }
        if let Err(error) = &result {
            // A database that is away is one line when it goes and one when it is back, not one for each write.
            if error.is_about_content() {
                tracing::warn!(%error, operations = group.len(), "a write failed");
            }
            self.monitor.failed(error);
        }
        for work in group {
            work.finish(result.clone());
        }
        result
    }

    async fn commit(&mut self, group: &mut [Box<dyn Work>]) -> Result<(), DatastoreError> {
        let began = Instant::now();
        let revision = self.begin().await?;
        self.monitor.current(began);
        let (rows, writes) = {
            let state = self.registry.read();
            let mut draft = Draft::new(&state, revision);
            for work in group {
                work.evaluate(&mut draft);
            }
            draft.finish()
        };
        if rows.is_empty() {
            self.backend.rollback().await;
            return Ok(());
        }
        self.backend.commit(revision, rows).await?;
        self.registry.apply(revision, writes);
        self.monitor.writable(began);
        Ok(())
    }

    /// Opens the transaction with memory at the revision before it.
    async fn begin(&mut self) -> Result<u64, DatastoreError> {
        let (revision, missed) = self.backend.begin(self.registry.revision()).await?;
        if matches!(missed, Missed::Everything) {
            self.backend.rollback().await;
            self.reload().await?;
            let (revision, missed) = self.backend.begin(self.registry.revision()).await?;
            return self.caught_up(revision, missed).await;
        }
        self.caught_up(revision, missed).await
    }

    async fn caught_up(&mut self, revision: u64, missed: Missed) -> Result<u64, DatastoreError> {
        let applied = match missed {
            Missed::Nothing => Ok(()),
            Missed::Changes { revision, found } => {
                decode_all(found).map(|writes| self.registry.apply(revision, writes))
            }
            Missed::Everything => Err(DatastoreError::Unavailable {
                because: "the database changes faster than it can be loaded".to_owned(),
            }),
        };
        match applied {
            Ok(()) => Ok(revision),
            Err(error) => {
                self.backend.rollback().await;
                Err(error)
            }
        }
    }

    async fn catch_up(&mut self, missed: Missed) -> Result<(), DatastoreError> {
        match missed {
            Missed::Nothing => Ok(()),
            Missed::Changes { revision, found } => {
                self.registry.apply(revision, decode_all(found)?);
                Ok(())
            }
            Missed::Everything => self.reload().await,
        }
    }

    async fn reload(&mut self) -> Result<(), DatastoreError> {
        tracing::info!(
            revision = self.registry.revision(),
            "reloading the whole database"
        );
        let state = load(&mut self.backend, self.registry.trust_domain()).await?;
        self.registry.replace(state);
        Ok(())
    }
}

/// Builds the state from a snapshot.
pub(super) async fn load(
    backend: &mut Backend,
    trust_domain: &TrustDomain,
) -> Result<State, DatastoreError> {
    let loader = Loader {
        state: State::empty(trust_domain, 0),
        decoder: Decoder::default(),
    };
    Ok(backend.load(loader).await?.state)
}
