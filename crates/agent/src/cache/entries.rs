//! The registration entries that this node may use, found by the selectors of a workload.
//!
//! Each entry hangs on one of its own selectors (its anchor), the rarest one when it arrived, so that a lookup visits
//! only the entries whose anchor the workload has, and never scans the rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::clock::from_unix;
use spiffe::entry::Entry;
use spiffe::selector::{Selector, SelectorSet};

/// Entries by ID and by anchor selector.
#[derive(Debug, Default)]
pub(crate) struct EntryIndex {
    by_id: BTreeMap<Arc<str>, Anchored>,
    by_anchor: HashMap<Selector, Vec<Arc<str>>>,
}

#[derive(Debug)]
struct Anchored {
    entry: Arc<Entry>,
    anchor: Option<Selector>,
}

impl EntryIndex {
    /// Adds or replaces an entry and returns the one it replaced.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let old = self.remove(&entry.id);
        let anchor = entry
            .selectors
            .iter()
            .min_by_key(|selector| self.by_anchor.get(*selector).map_or(0, Vec::len))
            .cloned();
        if let Some(anchor) = &anchor {
            self.by_anchor
                .entry(anchor.clone())
                .or_default()
                .push(Arc::clone(&entry.id));
        }
        self.by_id
            .insert(Arc::clone(&entry.id), Anchored { entry, anchor });
        old
    }

    /// Removes an entry and returns it.
    pub(crate) fn remove(&mut self, id: &str) -> Option<Arc<Entry>> {
        let anchored = self.by_id.remove(id)?;
        if let Some(anchor) = &anchored.anchor
            && let Some(ids) = self.by_anchor.get_mut(anchor)
        {
            ids.retain(|other| &**other != id);
            if ids.is_empty() {
                self.by_anchor.remove(anchor);
            }
        }
        Some(anchored.entry)
    }

    /// The entries whose selectors the workload has all of, in the order of their IDs. An entry without selectors
    /// matches nobody; one meant for an SVID store is not for workloads.
    pub(crate) fn matching(&self, selectors: &SelectorSet) -> Vec<Arc<Entry>> {
        let mut found: Vec<Arc<Entry>> = selectors
            .iter()
            .filter_map(|selector| self.by_anchor.get(selector))
            .flatten()
            .filter_map(|id| self.get(id))
            .filter(|entry| matches(entry, selectors))
            .cloned()
            .collect();
        found.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// The entry with this ID.
    pub(crate) fn get(&self, id: &str) -> Option<&Arc<Entry>> {
        self.by_id.get(id).map(|anchored| &anchored.entry)
    }

    /// Every entry, in the order of the IDs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.values().map(|anchored| &anchored.entry)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The entry that lacks the fewest selectors to match, and how many it lacks: for the operator's log only, since it
    /// looks at every entry.
    pub(crate) fn nearest(&self, selectors: &SelectorSet) -> Option<(&Arc<Entry>, usize)> {
        self.iter()
            .map(|entry| {
                (
                    entry,
                    entry
                        .selectors
                        .iter()
                        .filter(|selector| !selectors.contains(selector))
                        .count(),
                )
            })
            .filter(|(entry, lacking)| *lacking < entry.selectors.len())
            .min_by_key(|(_, lacking)| *lacking)
    }
}

/// Whether the workload with these selectors is entitled to the entry.
pub(crate) fn matches(entry: &Entry, selectors: &SelectorSet) -> bool {
    !entry.store_svid && !entry.selectors.is_empty() && entry.selectors.is_subset_of(selectors)
}

/// When the entry expires, if it ever does.
pub(crate) fn expiry(entry: &Entry) -> Option<SystemTime> {
    (entry.expires_at != 0).then(|| from_unix(entry.expires_at))
}

/// Whether the entry has expired: at the second of its expiry it has.
pub(crate) fn has_expired(entry: &Entry, now: SystemTime) -> bool {
    expiry(entry).is_some_and(|expiry| expiry <= now)
}

/// Drops entries whose hint another entry has too: the older one stays, of equal ages the one with the lower ID.
/// SPIRE: hintsfilter. The order of what stays is kept.
pub(crate) fn without_repeated_hints(entries: Vec<Arc<Entry>>) -> Vec<Arc<Entry>> {
    let mut oldest: HashMap<&str, &Arc<Entry>> = HashMap::new();
    for entry in entries.iter().filter(|entry| !entry.hint.is_empty()) {
        oldest
            .entry(entry.hint.as_str())
            .and_modify(|kept| {
                if (entry.created_at, &entry.id) < (kept.created_at, &kept.id) {
                    *kept = entry;
                }
            })
            .or_insert(entry);
    }
    let keep: Vec<bool> = entries
        .iter()
        .map(|entry| {
            oldest
                .get(entry.hint.as_str())
                .is_none_or(|kept| kept.id == entry.id)
        })
        .collect();
    entries
        .into_iter()
        .zip(keep)
        .filter_map(|(entry, keep)| keep.then_some(entry))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, selectors};

    #[test]
    fn finds_only_entries_whose_selectors_are_all_present() {
        let mut index = EntryIndex::default();
        index.insert(entry("b", "/b", &["unix:uid:1", "unix:gid:2"]));
        index.insert(entry("a", "/a", &["unix:uid:1"]));
        index.insert(entry("c", "/c", &["unix:uid:9"]));
        let found: Vec<_> = index
            .matching(&selectors(&["unix:uid:1", "unix:gid:2", "unix:user:x"]))
            .iter()
            .map(|e| e.id.to_string())
            .collect();
        assert_eq!(found, ["a", "b"]);
        assert!(index.matching(&selectors(&["unix:gid:2"])).is_empty());
        assert!(index.matching(&selectors(&[])).is_empty());
    }

    #[test]
    fn removed_and_replaced_entries_are_not_found_by_their_old_selectors() {
        let mut index = EntryIndex::default();
        index.insert(entry("a", "/a", &["unix:uid:1"]));
        assert!(index.insert(entry("a", "/a", &["unix:uid:2"])).is_some());
        assert!(index.matching(&selectors(&["unix:uid:1"])).is_empty());
        assert_eq!(index.matching(&selectors(&["unix:uid:2"])).len(), 1);
        assert!(index.remove("a").is_some());
        assert!(index.remove("a").is_none());
        assert!(index.matching(&selectors(&["unix:uid:2"])).is_empty());
        assert_eq!(index.by_anchor.len(), 0);
    }

    #[test]
    fn entries_for_a_store_are_not_given_to_workloads() {
        let mut index = EntryIndex::default();
        let mut stored = Entry::clone(&entry("a", "/a", &["unix:uid:1"]));
        stored.store_svid = true;
        index.insert(Arc::new(stored));
        assert!(index.matching(&selectors(&["unix:uid:1"])).is_empty());
    }

    #[test]
    fn many_entries_that_share_a_selector_do_not_share_an_anchor() {
        let mut index = EntryIndex::default();
        for number in 0..200 {
            index.insert(entry(
                &format!("e{number}"),
                "/x",
                &["unix:gid:7", &format!("unix:uid:{number}")],
            ));
        }
        let longest = index.by_anchor.values().map(Vec::len).max();
        assert_eq!(longest, Some(1));
        assert_eq!(
            index
                .matching(&selectors(&["unix:gid:7", "unix:uid:5"]))
                .len(),
            1
        );
    }

    #[test]
    fn wa_14_of_equal_hints_the_oldest_entry_stays() {
        let with = |id: &str, hint: &str, created_at: i64| {
            let mut made = Entry::clone(&entry(id, "/x", &["unix:uid:1"]));
            made.hint = hint.into();
            made.created_at = created_at;
            Arc::new(made)
        };
        let kept = without_repeated_hints(vec![
            with("a", "int", 9),
            with("b", "", 9),
            with("c", "int", 3),
            with("d", "", 1),
            with("e", "ext", 1),
            with("f", "ext", 1),
        ]);
        let ids: Vec<_> = kept.iter().map(|e| &*e.id).collect();
        assert_eq!(ids, ["b", "c", "d", "e"]);
    }

    #[test]
    fn nearest_entry_is_the_one_that_lacks_least() {
        let mut index = EntryIndex::default();
        index.insert(entry(
            "a",
            "/a",
            &["unix:uid:1", "unix:gid:2", "unix:user:x"],
        ));
        index.insert(entry("b", "/b", &["unix:uid:1", "unix:gid:3"]));
        index.insert(entry("c", "/c", &["unix:uid:8"]));
        let set = selectors(&["unix:uid:1", "unix:user:y"]);
        assert_eq!(
            index
                .nearest(&set)
                .map(|(e, lacking)| (e.id.to_string(), lacking)),
            Some(("b".into(), 1))
        );
    }
}
