//! A place in the store's history.

/// A revision and the random token that the store gave it. Two cursors of one number and different tokens belong to
/// different histories: one of them was lost in a fail-over, or undone by a restored backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    revision: u64,
    token: i64,
}

impl Cursor {
    pub(crate) fn new(revision: u64, token: i64) -> Self {
        Self { revision, token }
    }

    pub fn revision(self) -> u64 {
        self.revision
    }

    pub(crate) fn token(self) -> i64 {
        self.token
    }

    /// The token as agents carry it: `epoch` of the watch protocol.
    pub(crate) fn epoch(self) -> String {
        format!("{:016x}", self.token)
    }

    /// What an agent shows to go on where it was; `None` when it has no cursor of ours.
    pub(crate) fn from_wire(revision: u64, epoch: &str) -> Option<Self> {
        let token = u64::from_str_radix(epoch, 16).ok()?;
        (revision != 0).then(|| Self::new(revision, token.cast_signed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_from_the_wire_as_it_went() {
        for token in [0, 1, -1, i64::MIN, i64::MAX] {
            let cursor = Cursor::new(7, token);
            assert_eq!(Cursor::from_wire(7, &cursor.epoch()), Some(cursor));
        }
    }

    #[test]
    fn is_none_of_ours_when_it_cannot_be_read() {
        for (revision, epoch) in [(0, "0000000000000001"), (7, ""), (7, "other"), (7, "-1")] {
            assert_eq!(Cursor::from_wire(revision, epoch), None, "{epoch:?}");
        }
    }
}
