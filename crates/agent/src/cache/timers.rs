//! When the cache has to look at something again: one ordered queue for everything that has a time.
//!
//! A key has at most one time. The queue knows nothing of what its keys mean.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

/// Keys and their times, the earliest first.
#[derive(Debug)]
pub(super) struct Timers<K> {
    queue: BTreeSet<(SystemTime, K)>,
    times: BTreeMap<K, SystemTime>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self {
            queue: BTreeSet::new(),
            times: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Sets the time of a key in place of any earlier one.
    pub(super) fn set(&mut self, key: K, when: SystemTime) {
        if let Some(former) = self.times.insert(key.clone(), when) {
            self.queue.remove(&(former, key.clone()));
        }
        self.queue.insert((when, key));
    }

    pub(super) fn cancel(&mut self, key: &K) {
        if let Some((key, when)) = self.times.remove_entry(key) {
            self.queue.remove(&(when, key));
        }
    }

    /// When [`Self::pop_due`] has something to give.
    pub(super) fn next(&self) -> Option<SystemTime> {
        self.queue.first().map(|(when, _)| *when)
    }

    /// Takes out one key whose time has come, the earliest first.
    pub(super) fn pop_due(&mut self, now: SystemTime) -> Option<K> {
        self.queue.first().filter(|(when, _)| *when <= now)?;
        let (_, key) = self.queue.pop_first()?;
        self.times.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn keys_come_at_their_time_and_the_earliest_first() {
        let mut timers = Timers::default();
        timers.set("b", at(20));
        timers.set("a", at(10));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(20)), Some("a"));
        assert_eq!(timers.pop_due(at(20)), Some("b"));
        assert_eq!((timers.pop_due(at(99)), timers.next()), (None, None));
    }

    #[test]
    fn a_key_has_one_time_and_a_cancelled_one_none() {
        let mut timers = Timers::default();
        timers.set("a", at(10));
        timers.set("a", at(30));
        timers.set("b", at(20));
        timers.cancel(&"b");
        timers.cancel(&"never set");
        assert_eq!(timers.pop_due(at(29)), None);
        assert_eq!(timers.next(), Some(at(30)));
        assert_eq!(timers.pop_due(at(30)), Some("a"));
        assert!(timers.times.is_empty());
    }
}
