//! The IDs of entries that were deleted lately, so that an entry created under one of them again does not begin with a
//! revision number that an agent has already seen. Bounded: the oldest deletions are forgotten first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct DeletedEntries {
    /// The latest deletion of each ID.
    latest: HashMap<Arc<str>, u64>,
    /// All deletions, oldest first.
    order: VecDeque<(u64, Arc<str>)>,
    next: u64,
}

impl DeletedEntries {
    /// How many deletions are kept.
    pub(crate) const CAPACITY: usize = 65_536;

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.latest.contains_key(id)
    }

    pub(crate) fn insert(&mut self, id: Arc<str>) {
        self.latest.insert(Arc::clone(&id), self.next);
        self.order.push_back((self.next, id));
        self.next += 1;
        if self.order.len() > Self::CAPACITY
            && let Some((number, oldest)) = self.order.pop_front()
            && self.latest.get(&oldest) == Some(&number)
        {
            self.latest.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_deletion_is_forgotten_and_a_repeated_one_is_as_old_as_its_last() {
        let mut deleted = DeletedEntries::default();
        let id = |number: usize| Arc::from(format!("e{number}"));
        deleted.insert(id(0));
        deleted.insert(id(1));
        deleted.insert(id(0));
        for number in 2..DeletedEntries::CAPACITY {
            deleted.insert(id(number));
        }
        assert!(deleted.contains("e0"), "deleted twice");
        assert!(deleted.contains("e1"));
        deleted.insert(id(DeletedEntries::CAPACITY));
        assert!(!deleted.contains("e1"));
        assert!(deleted.contains("e0"));
        assert!(deleted.contains("e2"));
        assert_eq!(deleted.order.len(), DeletedEntries::CAPACITY);
    }
}
