//! The calls that were not answered with an identity, by the request ID in the caller's error: what an operator who is given
//! that ID needs to see which selector was missing or which attestor did not answer.
//!
//! Kept in memory while the agent runs, in bounded number: of each user the last few, and of so many users, so that none
//! pushes out what is known of the others. Selectors are here as they were found; the code that shows them
//! decides which.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use spiffe::selector::{Selector, SelectorSet};

use crate::attestor::Incomplete;

const OF_USER: usize = 32;
const USERS: usize = 32;
/// More are counted and not kept: a process may have thousands, by its supplementary groups.
const SELECTORS: usize = 64;

/// A call that was not answered with an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestRecord {
    /// As in the caller's error: `r-` and eight letters or digits.
    pub(crate) id: String,
    pub(crate) at: SystemTime,
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    /// The first of them, and how many more there were.
    pub(crate) selectors: Vec<Selector>,
    pub(crate) more_selectors: usize,
    /// Attestors that could not say all, and why.
    pub(crate) incomplete: Vec<Incomplete>,
    pub(crate) outcome: Outcome,
    /// Nothing also when the entries were not searched, as for a caller whose log lines are left out.
    pub(crate) nearest: Option<NearestEntry>,
}

/// Why the caller got no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No entry matches all of its selectors.
    NoEntry,
    /// It does not have the SPIFFE ID it asked for.
    NotItsOwn,
    /// Not all of it is known, so that nothing it lacks counts.
    Incomplete,
    /// It has entries whose SVIDs the server did not issue in time.
    NotIssued,
}

/// The entry that came nearest to matching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NearestEntry {
    pub(crate) id: String,
    /// How many of its selectors the caller lacked.
    pub(crate) lacks: usize,
    pub(crate) expired: bool,
}

impl RequestRecord {
    /// The part of a caller's selectors that is kept, and how many more there are.
    pub(super) fn kept(selectors: &SelectorSet) -> (Vec<Selector>, usize) {
        let kept: Vec<_> = selectors.iter().take(SELECTORS).cloned().collect();
        let more = selectors.len() - kept.len();
        (kept, more)
    }
}

/// The last of them.
#[derive(Debug, Default)]
pub(crate) struct RequestLog(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    users: HashMap<u32, Calls>,
    /// Calls so far. Their order, which a clock that is set back does not change.
    number: u64,
}

/// The calls of one user.
#[derive(Debug, Default)]
struct Calls {
    records: VecDeque<RequestRecord>,
    /// The number of the last one.
    last: u64,
}

impl RequestLog {
    pub(super) fn add(&self, record: RequestRecord) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { users, number } = &mut *table;
        *number += 1;
        if users.len() >= USERS && !users.contains_key(&record.uid) {
            // The user who has been without such a call longest is forgotten.
            let quietest = users
                .iter()
                .min_by_key(|(_, calls)| calls.last)
                .map(|(user, _)| *user);
            if let Some(quietest) = quietest {
                users.remove(&quietest);
            }
        }
        let Calls { records, last } = users.entry(record.uid).or_default();
        *last = *number;
        if records.len() >= OF_USER {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// The call of this name, if it is still known.
    #[cfg_attr(not(test), expect(dead_code, reason = "for `explain --request`"))]
    pub(crate) fn find(&self, id: &str) -> Option<RequestRecord> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = table.users.values().flat_map(|calls| &calls.records);
        records.find(|record| record.id == id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::selectors;

    fn record(id: &str, uid: u32, seconds: u64) -> RequestRecord {
        let (selectors, more_selectors) = RequestRecord::kept(&selectors(&["unix:uid:1"]));
        RequestRecord {
            id: id.to_owned(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            pid: 1,
            uid,
            selectors,
            more_selectors,
            incomplete: Vec::new(),
            outcome: Outcome::NoEntry,
            nearest: None,
        }
    }

    fn len(log: &RequestLog) -> usize {
        let table = log.0.lock().unwrap();
        table.users.values().map(|calls| calls.records.len()).sum()
    }

    #[test]
    fn a_call_is_found_by_its_name_and_an_unknown_name_is_not() {
        let log = RequestLog::default();
        log.add(record("r-a", 1, 0));
        log.add(record("r-b", 1, 0));
        assert_eq!(log.find("r-a"), Some(record("r-a", 1, 0)));
        for unknown in ["r-c", "", "r-"] {
            assert_eq!(log.find(unknown), None);
        }
    }

    #[test]
    fn a_user_that_is_refused_all_the_time_pushes_out_nobody_elses_calls() {
        let log = RequestLog::default();
        log.add(record("r-quiet", 1, 0));
        for number in 0..10_000 {
            log.add(record(&format!("r-{number}"), 2, 1));
        }
        assert!(log.find("r-quiet").is_some());
        assert!(log.find("r-9999").is_some() && log.find("r-9967").is_none());
        assert_eq!(len(&log), OF_USER + 1);
    }

    #[test]
    fn of_more_users_than_are_kept_the_quietest_is_forgotten() {
        let log = RequestLog::default();
        for user in 0..200 {
            log.add(record(&format!("r-{user}"), user, u64::from(user)));
            // Keeps being refused.
            log.add(record("r-zero", 0, u64::from(user)));
        }
        assert_eq!(log.0.lock().unwrap().users.len(), USERS);
        assert!(log.find("r-zero").is_some() && log.find("r-199").is_some());
        assert!(log.find("r-1").is_none());
    }

    #[test]
    fn after_a_clock_was_set_back_new_users_push_out_the_old_ones_and_not_each_other() {
        let log = RequestLog::default();
        let users = u32::try_from(USERS).unwrap();
        for user in 0..users {
            log.add(record(&format!("r-{user}"), user, 3600));
        }
        for user in users..users + 2 {
            log.add(record(&format!("r-{user}"), user, u64::from(user)));
        }
        for kept in [users, users + 1] {
            assert!(log.find(&format!("r-{kept}")).is_some());
        }
        assert!(log.find("r-0").is_none() && log.find("r-1").is_none());
    }

    #[test]
    fn of_a_process_with_many_selectors_the_first_are_kept_and_the_rest_counted() {
        let many: Vec<_> = (0..3000)
            .map(|gid| Selector::parse(&format!("unix:supplementary_gid:{gid}")).unwrap())
            .collect();
        let (kept, more) = RequestRecord::kept(&SelectorSet::from(many));
        assert_eq!((kept.len(), more), (SELECTORS, 3000 - SELECTORS));
    }
}
