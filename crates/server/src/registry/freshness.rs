//! How current the state in memory is: when it was last confirmed with the database, and what is wrong since.
//!
//! Bans, evictions and revocations that another server writes reach this one through the database. A server that is cut
//! off from it therefore serves agents for a bounded time only. Time is the runtime's monotonic clock: a step of the
//! wall clock makes nothing fresh or stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The writer is gone: nothing will be confirmed again.
const NEVER: u64 = 0;

/// What is known of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Memory follows it and it takes writes.
    Well,
    /// Memory follows it, but it takes no writes.
    Unwritable { because: Arc<str> },
    /// It does not answer, or what it answers cannot be read.
    Away { because: Arc<str> },
}

impl Condition {
    /// What is wrong, if anything is.
    pub(crate) fn fault(&self) -> Option<&str> {
        match self {
            Self::Well => None,
            Self::Unwritable { because } | Self::Away { because } => Some(because),
        }
    }
}

/// The state in memory is older than agents may be served from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server has not been able to confirm its state with the database for {} s{because}; try another server, or try again later",
    age.as_secs()
)]
pub(crate) struct Stale {
    age: Duration,
    /// Begins with ": ", or is empty.
    because: String,
}

/// Shared by the one task that confirms and everybody who asks.
#[derive(Debug)]
pub(crate) struct Freshness {
    bound: Duration,
    origin: Instant,
    /// Milliseconds from `origin` to the last moment at which memory was known to be current, plus one; or [`NEVER`].
    confirmed: AtomicU64,
    condition: watch::Sender<Condition>,
}

impl Freshness {
    /// Memory was loaded just now. Agents are served for `bound` after each confirmation.
    pub(super) fn new(bound: Duration) -> Self {
        Self {
            bound,
            origin: Instant::now(),
            confirmed: AtomicU64::new(1),
            condition: watch::Sender::new(Condition::Well),
        }
    }

    /// Memory was current at `at`, which is when the look at the database began.
    pub(super) fn confirm(&self, at: Instant) {
        let millis = at.saturating_duration_since(self.origin).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX - 1);
        self.confirmed.store(millis + 1, Ordering::Release);
    }

    /// Nothing will be confirmed again: memory counts as stale from now on.
    pub(super) fn end(&self) {
        self.confirmed.store(NEVER, Ordering::Release);
        let because = Arc::from("the datastore's writer has stopped");
        self.condition.send_replace(Condition::Away { because });
    }

    pub(super) fn set_condition(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    pub(crate) fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    /// Tells of each change of the condition.
    pub(crate) fn conditions(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// How long ago memory was last known to be current.
    pub(crate) fn age(&self) -> Duration {
        match self.confirmed.load(Ordering::Acquire) {
            NEVER => Duration::MAX,
            at => {
                let elapsed = self.origin.elapsed();
                elapsed.saturating_sub(Duration::from_millis(at - 1))
            }
        }
    }

    /// Whether agents, and others whose rights come from the database, may be served.
    ///
    /// # Errors
    /// Memory has not been confirmed for longer than `max_attested_node_info_staleness`.
    pub(crate) fn check(&self) -> Result<(), Stale> {
        let age = self.age();
        if age <= self.bound {
            return Ok(());
        }
        let because = self.condition().fault().map(|fault| format!(": {fault}"));
        Err(Stale {
            age: age.min(self.origin.elapsed()),
            because: because.unwrap_or_default(),
        })
    }

    /// Returns when [`check`](Self::check) fails. For streams, which are not asked again by themselves.
    pub(crate) async fn stale(&self) -> Stale {
        let mut conditions = self.conditions();
        loop {
            if let Err(stale) = self.check() {
                return stale;
            }
            let left = self.bound.saturating_sub(self.age()) + Duration::from_millis(1);
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                // The sender lives as long as `self`.
                _ = conditions.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_stale_after_the_bound_and_fresh_again_when_confirmed() {
        let freshness = Freshness::new(Duration::from_secs(300));
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(freshness.check(), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        let stale = freshness.check().unwrap_err().to_string();
        assert!(stale.contains("for 301 s"), "{stale}");
        freshness.confirm(Instant::now());
        assert_eq!(freshness.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn says_why_it_is_stale() {
        let freshness = Freshness::new(Duration::from_secs(3));
        let because = Arc::from("h/db: connection refused");
        freshness.set_condition(Condition::Away { because });
        assert_eq!(freshness.check(), Ok(()), "the bound is not yet passed");
        tokio::time::advance(Duration::from_secs(4)).await;
        let stale = freshness.check().unwrap_err().to_string();
        assert!(stale.contains("h/db: connection refused"), "{stale}");
    }

    #[tokio::test(start_paused = true)]
    async fn wakes_streams_when_the_bound_passes_and_not_before() {
        let freshness = Freshness::new(Duration::from_secs(300));
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(200)).await;
        freshness.confirm(Instant::now());
        freshness.stale().await;
        assert!(began.elapsed() > Duration::from_secs(500));
        assert!(began.elapsed() < Duration::from_secs(501));
    }

    #[tokio::test(start_paused = true)]
    async fn is_stale_at_once_when_the_writer_is_gone() {
        let freshness = Freshness::new(Duration::from_secs(300));
        freshness.end();
        assert!(freshness.check().is_err());
        freshness.stale().await;
    }
}
