//! A daemon's background tasks: each has a name, hears of the shutdown, and is awaited with a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

/// Notifies every task, once, that the server stops.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Returns when the server stops, at once if it already does.
    pub async fn requested(&mut self) {
        // An error means that the sender is gone, which is a shutdown too.
        drop(self.0.wait_for(|stop| *stop).await.map(|_| ()));
    }

    /// Sleeps, or returns false early because the server stops.
    pub async fn sleep(&mut self, period: Duration) -> bool {
        tokio::select! {
            () = self.requested() => false,
            () = tokio::time::sleep(period) => true,
        }
    }
}

/// The set of running tasks.
#[derive(Debug)]
pub struct Tasks {
    stop: watch::Sender<bool>,
    set: JoinSet<()>,
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
        F: Future<Output = ()> + Send + 'static,
    {
        let handle = self.set.spawn(task);
        self.names.push((handle.id(), name));
    }

    /// Returns the name of the first task that ended although nobody asked it to, which no task does in health.
    pub async fn first_to_end(&mut self) -> &'static str {
        match self.set.join_next_with_id().await {
            None => std::future::pending().await,
            Some(ended) => self.named(&ended),
        }
    }

    fn named(&self, ended: &Result<(Id, ()), JoinError>) -> &'static str {
        let id = match ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.names
            .iter()
            .find(|(task, _)| *task == id)
            .map_or("unnamed", |(_, name)| name)
    }

    /// Asks every task to stop and waits. What is still running at the deadline is cut off; returns those names.
    pub async fn stop(mut self, deadline: Duration) -> Vec<&'static str> {
        self.stop.send_replace(true);
        let names = std::mem::take(&mut self.names);
        let mut running = names.clone();
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(error) => error.id(),
                };
                if ended.is_err() {
                    tracing::error!(
                        task = names
                            .iter()
                            .find(|(task, _)| *task == id)
                            .map(|(_, name)| *name),
                        "task failed"
                    );
                }
                running.retain(|(task, _)| *task != id);
            }
        };
        match tokio::time::timeout(deadline, all).await {
            Ok(()) => Vec::new(),
            Err(_) => running.into_iter().map(|(_, name)| name).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn awaits_tasks_that_heed_the_shutdown() {
        let mut tasks = Tasks::new();
        let mut shutdown = tasks.shutdown();
        tasks.spawn("good", async move { shutdown.requested().await });
        assert!(tasks.stop(Duration::from_secs(10)).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn names_the_task_that_did_not_stop_in_time() {
        let mut tasks = Tasks::new();
        let mut shutdown = tasks.shutdown();
        tasks.spawn("good", async move { shutdown.requested().await });
        tasks.spawn("stuck", std::future::pending());
        assert_eq!(tasks.stop(Duration::from_secs(10)).await, ["stuck"]);
    }

    #[tokio::test]
    async fn names_the_task_that_terminated_unexpectedly() {
        let mut tasks = Tasks::new();
        tasks.spawn("patient", std::future::pending());
        tasks.spawn("hasty", async {});
        assert_eq!(tasks.first_to_end().await, "hasty");
    }
}
