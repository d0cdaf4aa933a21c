//! A daemon's background tasks: each has a name, is notified of the shutdown, and is awaited with a deadline.

use std::future::Future;
use std::time::Duration;

use config::fault::{Code, Fault};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

/// Notifies every task, once, that the daemon stops; also those that start to listen late.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Returns when the daemon stops, at once if it already does.
    pub async fn requested(&mut self) {
        // An error means that the sender is gone, which is a shutdown too.
        drop(self.0.wait_for(|stop| *stop).await.map(|_| ()));
    }

    /// Sleeps, or returns false early because the daemon stops.
    pub async fn sleep(&mut self, period: Duration) -> bool {
        tokio::select! {
            () = self.requested() => false,
            () = tokio::time::sleep(period) => true,
        }
    }
}

/// What a task returns: nothing, or why the daemon cannot go on without it.
pub trait TaskOutcome: Send + 'static {
    fn into_result(self) -> Result<(), Fault>;
}

impl TaskOutcome for () {
    fn into_result(self) -> Result<(), Fault> {
        Ok(())
    }
}

impl TaskOutcome for Result<(), Fault> {
    fn into_result(self) -> Result<(), Fault> {
        self
    }
}

/// The set of running tasks. A set that is dropped cuts them off.
#[derive(Debug)]
pub struct Tasks {
    stop: watch::Sender<bool>,
    set: JoinSet<Result<(), Fault>>,
    names: Vec<(Id, &'static str)>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            stop: watch::channel(false).0,
            set: JoinSet::new(),
            names: Vec::new(),
        }
    }
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn shutdown(&self) -> Shutdown {
        Shutdown(self.stop.subscribe())
    }

    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output: TaskOutcome> + Send + 'static,
    {
        let handle = self.set.spawn(async move { task.await.into_result() });
        self.names.push((handle.id(), name));
    }

    /// Returns why the daemon cannot go on, as soon as a task ended although none was asked to: the task's own fault, or
    /// that it stopped or panicked.
    pub async fn failure(&mut self) -> Fault {
        let Some(ended) = self.set.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (name, outcome) = self.ended(ended);
        match outcome {
            Ok(()) => stopped_unexpectedly(name),
            Err(fault) => fault,
        }
    }

    fn ended(
        &mut self,
        ended: Result<(Id, Result<(), Fault>), JoinError>,
    ) -> (&'static str, Result<(), Fault>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let position = self.names.iter().position(|(task, _)| *task == id);
        let name = position.map_or("unnamed task", |position| self.names.remove(position).1);
        let outcome = ended.map_or_else(
            |error| Err(stopped_unexpectedly(name).because(error)),
            |(_, outcome)| outcome,
        );
        (name, outcome)
    }

    /// Asks every task to stop, and does not wait for them.
    pub fn request_shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// Asks every task to stop and waits. What still runs at the deadline is cut off.
    ///
    /// # Errors
    /// The first fault that a task met on its way out, the others are logged; or the names of those that were cut off.
    pub async fn stop(mut self, deadline: Duration) -> Result<(), Fault> {
        self.request_shutdown();
        let mut first = Ok(());
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let (task, outcome) = self.ended(ended);
                let Err(fault) = outcome else { continue };
                if first.is_ok() {
                    first = Err(fault);
                } else {
                    tracing::error!(task, %fault, "task failed");
                }
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            let late: Vec<_> = self.names.iter().map(|(_, name)| *name).collect();
            let (late, seconds) = (late.join(", "), deadline.as_secs());
            tracing::warn!(tasks = late, "did not stop in time and were cut off");
            let what = format!("{late} did not stop within {seconds} s");
            first = first.and(Err(Fault::new(Code::Internal, what)));
        }
        first
    }
}

/// The fault of a part of the daemon that ended although nobody asked it to.
pub fn stopped_unexpectedly(part: &str) -> Fault {
    Fault::new(Code::Internal, format!("the {part} stopped unexpectedly"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn fault(what: &str) -> Fault {
        Fault::new(Code::Internal, what)
    }

    #[tokio::test(start_paused = true)]
    async fn awaits_tasks_that_heed_the_shutdown() {
        let mut tasks = Tasks::new();
        let mut shutdown = tasks.shutdown();
        let (done, is_done) = watch::channel(false);
        tasks.spawn("good", async move {
            shutdown.requested().await;
            tokio::time::sleep(DEADLINE / 2).await;
            done.send_replace(true);
        });
        tasks.stop(DEADLINE).await.unwrap();
        assert!(*is_done.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_off_the_task_that_did_not_stop_in_time_and_waits_for_no_longer() {
        let mut tasks = Tasks::new();
        let mut shutdown = tasks.shutdown();
        let (held, mut dropped) = watch::channel(());
        tasks.spawn("good", async move { shutdown.requested().await });
        tasks.spawn("stuck", async move {
            std::future::pending::<()>().await;
            held.send_replace(());
        });
        let started = tokio::time::Instant::now();
        let fault = tasks.stop(DEADLINE).await.unwrap_err();
        assert_eq!(fault.what, "stuck did not stop within 10 s");
        assert_eq!(started.elapsed(), DEADLINE);
        dropped.changed().await.unwrap_err();
    }

    #[tokio::test]
    async fn names_the_task_that_returned_unexpectedly() {
        let mut tasks = Tasks::new();
        tasks.spawn("patient task", std::future::pending::<()>());
        tasks.spawn("hasty task", async {});
        let failure = tasks.failure().await;
        assert_eq!(failure.what, "the hasty task stopped unexpectedly");
    }

    #[tokio::test]
    async fn names_the_task_that_panicked() {
        let mut tasks = Tasks::new();
        let panicking: fn() = || panic!("on purpose");
        tasks.spawn("broken task", async move { panicking() });
        let failure = tasks.failure().await;
        assert_eq!(failure.what, "the broken task stopped unexpectedly");
        assert!(failure.because.unwrap().contains("panicked"));
    }

    #[tokio::test]
    async fn reports_the_fault_that_a_task_returned() {
        let mut tasks = Tasks::new();
        tasks.spawn("membership", async { Err(fault("the node is banned")) });
        assert_eq!(tasks.failure().await.what, "the node is banned");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_on_the_way_out_is_reported_after_all_tasks_have_stopped() {
        let mut tasks = Tasks::new();
        let (mut first, mut second) = (tasks.shutdown(), tasks.shutdown());
        let (done, is_done) = watch::channel(false);
        tasks.spawn("first", async move {
            first.requested().await;
            Err(fault("the disk is full"))
        });
        tasks.spawn("second", async move {
            second.requested().await;
            tokio::time::sleep(DEADLINE / 2).await;
            done.send_replace(true);
        });
        let stopped = tasks.stop(DEADLINE).await;
        assert_eq!(stopped.unwrap_err().what, "the disk is full");
        assert!(*is_done.borrow());
    }

    #[tokio::test]
    async fn the_shutdown_is_seen_by_who_begins_to_listen_late_and_when_the_set_is_dropped() {
        let tasks = Tasks::new();
        tasks.request_shutdown();
        assert!(!tasks.shutdown().sleep(DEADLINE).await);
        let tasks = Tasks::new();
        let mut shutdown = tasks.shutdown();
        drop(tasks);
        shutdown.requested().await;
    }
}
