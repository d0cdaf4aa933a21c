//! Which entries an agent may have: the descendants of its own ID and of each alias whose selectors the node has
//! (SPIRE: "authorized entries"). An expired entry authorizes nothing, itself or through its children.
//!
//! The whole list is built downwards from the agent. The question about one entry, which every signature asks, is answered
//! upwards from that entry: its ancestors are few, while an agent may have thousands of descendants.

use std::collections::HashSet;
use std::sync::Arc;

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;

use super::entries::{EntryTable, at};
use super::group::Group;

/// Steps upwards before the whole authorized set is built instead: a SPIFFE ID may be given by any number of entries.
const CLIMB_LIMIT: usize = 256;

/// An agent as this question sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) id: &'a SpiffeId,
    pub(crate) selectors: &'a SelectorSet,
    /// Unix seconds.
    pub(crate) now: i64,
}

impl EntryTable {
    pub(crate) fn authorized(&self, node: Node<'_>) -> Vec<Arc<Entry>> {
        let mut found = Vec::new();
        self.descend(node, |entry| found.push(Arc::clone(entry)));
        found
    }

    /// Whether the agent may have `entry`, which need not be the registered form of itself.
    pub(crate) fn authorizes(&self, node: Node<'_>, entry: &Entry) -> bool {
        if entry.is_expired(node.now) {
            return false;
        }
        self.climb(node, &entry.parent_id).unwrap_or_else(|| {
            let mut reached = entry.parent_id == *node.id
                || self.alias_ids(node).any(|id| *id == entry.parent_id);
            self.descend(node, |ancestor| {
                reached |= ancestor.spiffe_id == entry.parent_id;
            });
            reached
        })
    }

    fn descend<'a>(&'a self, node: Node<'_>, mut visit: impl FnMut(&'a Arc<Entry>)) {
        // A group is the children of one parent: its address stands for the parent's ID and costs no hashing of text. Each is
        // visited once, so that cycles of parents end and an entry below two aliases is listed once.
        let mut seen: HashSet<*const Group> = HashSet::new();
        let mut stack: Vec<&Group> = self.children(node.id).into_iter().collect();
        stack.extend(self.alias_ids(node).filter_map(|id| self.children(id)));
        while let Some(group) = stack.pop() {
            if !seen.insert(std::ptr::from_ref(group)) {
                continue;
            }
            for entry in self
                .members(Some(group))
                .filter(|entry| !entry.is_expired(node.now))
            {
                visit(entry);
                stack.extend(self.children(&entry.spiffe_id));
            }
        }
    }

    /// Walks up from `parent` to the agent or one of its aliases. `None` when the walk exceeds [`CLIMB_LIMIT`].
    fn climb(&self, node: Node<'_>, parent: &SpiffeId) -> Option<bool> {
        let mut seen: Vec<&SpiffeId> = Vec::new();
        let mut stack = vec![parent];
        let mut steps = 0;
        while let Some(id) = stack.pop() {
            if id == node.id {
                return Some(true);
            }
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            for entry in self
                .members(self.named(id))
                .filter(|entry| !entry.is_expired(node.now))
            {
                steps += 1;
                if steps > CLIMB_LIMIT {
                    return None;
                }
                if entry.parent_id != self.server_id {
                    stack.push(&entry.parent_id);
                } else if !entry.selectors.is_empty()
                    && entry.selectors.is_subset_of(node.selectors)
                {
                    return Some(true);
                }
            }
        }
        Some(false)
    }

    /// The SPIFFE IDs of the node aliases whose selectors the agent has.
    fn alias_ids<'a>(&'a self, node: Node<'a>) -> impl Iterator<Item = &'a SpiffeId> {
        node.selectors
            .iter()
            .filter_map(|selector| self.aliases.get(selector))
            .flatten()
            .filter_map(|&slot| at(&self.slots, slot))
            .map(|slot| &slot.entry)
            .filter(move |alias| {
                !alias.is_expired(node.now) && alias.selectors.is_subset_of(node.selectors)
            })
            .map(|alias| &alias.spiffe_id)
    }
}
