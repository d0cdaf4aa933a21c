//! The slots of entries that share something (a parent, a SPIFFE ID), in the order of their rows. Never empty.

/// Most groups of a large registry hold one entry, so one costs no allocation.
#[derive(Debug)]
pub(super) enum Group {
    One(u32),
    Many(Vec<u32>),
}

impl Group {
    pub(super) fn first(&self) -> u32 {
        self.as_slice().first().copied().unwrap_or(u32::MAX)
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }

    pub(super) fn insert(&mut self, slot: u32, row_of: impl Fn(u32) -> i64) {
        let row = row_of(slot);
        match self {
            Self::One(other) => {
                let other = *other;
                *self = Self::Many(if row_of(other) <= row {
                    vec![other, slot]
                } else {
                    vec![slot, other]
                });
            }
            Self::Many(slots) => {
                // A new entry has the highest row: the search is for updates that move an old one here.
                let newest = slots.last().is_none_or(|&last| row_of(last) <= row);
                let place = if newest {
                    slots.len()
                } else {
                    slots.partition_point(|&other| row_of(other) <= row)
                };
                slots.insert(place, slot);
            }
        }
    }

    /// Removes a slot that still has its row. False when nothing is left and the group must go.
    pub(super) fn remove(&mut self, slot: u32, row_of: impl Fn(u32) -> i64) -> bool {
        let Self::Many(slots) = self else {
            return !matches!(self, Self::One(only) if *only == slot);
        };
        let row = row_of(slot);
        let start = slots.partition_point(|&other| row_of(other) < row);
        if let Some(offset) = slots.iter().skip(start).position(|&other| other == slot) {
            slots.remove(start + offset);
        }
        if let [only] = slots[..] {
            *self = Self::One(only);
        }
        true
    }
}
