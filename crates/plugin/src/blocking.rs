//! Blocking work of plugins, bounded where it runs.
//!
//! A caller that gives up frees no thread: a file system that hangs keeps its thread until it answers. So a turn is given
//! back by the thread that does the work and not by the caller that waits for it, and what many callers want at the same time is
//! done once. With these bounds no plugin can take all of the runtime's blocking threads, so plugins need no pool of
//! their own.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How much work may run at the same time: overall, and on behalf of one user, so that no user delays all others.
#[derive(Debug)]
pub struct WorkLimits {
    overall: Arc<Semaphore>,
    of_user: usize,
    users: Mutex<HashMap<u32, Weak<Semaphore>>>,
}

/// The right to run one piece of work. Moves into the thread that does it.
#[derive(Debug)]
pub struct WorkPermit {
    _of_user: OwnedSemaphorePermit,
    _overall: OwnedSemaphorePermit,
}

/// The work ended without a result: the agent stops, or the work panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was interrupted")]
pub struct Interrupted;

impl WorkLimits {
    pub fn new(overall: usize, of_user: usize) -> Self {
        Self {
            overall: Arc::new(Semaphore::new(overall)),
            of_user,
            users: Mutex::default(),
        }
    }

    /// Waits for a turn. The user's own comes first: who waits for that holds nothing that others need.
    pub async fn take(&self, user: u32) -> Result<WorkPermit, Interrupted> {
        let closed = |_never: tokio::sync::AcquireError| Interrupted;
        let of_user = self.of(user).acquire_owned().await.map_err(closed)?;
        let overall = Arc::clone(&self.overall);
        Ok(WorkPermit {
            _of_user: of_user,
            _overall: overall.acquire_owned().await.map_err(closed)?,
        })
    }

    fn of(&self, user: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = users.get(&user).and_then(Weak::upgrade) {
            return turns;
        }
        // Only those with work under way or waiting are kept.
        users.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(self.of_user));
        users.insert(user, Arc::downgrade(&turns));
        turns
    }
}

/// Runs the work on a blocking thread, which gives the turn back when it is done.
pub async fn run<T: Send + 'static>(
    turn: WorkPermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    let bounded = move || {
        let outcome = work();
        drop(turn);
        outcome
    };
    tokio::task::spawn_blocking(bounded)
        .await
        .map_err(|_cancelled_or_panicked| Interrupted)
}

/// Each result is sent once, to all who wait for it.
type UnderWay<K, V> = HashMap<K, Weak<watch::Sender<Option<V>>>>;

/// Work that is done once for all who want its result at the same time.
#[derive(Debug)]
pub struct SingleFlight<K, V> {
    under_way: Mutex<UnderWay<K, V>>,
}

/// Those who wait for the result of some work, as that work sees them.
#[derive(Debug)]
pub struct Waiters<V>(Arc<watch::Sender<Option<V>>>);

impl<V> Waiters<V> {
    /// Whether nobody wants the result any more.
    pub fn are_gone(&self) -> bool {
        self.0.is_closed()
    }
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
        }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Debug + Send + 'static,
    V: Clone + Debug + Send + Sync + 'static,
{
    /// The result of the work under way for `key`, which is started when there is none. The work goes on when the caller
    /// that started it gives up; `Waiters` tells it when nobody is left.
    pub async fn join<W>(
        self: &Arc<Self>,
        key: K,
        start: impl FnOnce(Waiters<V>) -> W,
    ) -> Result<V, Interrupted>
    where
        W: Future<Output = Result<V, Interrupted>> + Send + 'static,
    {
        let mut result = self.join_or_start(key, start);
        let done = result.wait_for(Option::is_some).await;
        done.ok().and_then(|value| value.clone()).ok_or(Interrupted)
    }

    fn join_or_start<W>(
        self: &Arc<Self>,
        key: K,
        start: impl FnOnce(Waiters<V>) -> W,
    ) -> watch::Receiver<Option<V>>
    where
        W: Future<Output = Result<V, Interrupted>> + Send + 'static,
    {
        let mut under_way = self.lock();
        if let Some(sender) = under_way.get(&key).and_then(Weak::upgrade) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        under_way.insert(key.clone(), Arc::downgrade(&sender));
        drop(under_way);
        let work = start(Waiters(Arc::clone(&sender)));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = work.await;
            this.lock().remove(&key);
            if let Ok(value) = outcome {
                sender.send_replace(Some(value));
            }
        });
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay<K, V>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_turn_is_given_back_by_the_thread_and_not_by_who_gave_up() {
        let turns = WorkLimits::new(1, 1);
        let turn = turns.take(1).await.unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let waiting = tokio::spawn(run(turn, move || held.recv().ok()));
        tokio::task::yield_now().await;
        waiting.abort();
        waiting.await.unwrap_err();
        assert_eq!(turns.overall.available_permits(), 0);
        drop(release);
        turns.take(1).await.unwrap();
    }

    #[tokio::test]
    async fn a_user_with_all_its_turns_taken_delays_nobody_else() {
        let turns = WorkLimits::new(2, 1);
        let _first = turns.take(1).await.unwrap();
        let second = turns.take(1);
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("one turn each"),
            other = turns.take(2) => drop(other.unwrap()),
        }
        assert_eq!(turns.overall.available_permits(), 1);
    }

    #[tokio::test]
    async fn users_that_are_done_are_forgotten() {
        let turns = WorkLimits::new(8, 1);
        for user in 0..1000 {
            drop(turns.take(user).await.unwrap());
        }
        assert!(turns.users.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn what_many_want_is_done_once() {
        let flights: Arc<SingleFlight<u32, usize>> = Arc::default();
        let started = Arc::new(AtomicUsize::new(0));
        let count = |started: Arc<AtomicUsize>| async move {
            tokio::task::yield_now().await;
            Ok(started.fetch_add(1, Ordering::Relaxed))
        };
        let join = || {
            let (flights, started) = (Arc::clone(&flights), Arc::clone(&started));
            tokio::spawn(async move { flights.join(7, |_waiters| count(started)).await })
        };
        let all: Vec<_> = (0..100).map(|_| join()).collect();
        for one in all {
            assert_eq!(one.await.unwrap(), Ok(0));
        }
        assert!(flights.lock().is_empty());
        assert_eq!(join().await.unwrap(), Ok(1));
    }

    #[tokio::test]
    async fn work_learns_that_nobody_waits_and_work_that_failed_is_started_again() {
        let flights: Arc<SingleFlight<u32, u32>> = Arc::default();
        let (tell, told) = tokio::sync::oneshot::channel();
        let abandoned = |waiters: Waiters<u32>| async move {
            while !waiters.are_gone() {
                tokio::task::yield_now().await;
            }
            tell.send(()).ok();
            Err(Interrupted)
        };
        let mut caller = Box::pin(flights.join(1, abandoned));
        tokio::select! {
            biased;
            _ = &mut caller => panic!("nothing is done yet"),
            () = tokio::task::yield_now() => drop(caller),
        }
        told.await.unwrap();
        let fails = |_waiters| std::future::ready(Err(Interrupted));
        assert_eq!(flights.join(2, fails).await, Err(Interrupted));
        assert_eq!(flights.join(2, |_| std::future::ready(Ok(3))).await, Ok(3));
    }
}
