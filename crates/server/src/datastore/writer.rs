//! The only task that writes: it takes what is queued, evaluates it against memory, commits it as one transaction,
//! then changes memory and answers. It also follows what other servers commit, so memory has one author.

use daemon::telemetry::Telemetry;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::backend::Backend;
use super::database::{CatchUp, Database};
use super::draft::Draft;
use super::error::DatastoreError;
use super::monitor::Monitor;
use crate::metrics::{COMMIT, COMMIT_WRITES, RELOAD};
use crate::registry::{Cursor, RegistryWriter};

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

pub(super) struct Writer<B> {
    pub(super) database: Database<B>,
    pub(super) queue: mpsc::Receiver<Box<dyn Work>>,
    /// Who asked the writer to stop, to be notified when it has.
    pub(super) closing: mpsc::Receiver<oneshot::Sender<()>>,
    pub(super) monitor: Monitor,
    /// Nothing else changes what is in memory.
    pub(super) registry: RegistryWriter,
    pub(super) telemetry: Telemetry,
}

impl<B: Backend> Writer<B> {
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
                () = self.database.backend.woken(known) => self.follow().await,
            };
            if done == Err(DatastoreError::Closed) {
                // The thread that holds the connection is gone and won't come back: `Datastore::stopped` says so.
                tracing::error!("the database thread terminated; writes are no longer possible");
                return;
            }
        }
    }

    /// Commits what is queued, and then no more.
    async fn close(mut self, asked: oneshot::Sender<()>) {
        self.queue.close();
        while let Some(work) = self.queue.recv().await {
            // The callers that wait for these writes get the error; nothing is left to do here.
            drop(self.commit_group(work).await);
        }
        let Self { mut database, .. } = self;
        if let Err(error) = database.backend.close().await {
            tracing::warn!(%error, "the database was not closed cleanly; nothing is lost");
        }
        // The file is another server's from here on.
        drop(database);
        // The caller may have left meanwhile.
        if asked.send(()).is_err() {
            tracing::debug!("nobody waits for the end of the writer");
        }
    }

    /// Looks for other servers' commits, and at the same time confirms that memory is current.
    async fn follow(&mut self) -> Result<(), DatastoreError> {
        let began = Instant::now();
        let followed = match self.database.look(self.registry.cursor()).await {
            Ok(look) => self.catch_up(look.catch_up).await.map(|()| look.read_only),
            Err(error) => Err(error),
        };
        match followed {
            Ok(Some(because)) => {
                self.monitor
                    .failed(&mut self.registry, &DatastoreError::ReadOnly { because });
                self.monitor.current(&mut self.registry, began);
            }
            Ok(None) if self.monitor.is_unwritable() => match self.database.probe().await {
                Ok(()) => self.monitor.writable(&mut self.registry, began),
                Err(error) => {
                    self.monitor.failed(&mut self.registry, &error);
                    self.monitor.current(&mut self.registry, began);
                }
            },
            Ok(None) => self.monitor.current(&mut self.registry, began),
            Err(error) => {
                self.monitor.lost(&mut self.registry, &error);
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
        self.telemetry.sample(&COMMIT_WRITES, group.len(), []);
        let timer = self.telemetry.start(&COMMIT, []);
        let result = self.commit(&mut group).await;
        timer.end_with(&result);
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
            self.monitor.failed(&mut self.registry, error);
        }
        for work in group {
            work.finish(result.clone());
        }
        result
    }

    async fn commit(&mut self, group: &mut [Box<dyn Work>]) -> Result<(), DatastoreError> {
        let began = Instant::now();
        let cursor = self.begin().await?;
        self.monitor.current(&mut self.registry, began);
        let (rows, writes) = {
            let state = self.registry.read();
            let mut draft = Draft::new(&state, cursor.revision());
            for work in group {
                work.evaluate(&mut draft);
            }
            draft.finish()
        };
        if rows.is_empty() {
            self.database.backend.rollback().await;
            return Ok(());
        }
        self.database.commit(cursor, &rows).await?;
        self.registry.apply(&[cursor], writes);
        self.monitor.writable(&mut self.registry, began);
        Ok(())
    }

    /// Opens the transaction with memory at the revision before it.
    async fn begin(&mut self) -> Result<Cursor, DatastoreError> {
        let (mut cursor, mut catch_up) = self.database.begin(self.registry.cursor()).await?;
        if matches!(catch_up, CatchUp::Everything) {
            self.database.backend.rollback().await;
            self.reload().await?;
            (cursor, catch_up) = self.database.begin(self.registry.cursor()).await?;
        }
        match catch_up {
            CatchUp::Nothing => Ok(cursor),
            CatchUp::Changes { passed, writes } => {
                self.registry.apply(&passed, writes);
                Ok(cursor)
            }
            CatchUp::Everything => {
                self.database.backend.rollback().await;
                Err(DatastoreError::Unavailable {
                    because: "the database changes faster than it can be loaded".to_owned(),
                })
            }
        }
    }

    async fn catch_up(&mut self, catch_up: CatchUp) -> Result<(), DatastoreError> {
        match catch_up {
            CatchUp::Nothing => Ok(()),
            CatchUp::Changes { passed, writes } => {
                self.registry.apply(&passed, writes);
                Ok(())
            }
            CatchUp::Everything => self.reload().await,
        }
    }

    async fn reload(&mut self) -> Result<(), DatastoreError> {
        tracing::info!(
            revision = self.registry.revision(),
            "this revision is not in the database's history, or too old: reloading the whole database"
        );
        let timer = self.telemetry.start(&RELOAD, []);
        let state = self.database.load().await;
        timer.end_with(&state);
        self.registry.replace(state?);
        Ok(())
    }
}
