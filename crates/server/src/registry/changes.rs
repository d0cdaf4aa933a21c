//! The latest changes, in commit order, for followers. Bounded: a follower that is further behind starts over.

use std::collections::VecDeque;

use super::cursor::Cursor;
use super::records::Change;

/// How many changes are kept. Each holds its object's former self alive.
const CAPACITY: usize = 32_768;

#[derive(Debug)]
pub(crate) struct ChangeLog {
    /// The revisions passed, oldest first: every change after the first of them is in `changes`.
    passed: VecDeque<Cursor>,
    changes: VecDeque<Change>,
    capacity: usize,
}

impl ChangeLog {
    /// Nothing is known of what led to `start`.
    pub(crate) fn starting_at(start: Cursor) -> Self {
        Self {
            passed: VecDeque::from([start]),
            changes: VecDeque::new(),
            capacity: CAPACITY,
        }
    }

    pub(crate) fn push(&mut self, change: Change) {
        if self.changes.len() >= self.capacity
            && let Some(dropped) = self.changes.pop_front()
        {
            // A follower before that change can no longer learn of it.
            self.forget(|oldest| oldest.revision() < dropped.revision);
        }
        self.changes.push_back(change);
    }

    /// Notes a revision whose changes have been pushed.
    pub(crate) fn pass(&mut self, cursor: Cursor) {
        self.passed.push_back(cursor);
        if self.passed.len() > self.capacity {
            self.passed.pop_front();
        }
    }

    fn forget(&mut self, is_lost: impl Fn(&Cursor) -> bool) {
        while self.passed.front().is_some_and(&is_lost) {
            self.passed.pop_front();
        }
    }

    /// The changes after `cursor`, or `None` when some of them are no longer kept, when it is not in this history, or when
    /// there are more than `most`, of which none is copied then.
    pub(crate) fn since(&self, cursor: Cursor, most: usize) -> Option<Vec<Change>> {
        let place = self
            .passed
            .binary_search_by_key(&cursor.revision(), |passed| passed.revision())
            .ok()?;
        // The number is known, the token is not: a cursor of a history that the database has lost.
        if self.passed.get(place) != Some(&cursor) {
            return None;
        }
        let start = self
            .changes
            .partition_point(|change| change.revision <= cursor.revision());
        if self.changes.len() - start > most {
            return None;
        }
        Some(self.changes.iter().skip(start).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::Kind;

    fn change(revision: u64) -> Change {
        Change {
            revision,
            kind: Kind::Entry,
            key: Arc::from("e"),
            old: None,
            new: None,
        }
    }

    fn log(capacity: usize, revisions: &[u64]) -> ChangeLog {
        let mut log = ChangeLog {
            capacity,
            ..ChangeLog::starting_at(at(5))
        };
        for revision in revisions {
            log.push(change(*revision));
            log.push(change(*revision));
            log.pass(at(*revision));
        }
        log
    }

    fn at(revision: u64) -> Cursor {
        Cursor::new(revision, i64::try_from(revision * 11).unwrap())
    }

    #[test]
    fn a_follower_further_behind_than_the_log_must_start_over() {
        let log = log(5, &[6, 7, 8]);
        assert!(log.since(at(4), 9).is_none());
        assert!(
            log.since(at(5), 9).is_none(),
            "one change of revision 6 is gone"
        );
        let since: Vec<_> = log
            .since(at(6), 9)
            .unwrap()
            .iter()
            .map(|c| c.revision)
            .collect();
        assert_eq!(since, [7, 7, 8, 8]);
        assert_eq!(log.since(at(8), 9).unwrap().len(), 0);
        assert_eq!(log.since(at(7), 2).unwrap().len(), 2);
        assert!(log.since(at(6), 3).is_none(), "four are more than three");
    }

    #[test]
    fn a_follower_of_another_history_must_start_over() {
        let log = log(50, &[6, 7, 8]);
        for revision in [5, 6, 8] {
            assert!(
                log.since(Cursor::new(revision, 1), 9).is_none(),
                "{revision}"
            );
            assert!(log.since(at(revision), 9).is_some(), "{revision}");
        }
        assert!(log.since(at(9), 9).is_none(), "a cursor from the future");
    }
}
