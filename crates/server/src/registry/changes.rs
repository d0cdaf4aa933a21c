//! The latest changes, in commit order, for those who follow. Bounded: who is further behind starts over.

use std::collections::VecDeque;

use super::records::Change;

/// How many changes are kept. Each holds its object's former self alive.
const CAPACITY: usize = 32_768;

#[derive(Debug)]
pub(crate) struct ChangeLog {
    /// Every change after this revision is in `changes`.
    floor: u64,
    changes: VecDeque<Change>,
    capacity: usize,
}

impl ChangeLog {
    /// Nothing is known of what led to `revision`.
    pub(crate) fn starting_at(revision: u64) -> Self {
        Self {
            floor: revision,
            changes: VecDeque::new(),
            capacity: CAPACITY,
        }
    }

    pub(crate) fn push(&mut self, change: Change) {
        if self.changes.len() >= self.capacity
            && let Some(dropped) = self.changes.pop_front()
        {
            self.floor = self.floor.max(dropped.revision);
        }
        self.changes.push_back(change);
    }

    /// The changes after `revision`, or `None` when some of them are no longer kept.
    pub(crate) fn since(&self, revision: u64) -> Option<Vec<Change>> {
        if revision < self.floor {
            return None;
        }
        let start = self
            .changes
            .partition_point(|change| change.revision <= revision);
        Some(self.changes.iter().skip(start).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::records::Kind;

    fn change(revision: u64) -> Change {
        Change {
            revision,
            kind: Kind::Entry,
            key: Arc::from("e"),
            old: None,
            new: None,
        }
    }

    #[test]
    fn a_follower_further_behind_than_the_log_must_start_over() {
        let mut log = ChangeLog {
            floor: 5,
            changes: VecDeque::new(),
            capacity: 3,
        };
        for revision in [6, 6, 7, 8] {
            log.push(change(revision));
        }
        assert!(log.since(4).is_none());
        assert!(log.since(5).is_none(), "one change of revision 6 is gone");
        assert_eq!(
            log.since(6)
                .unwrap()
                .iter()
                .map(|c| c.revision)
                .collect::<Vec<_>>(),
            [7, 8]
        );
        assert_eq!(log.since(8).unwrap().len(), 0);
    }
}
