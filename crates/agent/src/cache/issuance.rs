//! Which entries' X509-SVIDs are wanted, asked for, or to be asked for again later.
//!
//! Each entry is in one stage at most. What brings it there, and when a pause is over, is decided by the caller.
//! ```text
//!            want                 take                 arrived
//!  (none) ──────────► Wanted ──────────────► InFlight ─────────► (none)
//!                        ▲                      │
//!                        │        retry         ▼ postpone
//!                        └────────────────── Postponed
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::entry::Entry;

/// Why an entry has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Postponement {
    /// The server could not be asked. It may answer at any time.
    NoAnswer,
    /// The server refused this entry, or what it issued cannot be used: asking again soon brings the same.
    Refused,
}

#[derive(Debug)]
enum Stage {
    Wanted,
    /// The entry as it was when the server was asked.
    InFlight(Arc<Entry>),
    Postponed(Postponement, SystemTime),
}

#[derive(Debug)]
struct Pending {
    stage: Stage,
    /// How often in a row the server's answer for this entry was of no use.
    failures: u32,
}

/// The stage of every entry that is not at rest.
#[derive(Debug, Default)]
pub(super) struct Issuance {
    pending: HashMap<Arc<str>, Pending>,
    /// First come, first served. An ID that is not `Wanted` any more is skipped.
    queue: VecDeque<Arc<str>>,
}

impl Issuance {
    /// Wants an SVID; false when that is known already, or has to wait.
    pub(super) fn want(&mut self, id: &Arc<str>) -> bool {
        if self.pending.contains_key(id) {
            return false;
        }
        let pending = Pending {
            stage: Stage::Wanted,
            failures: 0,
        };
        self.pending.insert(Arc::clone(id), pending);
        self.queue.push_back(Arc::clone(id));
        true
    }

    /// Takes up to `limit` of what is wanted. An ID without an entry is forgotten.
    pub(super) fn take(
        &mut self,
        limit: usize,
        entry: impl Fn(&str) -> Option<Arc<Entry>>,
    ) -> Vec<Arc<Entry>> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(id) = self.queue.pop_front() else {
                break;
            };
            let Some(pending) = self.pending.get_mut(&id) else {
                continue;
            };
            if !matches!(pending.stage, Stage::Wanted) {
                continue;
            }
            if let Some(entry) = entry(&id) {
                pending.stage = Stage::InFlight(Arc::clone(&entry));
                taken.push(entry);
            } else {
                self.pending.remove(&id);
            }
        }
        taken
    }

    /// Ends the flight of an entry: the entry as it was asked for and how often it failed before. Nothing when it was
    /// not in flight, so that an answer for an entry that was removed meanwhile is recognized.
    pub(super) fn arrived(&mut self, id: &str) -> Option<(Arc<Entry>, u32)> {
        let pending = self.pending.get(id)?;
        let Stage::InFlight(asked) = &pending.stage else {
            return None;
        };
        let arrived = (Arc::clone(asked), pending.failures);
        self.pending.remove(id);
        Some(arrived)
    }

    /// Makes an entry wait until `retry_at`.
    pub(super) fn postpone(
        &mut self,
        id: &Arc<str>,
        why: Postponement,
        failures: u32,
        retry_at: SystemTime,
    ) {
        let stage = Stage::Postponed(why, retry_at);
        self.pending
            .insert(Arc::clone(id), Pending { stage, failures });
    }

    /// Wants a postponed entry now; false when it is not postponed.
    pub(super) fn retry(&mut self, id: &Arc<str>) -> bool {
        match self.pending.get_mut(id) {
            Some(pending) if matches!(pending.stage, Stage::Postponed(..)) => {
                pending.stage = Stage::Wanted;
                self.queue.push_back(Arc::clone(id));
                true
            }
            _ => false,
        }
    }

    /// Ends the pause of an entry together with its failures, so that it may be wanted at once; false when it is not
    /// postponed.
    pub(super) fn end_pause(&mut self, id: &str) -> bool {
        let postponed = matches!(
            self.pending.get(id).map(|pending| &pending.stage),
            Some(Stage::Postponed(..))
        );
        if postponed {
            self.pending.remove(id);
        }
        postponed
    }

    /// Forgets an entry: an answer that still comes is dropped.
    pub(super) fn forget(&mut self, id: &str) {
        self.pending.remove(id);
    }

    /// The postponed entries, with the reason.
    pub(super) fn postponed(&self) -> impl Iterator<Item = (&Arc<str>, Postponement)> {
        self.pending
            .iter()
            .filter_map(|(id, pending)| match pending.stage {
                Stage::Postponed(why, _) => Some((id, why)),
                Stage::Wanted | Stage::InFlight(_) => None,
            })
    }

    /// Whether the server is being asked for this entry, or is next.
    pub(super) fn is_under_way(&self, id: &str) -> bool {
        matches!(
            self.pending.get(id).map(|pending| &pending.stage),
            Some(Stage::Wanted | Stage::InFlight(_))
        )
    }

    /// Whether an SVID may come until `horizon`.
    pub(super) fn may_come(&self, id: &str, horizon: SystemTime) -> bool {
        match self.pending.get(id).map(|pending| &pending.stage) {
            Some(Stage::Wanted | Stage::InFlight(_)) => true,
            Some(Stage::Postponed(Postponement::NoAnswer, retry_at)) => *retry_at <= horizon,
            Some(Stage::Postponed(Postponement::Refused, _)) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, entry};

    fn ids(taken: &[Arc<Entry>]) -> Vec<String> {
        taken.iter().map(|entry| entry.id.to_string()).collect()
    }

    fn known(id: &str) -> Option<Arc<Entry>> {
        Some(entry(id, "/x", &[]))
    }

    fn id(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn who_is_wanted_first_is_taken_first_and_once() {
        let mut issuance = Issuance::default();
        assert!(issuance.want(&id("b")) && issuance.want(&id("a")));
        assert!(!issuance.want(&id("b")));
        assert_eq!(ids(&issuance.take(1, known)), ["b"]);
        assert!(!issuance.want(&id("b")), "it is in flight");
        assert_eq!(ids(&issuance.take(9, known)), ["a"]);
        assert!(issuance.take(9, known).is_empty());
    }

    #[test]
    fn what_arrives_without_being_in_flight_is_recognized() {
        let mut issuance = Issuance::default();
        assert!(issuance.arrived("a").is_none());
        issuance.want(&id("a"));
        assert!(issuance.arrived("a").is_none(), "nobody was asked yet");
        issuance.take(1, known);
        issuance.forget("a");
        assert!(issuance.arrived("a").is_none());
        issuance.want(&id("a"));
        issuance.take(1, known);
        assert_eq!(issuance.arrived("a").unwrap().1, 0);
        assert!(issuance.want(&id("a")));
    }

    #[test]
    fn a_forgotten_entry_that_is_wanted_again_is_taken_once() {
        let mut issuance = Issuance::default();
        issuance.want(&id("a"));
        issuance.forget("a");
        issuance.want(&id("a"));
        assert_eq!(ids(&issuance.take(9, known)), ["a"]);
    }

    #[test]
    fn an_id_whose_entry_is_gone_is_not_taken_and_not_remembered() {
        let mut issuance = Issuance::default();
        issuance.want(&id("a"));
        assert!(issuance.take(9, |_| None).is_empty());
        assert!(issuance.pending.is_empty() && issuance.queue.is_empty());
    }

    #[test]
    fn a_postponed_entry_is_not_wanted_before_it_is_retried_and_keeps_its_failures() {
        let mut issuance = Issuance::default();
        issuance.postpone(&id("a"), Postponement::Refused, 3, at(10));
        assert!(!issuance.want(&id("a")));
        assert!(issuance.take(9, known).is_empty());
        assert!(issuance.retry(&id("a")));
        assert!(!issuance.retry(&id("a")));
        issuance.take(9, known);
        assert_eq!(issuance.arrived("a").unwrap().1, 3);
    }

    #[test]
    fn only_what_was_not_refused_may_come_and_only_in_time() {
        let mut issuance = Issuance::default();
        assert!(!issuance.may_come("a", at(99)));
        issuance.want(&id("a"));
        assert!(issuance.may_come("a", at(0)) && issuance.is_under_way("a"));
        issuance.postpone(&id("a"), Postponement::NoAnswer, 0, at(10));
        assert!(issuance.may_come("a", at(10)) && !issuance.may_come("a", at(9)));
        assert!(!issuance.is_under_way("a"));
        issuance.postpone(&id("a"), Postponement::Refused, 1, at(10));
        assert!(!issuance.may_come("a", at(99)));
    }
}
