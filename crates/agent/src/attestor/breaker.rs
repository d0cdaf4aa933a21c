//! When an attestor is asked, and when it is skipped because it does not answer.
//!
//! Waiting for an attestor that hangs costs each caller its whole deadline. So one that was late several times in a row
//! is skipped for a while that grows, and then a single caller finds out whether it answers again. This is counted for
//! each user of the machine: a user whose processes make an attestor late, by a program on a file system that hangs,
//! takes that attestor from nobody else.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Late so many times in a row, an attestor is skipped.
const LATE_IN_A_ROW: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An attestor that is late for more users than this is asked by the others as if nothing were known: their turns still
/// limit what that costs.
const USERS: usize = 1024;

/// One attestor's breaker. Users for whom it is on time are not in it.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<HashMap<u32, Lateness>>);

#[derive(Debug)]
enum Lateness {
    /// It was late so many times in a row, and is asked.
    Asked(u32),
    Skipped {
        until: Instant,
        pause: Duration,
        /// Somebody is finding out whether it answers again.
        probed: bool,
    },
}

/// Whether to ask.
#[derive(Debug)]
pub(super) enum Admission<'a> {
    Ask(Attempt<'a>),
    /// Not now: it was late, and is asked again after this time.
    Skip(Duration),
}

/// A call that is under way, to be settled by how it ends. One that is dropped says nothing about the attestor.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    breaker: &'a Breaker,
    user: u32,
    probe: bool,
}

impl Breaker {
    /// Whether to ask the attestor for a process of this user now.
    pub(super) fn admit(&self, user: u32) -> Admission<'_> {
        let now = Instant::now();
        let mut users = self.lock();
        let mut probe = false;
        if let Some(Lateness::Skipped { until, probed, .. }) = users.get_mut(&user) {
            if *probed || now < *until {
                return Admission::Skip(until.saturating_duration_since(now));
            }
            *probed = true;
            probe = true;
        }
        Admission::Ask(Attempt {
            breaker: self,
            user,
            probe,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Lateness>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    /// It answered, were it with an error. Returns whether it was skipped before.
    pub(super) fn answered(self) -> bool {
        let before = self.breaker.lock().remove(&self.user);
        matches!(before, Some(Lateness::Skipped { .. }))
    }

    /// It did not answer in time. Returns how long it is skipped, when this begins or prolongs that.
    pub(super) fn late(self) -> Option<Duration> {
        let now = Instant::now();
        let mut users = self.breaker.lock();
        if users.len() >= USERS && !users.contains_key(&self.user) {
            // Those whose pause is over begin at the beginning.
            users.retain(
                |_, lateness| matches!(lateness, Lateness::Skipped { until, .. } if *until > now),
            );
            if users.len() >= USERS {
                return None;
            }
        }
        let lateness = users.entry(self.user).or_insert(Lateness::Asked(0));
        let pause = match lateness {
            Lateness::Asked(times) => {
                *times += 1;
                if *times < LATE_IN_A_ROW {
                    return None;
                }
                FIRST_PAUSE
            }
            Lateness::Skipped { pause, .. } if self.probe => (*pause * 2).min(LONGEST_PAUSE),
            // It was asked before the pause began.
            Lateness::Skipped { .. } => return None,
        };
        *lateness = Lateness::Skipped {
            until: now + pause,
            pause,
            probed: false,
        };
        Some(pause)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        // After `late` and `answered` there is no probe under way any more, and nothing to change.
        if self.probe
            && let Some(Lateness::Skipped { probed, .. }) = self.breaker.lock().get_mut(&self.user)
        {
            *probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 7;

    fn ask(breaker: &Breaker, user: u32) -> Attempt<'_> {
        match breaker.admit(user) {
            Admission::Ask(attempt) => attempt,
            Admission::Skip(pause) => panic!("skipped for {pause:?}"),
        }
    }

    fn pause_of(breaker: &Breaker, user: u32) -> Duration {
        match breaker.admit(user) {
            Admission::Skip(pause) => pause,
            Admission::Ask(_) => panic!("asked"),
        }
    }

    fn skipped() -> Breaker {
        let breaker = Breaker::default();
        let begun: Vec<_> = (0..LATE_IN_A_ROW)
            .map(|_| ask(&breaker, USER).late())
            .collect();
        assert_eq!(begun, [None, None, Some(FIRST_PAUSE)]);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestor_that_is_late_three_times_in_a_row_is_skipped() {
        let breaker = skipped();
        assert_eq!(pause_of(&breaker, USER), FIRST_PAUSE);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(pause_of(&breaker, USER), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_starts_the_count_again() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            assert_eq!(ask(&breaker, USER).late(), None);
            assert_eq!(ask(&breaker, USER).late(), None);
            assert!(!ask(&breaker, USER).answered());
        }
        assert!(breaker.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pause_one_caller_finds_out_and_the_others_still_skip() {
        let breaker = skipped();
        tokio::time::advance(FIRST_PAUSE).await;
        let probe = ask(&breaker, USER);
        assert_eq!(pause_of(&breaker, USER), Duration::ZERO);
        assert!(probe.answered());
        assert!(!ask(&breaker, USER).answered());
        assert!(breaker.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_to_a_limit_while_the_attestor_stays_late() {
        let breaker = skipped();
        let mut pause = FIRST_PAUSE;
        for seconds in [10, 20, 40, 60, 60] {
            tokio::time::advance(pause).await;
            pause = Duration::from_secs(seconds);
            assert_eq!(ask(&breaker, USER).late(), Some(pause));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_asked_before_the_pause_do_not_prolong_it() {
        let breaker = Breaker::default();
        let early: Vec<_> = (0..100).map(|_| ask(&breaker, USER)).collect();
        let begun = early.into_iter().filter_map(Attempt::late).count();
        assert_eq!(begun, 1);
        assert_eq!(pause_of(&breaker, USER), FIRST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_leaves_it_to_the_next_caller() {
        let breaker = skipped();
        tokio::time::advance(FIRST_PAUSE).await;
        drop(ask(&breaker, USER));
        assert!(ask(&breaker, USER).answered());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestor_that_is_late_for_one_user_is_asked_for_all_others() {
        let breaker = skipped();
        assert!(!ask(&breaker, USER + 1).answered());
        assert_eq!(pause_of(&breaker, USER), FIRST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn users_beyond_the_limit_are_not_counted_and_old_ones_make_room() {
        let breaker = Breaker::default();
        let users = u32::try_from(USERS).unwrap();
        for user in 0..users {
            for _ in 0..LATE_IN_A_ROW {
                ask(&breaker, user).late();
            }
        }
        for _ in 0..2 * LATE_IN_A_ROW {
            assert_eq!(ask(&breaker, users).late(), None);
        }
        assert_eq!(breaker.lock().len(), USERS);
        tokio::time::advance(FIRST_PAUSE).await;
        ask(&breaker, users).late();
        assert_eq!(breaker.lock().len(), 1);
    }
}
