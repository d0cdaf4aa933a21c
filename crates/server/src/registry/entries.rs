//! The registration entries in memory: one arena, and indexes of 4-byte slot numbers over it.
//!
//! Built for a million entries, so a hash index stores no key of its own: it stores slot numbers, hashes what the caller looks
//! for, and compares with the entry in the slot. Therefore a slot has to leave every index before its entry is taken out or
//! replaced: afterwards the index could no longer tell where it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::Selector;

use super::group::Group;
use super::listing::EntryFilter;

#[derive(Debug)]
pub(crate) struct Slot {
    /// Ascends with creation: the order of listings. Another only when the entry was deleted and created again.
    pub(crate) row: i64,
    pub(crate) entry: Arc<Entry>,
}

pub(super) type Slots = Vec<Option<Slot>>;

pub(super) fn at(slots: &Slots, slot: u32) -> Option<&Slot> {
    slots.get(slot as usize)?.as_ref()
}

#[derive(Debug)]
pub(crate) struct EntryTable {
    pub(super) slots: Slots,
    free: Vec<u32>,
    pub(super) by_row: BTreeMap<i64, u32>,
    by_id: HashTable<u32>,
    /// By parent, SPIFFE ID and selectors together.
    by_similarity: HashTable<u32>,
    by_parent: HashTable<Group>,
    by_spiffe_id: HashTable<Group>,
    /// Node aliases (entries whose parent is the server), each under one of its selectors.
    pub(super) aliases: HashMap<Selector, Vec<u32>>,
    /// Those that expire, by their expiry.
    by_expiry: BTreeSet<(i64, u32)>,
    pub(super) server_id: SpiffeId,
    hasher: RandomState,
}

impl EntryTable {
    pub(crate) fn new(server_id: SpiffeId) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_row: BTreeMap::new(),
            by_id: HashTable::new(),
            by_similarity: HashTable::new(),
            by_parent: HashTable::new(),
            by_spiffe_id: HashTable::new(),
            aliases: HashMap::new(),
            by_expiry: BTreeSet::new(),
            server_id,
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_row.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_row
            .values()
            .filter_map(|&slot| at(&self.slots, slot))
            .map(|slot| &slot.entry)
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Slot> {
        let hash = self.hasher.hash_one(id);
        let slot = self.by_id.find(hash, |&slot| {
            at(&self.slots, slot).is_some_and(|s| *s.entry.id == *id)
        })?;
        at(&self.slots, *slot)
    }

    /// An entry of the same parent, SPIFFE ID and selectors.
    pub(crate) fn similar(&self, entry: &Entry) -> Option<&Arc<Entry>> {
        let hash = self.similarity(entry);
        let slot = self.by_similarity.find(hash, |&slot| {
            at(&self.slots, slot).is_some_and(|s| s.entry.is_similar_to(entry))
        })?;
        at(&self.slots, *slot).map(|slot| &slot.entry)
    }

    pub(super) fn children(&self, parent: &SpiffeId) -> Option<&Group> {
        let hash = self.hasher.hash_one(parent.as_str());
        self.by_parent.find(hash, |group| {
            at(&self.slots, group.first()).is_some_and(|s| s.entry.parent_id == *parent)
        })
    }

    pub(super) fn named(&self, id: &SpiffeId) -> Option<&Group> {
        let hash = self.hasher.hash_one(id.as_str());
        self.by_spiffe_id.find(hash, |group| {
            at(&self.slots, group.first()).is_some_and(|s| s.entry.spiffe_id == *id)
        })
    }

    /// The entries that give this SPIFFE ID.
    pub(crate) fn with_spiffe_id(&self, id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.members(self.named(id))
    }

    /// The entries whose expiry lies after `after` and not after `until`, in its order.
    pub(crate) fn expiring(&self, after: i64, until: i64) -> impl Iterator<Item = &Arc<Entry>> {
        let from = (after.saturating_add(1), 0);
        let range = (from.0 <= until).then(|| self.by_expiry.range(from..=(until, u32::MAX)));
        range
            .into_iter()
            .flatten()
            .filter_map(|&(_, slot)| at(&self.slots, slot))
            .map(|slot| &slot.entry)
    }

    /// The first expiry after `after`.
    pub(crate) fn next_expiry(&self, after: i64) -> Option<i64> {
        let next = self.by_expiry.range((after.saturating_add(1), 0)..).next();
        next.map(|&(expiry, _)| expiry)
    }

    pub(crate) fn with_parent(&self, parent: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.members(self.children(parent))
    }

    /// The same ID as another entry's parent has it, to share its memory.
    pub(crate) fn known_parent(&self, parent: &SpiffeId) -> Option<SpiffeId> {
        at(&self.slots, self.children(parent)?.first()).map(|slot| slot.entry.parent_id.clone())
    }

    pub(super) fn members<'a>(
        &'a self,
        group: Option<&'a Group>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let slots = group.map(Group::as_slice).unwrap_or_default();
        slots
            .iter()
            .filter_map(|&slot| at(&self.slots, slot))
            .map(|slot| &slot.entry)
    }

    /// Inserts or replaces, in the given row. A replaced entry is returned. An update is a removal and an insertion: any of the
    /// indexed fields may have changed.
    pub(crate) fn put(&mut self, row: i64, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let old = self.remove(&entry.id);
        let slot = self.occupy(Slot { row, entry });
        self.index(slot);
        old.map(|slot| slot.entry)
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<Slot> {
        let hash = self.hasher.hash_one(id);
        let found = self
            .by_id
            .find_entry(hash, |&slot| {
                at(&self.slots, slot).is_some_and(|s| *s.entry.id == *id)
            })
            .ok()?;
        let slot = found.remove().0;
        self.unindex(slot);
        self.free.push(slot);
        self.slots.get_mut(slot as usize)?.take()
    }

    /// Scans at most `budget` entries after row `after`, in order. Returns where to continue, or `None` at the end.
    ///
    /// The budget bounds how long the registry's lock is held, not the size of the page: a filter that matches nothing must not
    /// keep a million entries' worth of other calls waiting. A filter by SPIFFE ID or parent reads its group, which is in row
    /// order like the whole table, so that page tokens mean the same in both.
    pub(crate) fn scan(
        &self,
        filter: &EntryFilter,
        after: i64,
        budget: usize,
        visit: &mut impl FnMut(i64, &Arc<Entry>) -> bool,
    ) -> Option<i64> {
        let group = match (&filter.by_spiffe_id, &filter.by_parent_id) {
            (Some(id), _) => Some(self.named(id)),
            (None, Some(parent)) => Some(self.children(parent)),
            (None, None) => None,
        };
        let mut last = after;
        let mut scanned = 0;
        let mut look = |slot: &Slot| {
            last = slot.row;
            scanned += 1;
            let wants_more = !filter.matches(&slot.entry) || visit(slot.row, &slot.entry);
            if wants_more {
                (scanned < budget).then_some(()).ok_or(Some(slot.row))
            } else {
                Err(None)
            }
        };
        let outcome = match group {
            Some(group) => {
                let slots = group.map(Group::as_slice).unwrap_or_default();
                let start = slots
                    .partition_point(|&slot| at(&self.slots, slot).is_some_and(|s| s.row <= after));
                slots
                    .iter()
                    .skip(start)
                    .filter_map(|&slot| at(&self.slots, slot))
                    .try_for_each(&mut look)
            }
            None => {
                let rows = self.by_row.range(after.saturating_add(1)..);
                rows.filter_map(|(_, &slot)| at(&self.slots, slot))
                    .try_for_each(&mut look)
            }
        };
        outcome.err().flatten()
    }

    pub(crate) fn reserve(&mut self, additional: usize) {
        self.slots.reserve(additional);
        // Entries may share SPIFFE IDs: room for half of them grows once at most.
        let half = additional / 2;
        let Self {
            slots,
            hasher,
            by_id,
            by_similarity,
            by_spiffe_id,
            ..
        } = self;
        by_id.reserve(additional, |&slot| {
            at(slots, slot).map_or(0, |s| hasher.hash_one(&*s.entry.id))
        });
        by_similarity.reserve(additional, |&slot| {
            at(slots, slot).map_or(0, |s| similarity(hasher, &s.entry))
        });
        by_spiffe_id.reserve(half, |group| {
            at(slots, group.first()).map_or(0, |s| hasher.hash_one(s.entry.spiffe_id.as_str()))
        });
    }

    fn similarity(&self, entry: &Entry) -> u64 {
        similarity(&self.hasher, entry)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "memory ends long before four billion entries"
    )]
    fn occupy(&mut self, content: Slot) -> u32 {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.slots.get_mut(slot as usize)
        {
            *place = Some(content);
            return slot;
        }
        self.slots.push(Some(content));
        (self.slots.len() - 1) as u32
    }

    fn index(&mut self, slot: u32) {
        let Self {
            slots,
            hasher,
            by_row,
            by_id,
            by_similarity,
            by_parent,
            by_spiffe_id,
            aliases,
            by_expiry,
            ..
        } = self;
        let Some(Slot { row, entry }) = at(slots, slot) else {
            return;
        };
        by_row.insert(*row, slot);
        if entry.expires_at != 0 {
            by_expiry.insert((entry.expires_at, slot));
        }
        by_id.insert_unique(hasher.hash_one(&*entry.id), slot, |&slot| {
            at(slots, slot).map_or(0, |s| hasher.hash_one(&*s.entry.id))
        });
        by_similarity.insert_unique(similarity(hasher, entry), slot, |&slot| {
            at(slots, slot).map_or(0, |s| similarity(hasher, &s.entry))
        });
        let row_of = |slot: u32| at(slots, slot).map_or(i64::MIN, |s| s.row);
        by_parent
            .entry(
                hasher.hash_one(entry.parent_id.as_str()),
                |group| {
                    at(slots, group.first()).is_some_and(|s| s.entry.parent_id == entry.parent_id)
                },
                |group| {
                    at(slots, group.first())
                        .map_or(0, |s| hasher.hash_one(s.entry.parent_id.as_str()))
                },
            )
            .and_modify(|group| group.insert(slot, row_of))
            .or_insert(Group::One(slot));
        by_spiffe_id
            .entry(
                hasher.hash_one(entry.spiffe_id.as_str()),
                |group| {
                    at(slots, group.first()).is_some_and(|s| s.entry.spiffe_id == entry.spiffe_id)
                },
                |group| {
                    at(slots, group.first())
                        .map_or(0, |s| hasher.hash_one(s.entry.spiffe_id.as_str()))
                },
            )
            .and_modify(|group| group.insert(slot, row_of))
            .or_insert(Group::One(slot));
        if entry.parent_id == self.server_id {
            // Under the rarest of its selectors, since an agent must have them all.
            let rarest = entry
                .selectors
                .iter()
                .min_by_key(|&selector| aliases.get(selector).map_or(0, Vec::len));
            if let Some(selector) = rarest {
                aliases.entry(selector.clone()).or_default().push(slot);
            }
        }
    }

    /// Takes the slot out of every index but `by_id`, in which the caller has found it.
    fn unindex(&mut self, slot: u32) {
        let Self {
            slots,
            hasher,
            by_row,
            by_similarity,
            by_parent,
            by_spiffe_id,
            aliases,
            by_expiry,
            ..
        } = self;
        let Some(Slot { row, entry }) = at(slots, slot) else {
            return;
        };
        by_row.remove(row);
        by_expiry.remove(&(entry.expires_at, slot));
        if let Ok(found) =
            by_similarity.find_entry(similarity(hasher, entry), |&other| other == slot)
        {
            found.remove();
        }
        let row_of = |slot: u32| at(slots, slot).map_or(i64::MIN, |s| s.row);
        if let Ok(mut found) = by_parent
            .find_entry(hasher.hash_one(entry.parent_id.as_str()), |group| {
                at(slots, group.first()).is_some_and(|s| s.entry.parent_id == entry.parent_id)
            })
            && !found.get_mut().remove(slot, row_of)
        {
            found.remove();
        }
        if let Ok(mut found) = by_spiffe_id
            .find_entry(hasher.hash_one(entry.spiffe_id.as_str()), |group| {
                at(slots, group.first()).is_some_and(|s| s.entry.spiffe_id == entry.spiffe_id)
            })
            && !found.get_mut().remove(slot, row_of)
        {
            found.remove();
        }
        if entry.parent_id == self.server_id {
            // Which selector was the rarest at its insertion is not known any more.
            for selector in entry.selectors.iter() {
                let Some(list) = aliases.get_mut(selector) else {
                    continue;
                };
                list.retain(|&other| other != slot);
                if list.is_empty() {
                    aliases.remove(selector);
                }
            }
        }
    }
}

fn similarity(hasher: &RandomState, entry: &Entry) -> u64 {
    hasher.hash_one((
        entry.parent_id.as_str(),
        entry.spiffe_id.as_str(),
        SelectorHash(entry),
    ))
}

/// Hashes the selectors alone.
struct SelectorHash<'a>(&'a Entry);

impl std::hash::Hash for SelectorHash<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        for selector in self.0.selectors.iter() {
            selector.hash(state);
        }
    }
}
