//! Who is interested in what: the sets of selectors that somebody asked for, the streams of each, and how often each
//! entry is held by streams that need its X509-SVID.
//!
//! Sets are found by their selectors, so that a change of an entry costs the sets that it concerns and not all that
//! there are. A set that nobody listens to is kept for the next caller until it changes or the room is needed, unless no
//! entry matches it: callers without an identity leave nothing behind.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use spiffe::entry::Entry;
use spiffe::selector::{Selector, SelectorSet};
use tokio::sync::watch;

use super::entries;
use super::update::WorkloadUpdate;

/// How many sets there may be before those that nobody listens to are dropped.
pub(super) const IDLE_SETS: usize = 1024;

/// The name of a set of selectors within one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SetId(u64);

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// X509-SVIDs, which are issued and renewed for it.
    X509Svids,
    /// Entries and bundles only.
    Bundles,
}

#[derive(Debug)]
struct Set {
    selectors: SelectorSet,
    sender: watch::Sender<Arc<WorkloadUpdate>>,
    /// Streams of any purpose.
    streams: usize,
    /// Those of them that hold the set's X509-SVIDs.
    svid_streams: usize,
}

/// How many hold each entry's X509-SVID: it is renewed for them and never dropped to make room.
#[derive(Debug, Default)]
struct Holders(HashMap<Arc<str>, usize>);

impl Holders {
    fn add(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            *self.0.entry(Arc::clone(&entry.id)).or_default() += 1;
        }
    }

    fn remove(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            if let Some(count) = self.0.get_mut(&entry.id) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&entry.id);
                }
            }
        }
    }
}

/// All sets of selectors and the interest in them.
#[derive(Debug, Default)]
pub(super) struct Interest {
    sets: HashMap<SetId, Set>,
    ids: HashMap<SelectorSet, SetId>,
    by_selector: HashMap<Selector, BTreeSet<SetId>>,
    holders: Holders,
    last: u64,
}

impl Interest {
    /// Opens a stream of a set, whose state is made by `make` if it is not known yet. [`Self::close`] ends it.
    pub(super) fn open(
        &mut self,
        selectors: &SelectorSet,
        purpose: Purpose,
        make: impl FnOnce() -> WorkloadUpdate,
    ) -> (SetId, watch::Receiver<Arc<WorkloadUpdate>>) {
        let id = self.id_of(selectors);
        let set = Self::set(&mut self.sets, id, selectors, make);
        set.streams += 1;
        if purpose == Purpose::X509Svids {
            if set.svid_streams == 0 {
                self.holders.add(&set.sender.borrow().entries);
            }
            set.svid_streams += 1;
        }
        (id, set.sender.subscribe())
    }

    /// The state of a set, made by `make` if it is not known yet. One that no entry matches is not kept.
    pub(super) fn current(
        &mut self,
        selectors: &SelectorSet,
        make: impl FnOnce() -> WorkloadUpdate,
    ) -> Arc<WorkloadUpdate> {
        if let Some(known) = self.ids.get(selectors).and_then(|id| self.update(*id)) {
            return known;
        }
        let update = make();
        if !update.has_identity() {
            return Arc::new(update);
        }
        let id = self.id_of(selectors);
        let set = Self::set(&mut self.sets, id, selectors, || update);
        Arc::clone(&set.sender.borrow())
    }

    /// The name of a set. A new one is entered into the indexes; its state has to follow.
    fn id_of(&mut self, selectors: &SelectorSet) -> SetId {
        if let Some(id) = self.ids.get(selectors) {
            return *id;
        }
        if self.sets.len() >= IDLE_SETS {
            for id in self.idle() {
                self.forget(id);
            }
        }
        self.last += 1;
        let id = SetId(self.last);
        self.ids.insert(selectors.clone(), id);
        for selector in selectors.iter() {
            self.by_selector
                .entry(selector.clone())
                .or_default()
                .insert(id);
        }
        id
    }

    fn set<'a>(
        sets: &'a mut HashMap<SetId, Set>,
        id: SetId,
        selectors: &SelectorSet,
        make: impl FnOnce() -> WorkloadUpdate,
    ) -> &'a mut Set {
        sets.entry(id).or_insert_with(|| Set {
            selectors: selectors.clone(),
            sender: watch::Sender::new(Arc::new(make())),
            streams: 0,
            svid_streams: 0,
        })
    }

    /// Ends a stream that was opened for `purpose`. The last one of a set that no entry matches takes the set with it.
    pub(super) fn close(&mut self, id: SetId, purpose: Purpose) {
        let Some(set) = self.sets.get_mut(&id) else {
            return;
        };
        set.streams -= 1;
        if purpose == Purpose::X509Svids {
            set.svid_streams -= 1;
            if set.svid_streams == 0 {
                self.holders.remove(&set.sender.borrow().entries);
            }
        }
        if !set.sender.borrow().has_identity() {
            self.forget(id);
        }
    }

    /// The latest state of a set.
    pub(super) fn update(&self, id: SetId) -> Option<Arc<WorkloadUpdate>> {
        let set = self.sets.get(&id)?;
        Some(Arc::clone(&set.sender.borrow()))
    }

    /// The selectors of a set that has streams.
    pub(super) fn listened_to(&self, id: SetId) -> Option<SelectorSet> {
        let set = self.sets.get(&id)?;
        (set.streams > 0).then(|| set.selectors.clone())
    }

    /// Whether a stream of the set needs its X509-SVIDs.
    pub(super) fn needs_svids(&self, id: SetId) -> bool {
        self.sets.get(&id).is_some_and(|set| set.svid_streams > 0)
    }

    /// Replaces the state of a set; its streams wake if it says something else than before.
    pub(super) fn publish(&mut self, id: SetId, update: WorkloadUpdate) {
        let Some(set) = self.sets.get_mut(&id) else {
            return;
        };
        if set.svid_streams > 0 {
            // In this order, or an entry that stays would be released in between.
            self.holders.add(&update.entries);
            self.holders.remove(&set.sender.borrow().entries);
        }
        set.sender.send_if_modified(|known| {
            let differs = !known.says_the_same(&update);
            if differs {
                *known = Arc::new(update);
            }
            differs
        });
    }

    /// Wakes the streams of a set although its state is the same: what they wait for will not come soon.
    pub(super) fn nudge(&self, id: SetId) {
        if let Some(set) = self.sets.get(&id) {
            set.sender.send_modify(|_same| ());
        }
    }

    /// Drops a set that nobody listens to.
    pub(super) fn forget(&mut self, id: SetId) {
        if self.sets.get(&id).is_none_or(|set| set.streams > 0) {
            return;
        }
        let Some(set) = self.sets.remove(&id) else {
            return;
        };
        self.ids.remove(&set.selectors);
        for selector in set.selectors.iter() {
            if let Some(ids) = self.by_selector.get_mut(selector) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
        }
    }

    pub(super) fn all(&self) -> Vec<SetId> {
        self.sets.keys().copied().collect()
    }

    fn idle(&self) -> Vec<SetId> {
        let idle = self.sets.iter().filter(|(_, set)| set.streams == 0);
        idle.map(|(id, _)| *id).collect()
    }

    /// The sets that an entry matches, looked for among those that have its rarest selector.
    pub(super) fn matched_by<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = SetId> + 'a {
        let with_selector = |selector| self.by_selector.get(selector);
        let rarest = entry
            .selectors
            .iter()
            .map(with_selector)
            .min_by_key(|sets| sets.map_or(0, BTreeSet::len))
            .flatten();
        rarest.into_iter().flatten().copied().filter(|id| {
            self.sets
                .get(id)
                .is_some_and(|set| entries::matches(entry, &set.selectors))
        })
    }

    /// Whether a stream holds the entry's X509-SVID.
    pub(super) fn is_held(&self, entry_id: &str) -> bool {
        self.holders.0.contains_key(entry_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, selectors};

    fn update(entries: &[&Arc<Entry>]) -> WorkloadUpdate {
        let entries = entries.iter().map(|entry| Arc::clone(entry)).collect();
        WorkloadUpdate::new(entries, Vec::new(), None, Vec::new())
    }

    #[test]
    fn an_entry_is_held_as_long_as_one_stream_needs_its_svid() {
        let mut interest = Interest::default();
        let (a, b) = (entry("a", "/a", &["u:1"]), entry("b", "/b", &["u:1"]));
        let mut open = |texts: &[&str], entries: &[&Arc<Entry>]| {
            interest
                .open(&selectors(texts), Purpose::X509Svids, || update(entries))
                .0
        };
        let one = open(&["u:1"], &[&a]);
        let other = open(&["u:1", "g:1"], &[&a, &b]);
        assert_eq!(other, open(&["u:1", "g:1"], &[]));
        interest.close(one, Purpose::X509Svids);
        interest.close(other, Purpose::X509Svids);
        assert!(interest.is_held("a") && interest.is_held("b"));
        interest.close(other, Purpose::X509Svids);
        assert!(!interest.is_held("a") && !interest.is_held("b"));
        assert!(interest.holders.0.is_empty());
    }

    #[test]
    fn a_stream_of_bundles_holds_no_svid() {
        let mut interest = Interest::default();
        let a = entry("a", "/a", &["u:1"]);
        let (set, _) = interest.open(&selectors(&["u:1"]), Purpose::Bundles, || update(&[&a]));
        assert!(!interest.is_held("a") && !interest.needs_svids(set));
        assert!(interest.listened_to(set).is_some());
    }

    #[test]
    fn a_published_state_moves_the_hold_to_its_entries() {
        let mut interest = Interest::default();
        let (a, b, c) = (
            entry("a", "/a", &["u:1"]),
            entry("b", "/b", &["u:1"]),
            entry("c", "/c", &["u:1"]),
        );
        let (set, stream) = interest.open(&selectors(&["u:1"]), Purpose::X509Svids, || {
            update(&[&a, &b])
        });
        interest.publish(set, update(&[&b, &c]));
        let held = ["a", "b", "c"].map(|id| interest.is_held(id));
        assert_eq!(held, [false, true, true]);
        assert!(stream.has_changed().unwrap());
        interest.close(set, Purpose::X509Svids);
        assert!(interest.holders.0.is_empty());
    }

    #[test]
    fn a_set_is_found_by_the_entries_that_match_it_only() {
        let mut interest = Interest::default();
        let mut open = |texts: &[&str]| {
            interest
                .open(&selectors(texts), Purpose::Bundles, || update(&[]))
                .0
        };
        let one = open(&["u:1", "g:1"]);
        open(&["u:2", "g:1"]);
        let matched = |texts: &[&str]| {
            let entry = entry("e", "/e", texts);
            interest.matched_by(&entry).collect::<Vec<_>>()
        };
        assert_eq!(matched(&["g:1", "u:1"]), [one]);
        assert_eq!(matched(&["g:1"]).len(), 2);
        assert!(matched(&["g:1", "u:1", "x:1"]).is_empty());
        assert!(matched(&[]).is_empty());
    }

    #[test]
    fn a_set_with_a_stream_is_never_forgotten_and_another_leaves_nothing() {
        let mut interest = Interest::default();
        let a = entry("a", "/a", &["u:1"]);
        let (set, _) = interest.open(&selectors(&["u:1"]), Purpose::Bundles, || update(&[&a]));
        interest.forget(set);
        assert!(interest.update(set).is_some());
        interest.close(set, Purpose::Bundles);
        assert!(interest.update(set).is_some());
        interest.forget(set);
        assert_nothing_is_kept(&interest);
    }

    fn assert_nothing_is_kept(interest: &Interest) {
        assert!(interest.sets.is_empty() && interest.ids.is_empty());
        assert!(interest.by_selector.is_empty() && interest.holders.0.is_empty());
    }

    #[test]
    fn a_set_that_no_entry_matches_is_kept_as_long_as_it_has_a_stream_and_no_longer() {
        let mut interest = Interest::default();
        let mut open = || {
            interest
                .open(&selectors(&["u:1"]), Purpose::X509Svids, || update(&[]))
                .0
        };
        let (set, same) = (open(), open());
        assert_eq!(set, same);
        interest.close(set, Purpose::X509Svids);
        assert!(interest.listened_to(set).is_some());
        interest.close(set, Purpose::X509Svids);
        assert_nothing_is_kept(&interest);
    }

    #[test]
    fn a_set_that_lost_its_last_entry_leaves_with_its_last_stream() {
        let mut interest = Interest::default();
        let a = entry("a", "/a", &["u:1"]);
        let (set, _) = interest.open(&selectors(&["u:1"]), Purpose::X509Svids, || update(&[&a]));
        interest.publish(set, update(&[]));
        interest.close(set, Purpose::X509Svids);
        assert_nothing_is_kept(&interest);
    }

    #[test]
    fn a_question_without_a_stream_keeps_only_what_an_entry_matches() {
        let mut interest = Interest::default();
        let (set, a) = (selectors(&["u:1"]), entry("a", "/a", &["u:1"]));
        assert!(!interest.current(&set, || update(&[])).has_identity());
        assert_nothing_is_kept(&interest);
        // So an entry that comes is seen by the next question.
        assert!(interest.current(&set, || update(&[&a])).has_identity());
        assert_eq!(interest.sets.len(), 1);
        assert!(interest.current(&set, || update(&[])).has_identity());
    }
}
