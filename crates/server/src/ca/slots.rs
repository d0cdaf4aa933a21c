//! The two key slots of one kind of authority, as a state machine.
//!
//! Every change is one synchronous transition, so that a lock is held for that long only. What takes its time, such as
//! making a key or asking an upstream authority, happens between two transitions, and the state in between has a name:
//! while it lasts nothing else may begin.
//!
//! ```text
//! next:  Empty ──begin──► Preparing ──finish──► Prepared ──activate──► Recording ──recorded──► Old
//!          ▲               │   ▲  ▲                │                                            │
//!          └────abandon────┘   │  └─────begin──────┘                                            │
//!                              └─────────────────────────────begin──────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::SystemTime;

use spiffe::clock::from_unix;
use spiffe::rotation::{activate_at, prepare_at};

use super::BACKDATE;
use super::journal::{Record, SlotName, Status};

/// How an authority presents itself to an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityState {
    pub authority_id: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// Lower-case hex; empty when self-signed.
    pub upstream_authority_id: String,
}

impl AuthorityState {
    /// Whether there is an authority in this state, and it is the one named.
    pub(super) fn is(state: &Option<Self>, authority_id: &str) -> bool {
        state
            .as_ref()
            .is_some_and(|state| state.authority_id == authority_id)
    }
}

/// The authorities of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityStates {
    pub active: Option<AuthorityState>,
    pub prepared: Option<AuthorityState>,
    pub old: Option<AuthorityState>,
}

/// An authority and what signs with it.
pub(super) struct Slot<I> {
    pub(super) record: Record,
    /// None for an old one: it signs no more.
    pub(super) issuer: Option<Arc<I>>,
}

/// The slot that does not sign.
pub(super) enum Next<I> {
    Empty,
    /// The successor is being made.
    Preparing,
    /// The successor, published and ready to sign.
    Prepared(Slot<I>),
    /// The former authority, of which the journal still says that it signs. Until it knows better the key must stay, or
    /// a restart would miss it.
    Recording(Option<Slot<I>>),
    /// The former authority.
    Old(Slot<I>),
}

pub(super) struct Slots<I> {
    current: Option<Slot<I>>,
    next: Next<I>,
}

impl<I> Default for Slots<I> {
    fn default() -> Self {
        Self {
            current: None,
            next: Next::Empty,
        }
    }
}

impl<I> Slots<I> {
    /// The state after a restart.
    pub(super) fn resumed(current: Option<Slot<I>>, next: Option<Slot<I>>) -> Self {
        // Two authorities of one slot share a key name: the one that signs counts.
        let other = next.filter(|next| {
            let current = current.as_ref();
            current.is_none_or(|current| current.record.slot != next.record.slot)
        });
        let next = match other {
            None => Next::Empty,
            Some(slot) if slot.record.status == Status::Prepared => Next::Prepared(slot),
            Some(slot) => Next::Old(slot),
        };
        Self { current, next }
    }

    /// What signs.
    pub(super) fn issuer(&self) -> Option<Arc<I>> {
        self.current.as_ref()?.issuer.clone()
    }

    pub(super) fn states(&self) -> AuthorityStates {
        let (prepared, old) = match &self.next {
            Next::Prepared(slot) => (Some(state_of(&slot.record)), None),
            Next::Old(slot) | Next::Recording(Some(slot)) => (None, Some(state_of(&slot.record))),
            Next::Empty | Next::Preparing | Next::Recording(None) => (None, None),
        };
        AuthorityStates {
            active: self.current.as_ref().map(|slot| state_of(&slot.record)),
            prepared,
            old,
        }
    }

    /// What the journal should say of each.
    pub(super) fn statuses(&self) -> Vec<(String, Status)> {
        let next = match &self.next {
            Next::Prepared(slot) | Next::Old(slot) | Next::Recording(Some(slot)) => Some(slot),
            Next::Empty | Next::Preparing | Next::Recording(None) => None,
        };
        let slots = self.current.iter().chain(next);
        slots
            .map(|slot| (slot.record.authority_id.clone(), slot.record.status))
            .collect()
    }

    /// Whether a successor is ready that is valid.
    pub(super) fn has_prepared(&self, now: SystemTime) -> bool {
        match &self.next {
            Next::Prepared(slot) => is_valid(&slot.record, now),
            _ => false,
        }
    }

    /// Whether it is time to make a successor: half of a life is over, or nothing signs.
    pub(super) fn preparation_is_due(&self, now: SystemTime) -> bool {
        let due = self.lifetime(now);
        !self.has_prepared(now) && due.is_none_or(|(issued, end)| now >= prepare_at(issued, end))
    }

    /// Whether it is time for the successor to sign: five sixths of a life are over, or nothing signs.
    pub(super) fn activation_is_due(&self, now: SystemTime) -> bool {
        let due = self.lifetime(now);
        self.has_prepared(now) && due.is_none_or(|(issued, end)| now >= activate_at(issued, end))
    }

    /// From when until when the current authority lives; nothing when that is not now.
    fn lifetime(&self, now: SystemTime) -> Option<(SystemTime, SystemTime)> {
        let record = &self.current.as_ref()?.record;
        let lifetime = (from_unix(record.issued_at), from_unix(record.not_after));
        is_valid(record, now).then_some(lifetime)
    }

    /// Begins to make a successor. Gives the slot for its key, and what is there now, for [`Slots::abandon`]. Nothing
    /// while another change is under way.
    pub(super) fn begin(&mut self) -> Option<(SlotName, Next<I>)> {
        if matches!(self.next, Next::Preparing | Next::Recording(_)) {
            return None;
        }
        let slot = self.current.as_ref();
        let slot = slot.map_or(SlotName::A, |current| current.record.slot.other());
        Some((slot, std::mem::replace(&mut self.next, Next::Preparing)))
    }

    /// No successor was made: `former` stays in its place.
    pub(super) fn abandon(&mut self, former: Next<I>) {
        self.next = former;
    }

    /// A successor was made.
    pub(super) fn finish(&mut self, successor: Slot<I>) {
        self.next = Next::Prepared(successor);
    }

    /// Lets the successor sign, if there is one and it is the one meant. Gives its record.
    pub(super) fn activate(&mut self, is_meant: impl Fn(&Record) -> bool) -> Option<Record> {
        let successor = match std::mem::replace(&mut self.next, Next::Empty) {
            Next::Prepared(slot) if is_meant(&slot.record) => slot,
            other => {
                self.next = other;
                return None;
            }
        };
        let record = Record {
            status: Status::Active,
            ..successor.record
        };
        let former = self.current.replace(Slot {
            record: record.clone(),
            issuer: successor.issuer,
        });
        self.next = Next::Recording(former.map(|former| Slot {
            record: Record {
                status: Status::Old,
                ..former.record
            },
            issuer: None,
        }));
        Some(record)
    }

    /// The journal knows what signs, or will be updated at the next opportunity.
    pub(super) fn recorded(&mut self) {
        self.next = match std::mem::replace(&mut self.next, Next::Empty) {
            Next::Recording(Some(former)) => Next::Old(former),
            Next::Recording(None) => Next::Empty,
            other => other,
        };
    }
}

/// Whether an authority can sign what is valid now. One from the future was made before a clock was set back: nobody accepts
/// what it signs until then.
fn is_valid(record: &Record, now: SystemTime) -> bool {
    let is_from_the_future = from_unix(record.issued_at) > now + BACKDATE;
    !is_from_the_future && from_unix(record.not_after) > now
}

pub(super) fn state_of(record: &Record) -> AuthorityState {
    AuthorityState {
        authority_id: record.authority_id.clone(),
        expires_at: record.not_after,
        upstream_authority_id: record.upstream_authority_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: SlotName, status: Status, id: &str) -> Slot<()> {
        Slot {
            record: Record {
                slot: name,
                status,
                authority_id: id.to_owned(),
                origin: None,
                upstream_authority_id: String::new(),
                issued_at: 0,
                not_after: 1_000,
                public_key: Vec::new(),
                chain: Vec::new(),
            },
            issuer: Some(Arc::new(())),
        }
    }

    fn ids(slots: &Slots<()>) -> [Option<String>; 3] {
        let AuthorityStates {
            active,
            prepared,
            old,
        } = slots.states();
        [active, prepared, old].map(|state| Some(state?.authority_id))
    }

    fn one(id: &str) -> Option<String> {
        Some(id.to_owned())
    }

    fn prepare(slots: &mut Slots<()>, id: &str) {
        let (name, _former) = slots.begin().unwrap();
        slots.finish(slot(name, Status::Prepared, id));
    }

    #[test]
    fn authorities_take_turns_in_two_slots() {
        let mut slots = Slots::default();
        let mut names = Vec::new();
        for id in ["1", "2", "3"] {
            prepare(&mut slots, id);
            let record = slots.activate(|_| true).unwrap();
            assert_eq!(record.status, Status::Active);
            slots.recorded();
            names.push(record.slot);
        }
        assert_eq!(names, [SlotName::A, SlotName::B, SlotName::A]);
        assert_eq!(ids(&slots), [one("3"), None, one("2")]);
        let statuses = [
            ("3".to_owned(), Status::Active),
            ("2".to_owned(), Status::Old),
        ];
        assert_eq!(slots.statuses(), statuses);
    }

    #[test]
    fn nothing_begins_and_nothing_is_activated_while_a_change_is_under_way() {
        let mut slots = Slots::default();
        prepare(&mut slots, "1");
        slots.activate(|_| true).unwrap();
        assert!(slots.begin().is_none(), "the journal is not written yet");
        assert!(slots.activate(|_| true).is_none());
        slots.recorded();
        let (_, former) = slots.begin().unwrap();
        assert!(slots.begin().is_none(), "two would share a slot");
        assert!(slots.activate(|_| true).is_none());
        assert!(!slots.has_prepared(from_unix(0)));
        slots.abandon(former);
        assert_eq!(ids(&slots), [one("1"), None, None]);
        assert!(slots.begin().is_some());
    }

    #[test]
    fn an_abandoned_preparation_leaves_the_former_in_its_place() {
        let mut slots = Slots::default();
        prepare(&mut slots, "1");
        let (_, former) = slots.begin().unwrap();
        assert_eq!(ids(&slots), [None, None, None]);
        slots.abandon(former);
        assert_eq!(ids(&slots), [None, one("1"), None]);
        assert!(
            slots
                .activate(|record| record.authority_id == "2")
                .is_none()
        );
        assert!(
            slots
                .activate(|record| record.authority_id == "1")
                .is_some()
        );
        assert!(slots.activate(|_| true).is_none(), "activated twice");
    }

    #[test]
    fn an_expired_successor_neither_signs_nor_keeps_another_from_being_made() {
        let mut slots = Slots::default();
        prepare(&mut slots, "1");
        assert!(slots.activation_is_due(from_unix(999)));
        assert!(!slots.preparation_is_due(from_unix(999)));
        assert!(!slots.activation_is_due(from_unix(1_000)));
        assert!(slots.preparation_is_due(from_unix(1_000)));
    }

    #[test]
    fn an_authority_from_the_future_is_replaced_at_once() {
        let mut slots = Slots::default();
        let mut future = slot(SlotName::A, Status::Prepared, "1");
        (future.record.issued_at, future.record.not_after) = (10_000, 20_000);
        slots.begin().unwrap();
        slots.finish(future);
        slots.activate(|_| true).unwrap();
        slots.recorded();
        // Certificates are valid a little before they are made, for clocks that are a little behind.
        assert!(!slots.preparation_is_due(from_unix(9_990)));
        assert!(slots.preparation_is_due(from_unix(9_989)));
        let mut future = slot(SlotName::B, Status::Prepared, "2");
        (future.record.issued_at, future.record.not_after) = (10_000, 20_000);
        slots.begin().unwrap();
        slots.finish(future);
        assert!(!slots.activation_is_due(from_unix(500)), "no better");
        assert!(slots.preparation_is_due(from_unix(500)));
        prepare(&mut slots, "3");
        assert!(slots.activation_is_due(from_unix(500)));
    }

    #[test]
    fn of_two_authorities_that_share_a_key_name_the_one_that_signs_is_resumed() {
        let current = slot(SlotName::A, Status::Active, "1");
        let next = slot(SlotName::A, Status::Prepared, "2");
        let slots = Slots::resumed(Some(current), Some(next));
        assert_eq!(ids(&slots), [one("1"), None, None]);
        let old = slot(SlotName::B, Status::Old, "0");
        let slots = Slots::resumed(Some(slot(SlotName::A, Status::Active, "1")), Some(old));
        assert_eq!(ids(&slots), [one("1"), None, one("0")]);
    }
}
