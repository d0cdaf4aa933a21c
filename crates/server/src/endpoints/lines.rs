//! The connections of one endpoint: counted, capped, all awaited at the end. At the cap the longest-held idle one makes room, so
//! that no number of silent connections keeps anybody out.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections beyond the cap that have been ended and are not gone yet.
const LEAVING: usize = 64;

/// One accepted connection as its endpoint sees it.
#[derive(Debug)]
pub(super) struct Line {
    calls: AtomicUsize,
    ended: AtomicBool,
    close: watch::Sender<bool>,
}

/// Counts a call for as long as it lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Line>);

impl Line {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            close: watch::Sender::new(false),
        })
    }

    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub(super) fn close(&self) {
        self.close.send_replace(true);
    }

    /// True once the connection is to end.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.close.subscribe()
    }

    /// Returns when the connection is to end.
    pub(super) async fn closed(&self) {
        drop(
            self.close
                .subscribe()
                .wait_for(|closing| *closing)
                .await
                .map(|_| ()),
        );
    }

    pub(super) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    fn is_idle(&self) -> bool {
        !self.has_calls() && !*self.close.borrow()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The running connections.
#[derive(Debug)]
pub(super) struct Lines {
    running: JoinSet<()>,
    lines: VecDeque<Arc<Line>>,
    most: usize,
}

impl Lines {
    pub(super) fn at_most(most: usize) -> Self {
        Self {
            running: JoinSet::new(),
            lines: VecDeque::new(),
            most,
        }
    }

    /// Runs what `serve` makes of a new line. At the cap an idle line is ended for it; returns false when none is idle.
    pub(super) async fn spawn<F>(&mut self, serve: impl FnOnce(Arc<Line>) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while self.running.try_join_next().is_some() {}
        if self.lines.len() > self.running.len().saturating_mul(2).saturating_add(64) {
            self.lines
                .retain(|line| !line.ended.load(Ordering::Relaxed));
        }
        if self.running.len() >= self.most {
            if !self.make_room() {
                return false;
            }
            // It ends at once, yet those that did not get their turn to must not pile up.
            while self.running.len() >= self.most.saturating_add(LEAVING) {
                self.running.join_next().await;
            }
        }
        let line = Line::new();
        self.lines.push_back(Arc::clone(&line));
        let serving = serve(Arc::clone(&line));
        self.running.spawn(async move {
            serving.await;
            line.ended.store(true, Ordering::Relaxed);
        });
        true
    }

    /// Asks the longest-held idle line to end.
    fn make_room(&mut self) -> bool {
        for _ in 0..self.lines.len() {
            let Some(line) = self.lines.pop_front() else {
                return false;
            };
            if line.ended.load(Ordering::Relaxed) {
                continue;
            }
            if line.is_idle() {
                line.close();
                return true;
            }
            self.lines.push_back(line);
        }
        false
    }

    pub(super) async fn all_ended(mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

/// How many connections the limit of open files leaves room for, after raising it as far as this process may.
pub(crate) fn room_for_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 256;
    };
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    // A quarter is kept for the database, files and the other endpoints.
    usize::try_from(limit - limit / 4).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closes_the_oldest_idle_line_for_a_new_one() {
        let mut lines = Lines::at_most(2);
        let (told, mut events) = tokio::sync::mpsc::unbounded_channel();
        for name in 1..=3 {
            let told = told.clone();
            let serve = |line: Arc<Line>| async move {
                line.closed().await;
                told.send(name).unwrap();
            };
            assert!(lines.spawn(serve).await);
        }
        assert_eq!(events.recv().await, Some(1));
    }

    #[tokio::test]
    async fn refuses_a_line_when_all_are_busy() {
        let mut lines = Lines::at_most(1);
        let serve = |line: Arc<Line>| {
            let busy = line.busy();
            async move {
                std::future::pending::<()>().await;
                drop(busy);
            }
        };
        assert!(lines.spawn(serve).await);
        assert!(!lines.spawn(|_| std::future::ready(())).await);
    }
}
