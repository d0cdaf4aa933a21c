//! Where time comes from. Nothing else in the workspace may read the system clock: every decision about an
//! expiry takes `now` or a [`Clock`], so a test owns time.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A source of wall-clock time.
pub trait Clock: Send + Sync + Debug {
    /// The present moment.
    fn now(&self) -> SystemTime;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the system clock"
    )]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that stands still until it is advanced. Clones share the same time.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<SystemTime>>);

impl ManualClock {
    /// A clock that reads `now`.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// Jumps to `now`, forwards or backwards.
    pub fn set(&self, now: SystemTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves forward by `step`; stays where it is when the sum is not representable.
    pub fn advance(&self, step: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(step).unwrap_or(*now);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole seconds since 1970-01-01T00:00:00Z, rounded down; negative before it. Saturates.
#[must_use]
pub fn unix_seconds(t: SystemTime) -> i64 {
    match t.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole - i64::from(before.subsec_nanos() > 0)
        }
    }
}

/// The moment `secs` seconds after 1970-01-01T00:00:00Z (before it when negative). Saturates at the epoch
/// when the platform cannot represent the moment.
#[must_use]
pub fn from_unix(secs: i64) -> SystemTime {
    let distance = Duration::from_secs(secs.unsigned_abs());
    let moment = if secs >= 0 {
        UNIX_EPOCH.checked_add(distance)
    } else {
        UNIX_EPOCH.checked_sub(distance)
    };
    moment.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_seconds_round_down_on_both_sides_of_the_epoch() {
        assert_eq!(unix_seconds(UNIX_EPOCH + Duration::from_millis(1500)), 1);
        assert_eq!(unix_seconds(UNIX_EPOCH - Duration::from_millis(1500)), -2);
        for secs in [-86_400, -1, 0, 1, 1_765_452_903] {
            assert_eq!(unix_seconds(from_unix(secs)), secs);
        }
    }

    #[test]
    fn manual_clock_moves_only_when_advanced_and_is_shared_by_clones() {
        let clock = ManualClock::new(from_unix(100));
        let other = clock.clone();
        clock.advance(Duration::from_secs(5));
        assert_eq!(unix_seconds(other.now()), 105);
        other.set(from_unix(7));
        assert_eq!(unix_seconds(clock.now()), 7);
    }
}
