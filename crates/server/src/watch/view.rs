//! What one agent is sent.
//!
//! A stream begins with the whole list, or, when the agent's cursor lies in the kept history, with what it has missed. After
//! that it carries the changes that the notifier left in the subscription. No state is kept for each entry: a changed entry is
//! looked up in the registry when it is sent, and one lock is held for all look-ups of an event, so that no entry is both
//! present and removed in it. So an event may repeat what the agent holds; it never omits what the agent lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message as _;
use proto::convert::{agent_entry_mask, bundle_to_wire, entry_to_wire};
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use proto::spire::api::types;
use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use super::affected::{Affected, Ancestors, Touched};
use super::subscription::{Pending, Subscription};
use crate::registry::{Change, Cursor, Kind, Object, Registry, Snapshot};

/// Bytes of entries in one event. A stream keeps a buffer of the size of its largest event for as long as it is open, so that
/// ten thousand agents are worth small events.
const PAGE_BYTES: usize = 4 << 10;
/// Changes that are looked through when a stream continues at a cursor. With more, the whole list costs less.
const MAX_MISSED: usize = 512;

/// One agent's side of a stream.
#[derive(Debug)]
pub(super) struct View {
    registry: Arc<Registry>,
    agent: SpiffeId,
    subscription: Arc<Subscription>,
    /// Everything up to here has been sent.
    cursor: Cursor,
    /// The foreign trust domains that the agent's entries federate with, and the bundles that it was sent.
    federated: BTreeMap<TrustDomain, Option<Arc<Bundle>>>,
    own: Option<Arc<Bundle>>,
}

impl View {
    pub(super) fn new(
        registry: Arc<Registry>,
        agent: SpiffeId,
        subscription: Arc<Subscription>,
    ) -> Self {
        Self {
            registry,
            agent,
            subscription,
            cursor: Cursor::default(),
            federated: BTreeMap::new(),
            own: None,
        }
    }

    /// The first events: what the agent has missed since its cursor when that is known, else everything.
    pub(super) fn start(&mut self, request: &WatchRequest) -> Outgoing {
        let registry = Arc::clone(&self.registry);
        let snapshot = registry.snapshot();
        let cursor = Cursor::from_wire(request.cursor, &request.epoch);
        let changes = cursor.and_then(|cursor| snapshot.changes_since(cursor, MAX_MISSED));
        if let Some(changes) = changes
            && let Some(ids) = self.missed(&snapshot, &changes)
        {
            return self.resume(&snapshot, &changes, ids);
        }
        self.all(&snapshot)
    }

    /// The events that the pending changes amount to; `None` when they do not concern the agent after all.
    pub(super) fn advance(&mut self, pending: &Pending) -> Option<Outgoing> {
        let registry = Arc::clone(&self.registry);
        let snapshot = registry.snapshot();
        if pending.reset {
            return Some(self.all(&snapshot));
        }
        // Part of a batch may be taken before the notifier seals it, and goes out under the previous cursor. An agent that comes
        // back with that cursor gets the part again; a cursor ahead of what was sent would lose the rest.
        if pending.cursor.revision() > self.cursor.revision() {
            self.cursor = pending.cursor;
        }
        let ids = pending.entries.iter().flat_map(|ids| ids.iter().cloned());
        let delta = self.look_up(&snapshot, ids.collect());
        let mut outgoing = self.outgoing();
        if !delta.removed.is_empty() || !delta.present.is_empty() {
            self.follow_bundles(&snapshot, &delta.present, &mut outgoing);
        }
        self.send_bundles(&snapshot, &pending.bundles, &mut outgoing);
        outgoing.carry(delta);
        (!outgoing.is_empty()).then_some(outgoing)
    }

    /// The whole list, which replaces everything that the agent holds.
    fn all(&mut self, snapshot: &Snapshot<'_>) -> Outgoing {
        self.cursor = snapshot.cursor();
        self.federated = BTreeMap::new();
        let mut outgoing = self.outgoing();
        outgoing.head.reset = true;
        let present = snapshot.authorized_entries(&self.agent);
        self.follow_bundles(snapshot, &present, &mut outgoing);
        self.send_bundles(
            snapshot,
            &[snapshot.trust_domain().clone()].into(),
            &mut outgoing,
        );
        outgoing.carry(Delta {
            present,
            removed: Vec::new(),
        });
        outgoing
    }

    /// What changed since the cursor. The agent says by its cursor what it holds, so entries that have expired meanwhile are
    /// taken back also when nothing else has changed.
    fn resume(
        &mut self,
        snapshot: &Snapshot<'_>,
        changes: &[Change],
        mut ids: BTreeSet<Arc<str>>,
    ) -> Outgoing {
        self.cursor = snapshot.cursor();
        let lapsed = snapshot.lapsed_entries(&self.agent);
        ids.extend(lapsed.iter().map(|entry| Arc::clone(&entry.id)));
        let delta = self.look_up(snapshot, ids);
        let mut outgoing = self.outgoing();
        let wanted = named_by(&snapshot.authorized_entries(&self.agent));
        self.subscription.follow_bundles(wanted.clone());
        let with_bundle = |name: TrustDomain| {
            let bundle = snapshot.bundle(&name).cloned();
            (name, bundle)
        };
        self.federated = wanted.into_iter().map(with_bundle).collect();
        self.own = snapshot.bundle(snapshot.trust_domain()).cloned();
        // Which bundles the agent holds follows from the entries that it held: those of the entries in the delta, and those
        // that have changed themselves, are sent again.
        let mut bundles = named_by(&delta.present);
        let changed = changes.iter().filter(|change| change.kind == Kind::Bundle);
        bundles.extend(changed.filter_map(|change| TrustDomain::parse(&change.key).ok()));
        for name in bundles {
            let followed = name == *snapshot.trust_domain() || self.federated.contains_key(&name);
            match snapshot.bundle(&name).filter(|_| followed) {
                Some(bundle) => outgoing.head.bundles.push(bundle_to_wire(bundle, None)),
                None => outgoing.head.removed_bundles.push(name.as_str().to_owned()),
            }
        }
        outgoing.carry(delta);
        outgoing
    }

    /// The entries of the agent that these changes touch; `None` when they are too many to name, or when the agent's own
    /// record has changed, since then it may reach other aliases.
    ///
    /// Both versions of a changed entry are asked whether they concern the agent: the old one finds what it has to give back.
    /// An answer of "concerns" that is wrong costs one look-up.
    fn missed(&self, snapshot: &Snapshot<'_>, changes: &[Change]) -> Option<BTreeSet<Arc<str>>> {
        let server = SpiffeId::server(snapshot.trust_domain());
        let affected = Affected::new(snapshot, server, changes);
        let selectors = snapshot.agent(&self.agent).map(|agent| &agent.selectors);
        let holds = |alias: &Entry| {
            selectors.is_some_and(|selectors| {
                !alias.selectors.is_empty() && alias.selectors.is_subset_of(selectors)
            })
        };
        let concerns = |entry: &Entry| {
            if affected.is_alias(entry) {
                return holds(entry);
            }
            match affected.ancestors(&entry.parent_id) {
                Ancestors::All => true,
                Ancestors::Some { ids, aliases } => {
                    ids.contains(&&self.agent) || aliases.into_iter().any(holds)
                }
            }
        };
        let mut named = BTreeSet::new();
        for change in changes {
            match (change.kind, &change.old, &change.new) {
                (Kind::Agent, Some(Object::Agent(old)), Some(Object::Agent(new)))
                    if old.selectors == new.selectors => {}
                (Kind::Agent, ..) if *change.key == *self.agent.as_str() => return None,
                (Kind::Entry, old, new) => {
                    let (old, new) = (as_entry(old.as_ref()), as_entry(new.as_ref()));
                    if ![old, new].into_iter().flatten().any(concerns) {
                        continue;
                    }
                    match affected.touched(&change.key, old, new) {
                        Touched::TooMany => return None,
                        Touched::Entries(ids) => named.extend(ids.iter().cloned()),
                    }
                }
                _ => {}
            }
        }
        Some(named)
    }

    fn look_up(&self, snapshot: &Snapshot<'_>, ids: BTreeSet<Arc<str>>) -> Delta {
        let mut delta = Delta::default();
        for id in ids {
            match snapshot.authorized_entry(&self.agent, &id) {
                Some(entry) => delta.present.push(Arc::clone(entry)),
                None => delta.removed.push(id.as_ref().to_owned()),
            }
        }
        delta
    }

    /// Brings up to date which foreign bundles the agent is sent, after entries have changed; sends those that are new to it
    /// and takes back those that no entry needs any more.
    fn follow_bundles(
        &mut self,
        snapshot: &Snapshot<'_>,
        present: &[Arc<Entry>],
        outgoing: &mut Outgoing,
    ) {
        // An agent without federation pays for the changed entries alone. Otherwise all of its entries are asked: the removed ones
        // are gone from the registry and can no longer say which bundles they needed.
        let mut wanted = named_by(present);
        if !self.federated.is_empty() {
            // One of them may have been the last that needed a bundle.
            wanted = named_by(&snapshot.authorized_entries(&self.agent));
        }
        if wanted.is_empty() && self.federated.is_empty() {
            return;
        }
        // Before the bundles are read, so that no change falls between.
        self.subscription.follow_bundles(wanted.clone());
        let former = std::mem::take(&mut self.federated);
        for (name, sent) in &former {
            if !wanted.contains(name) && sent.is_some() {
                outgoing.head.removed_bundles.push(name.as_str().to_owned());
            }
        }
        for name in wanted {
            let bundle = snapshot.bundle(&name);
            if !former.contains_key(&name)
                && let Some(bundle) = bundle
            {
                outgoing.head.bundles.push(bundle_to_wire(bundle, None));
            }
            let sent = match former.get(&name) {
                Some(sent) => sent.clone(),
                None => bundle.cloned(),
            };
            self.federated.insert(name, sent);
        }
    }

    /// Sends the current form of these bundles, as far as the agent is to have them and has not been sent it.
    fn send_bundles(
        &mut self,
        snapshot: &Snapshot<'_>,
        names: &BTreeSet<TrustDomain>,
        outgoing: &mut Outgoing,
    ) {
        for name in names {
            let sent = if name == snapshot.trust_domain() {
                &mut self.own
            } else if let Some(sent) = self.federated.get_mut(name) {
                sent
            } else {
                continue;
            };
            let present = snapshot.bundle(name);
            match (&*sent, present) {
                (Some(sent), Some(present))
                    if Arc::ptr_eq(sent, present) && !outgoing.head.reset => {}
                (_, Some(present)) => outgoing.head.bundles.push(bundle_to_wire(present, None)),
                (Some(_), None) => outgoing.head.removed_bundles.push(name.as_str().to_owned()),
                (None, None) => {}
            }
            *sent = present.cloned();
        }
    }

    fn outgoing(&self) -> Outgoing {
        Outgoing::new(WatchEvent {
            revision: self.cursor.revision(),
            epoch: self.cursor.epoch(),
            ..WatchEvent::default()
        })
    }
}

/// The difference to send.
#[derive(Debug, Default)]
struct Delta {
    present: Vec<Arc<Entry>>,
    removed: Vec<String>,
}

/// A difference on its way to the agent. Each event is made when the agent is ready to read it, so that a long list costs a
/// pointer for each entry and one page of messages.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The next event, without its entries. Bundles go first: an entry's federated bundles are there with it.
    head: WatchEvent,
    entries: std::vec::IntoIter<Arc<Entry>>,
    /// The entry that did not fit the last event.
    held_over: Option<types::Entry>,
    done: bool,
}

impl Outgoing {
    fn new(head: WatchEvent) -> Self {
        Self {
            head,
            entries: Vec::new().into_iter(),
            held_over: None,
            done: false,
        }
    }

    fn carry(&mut self, delta: Delta) {
        self.head.removed_entry_ids = delta.removed;
        self.entries = delta.present.into_iter();
    }

    fn is_empty(&self) -> bool {
        let head = &self.head;
        !head.reset
            && head.bundles.is_empty()
            && head.removed_bundles.is_empty()
            && head.removed_entry_ids.is_empty()
            && self.entries.as_slice().is_empty()
    }
}

impl Iterator for Outgoing {
    type Item = WatchEvent;

    fn next(&mut self) -> Option<WatchEvent> {
        if self.done {
            return None;
        }
        let mask = agent_entry_mask();
        let following = WatchEvent {
            revision: self.head.revision,
            epoch: self.head.epoch.clone(),
            ..WatchEvent::default()
        };
        let mut event = std::mem::replace(&mut self.head, following);
        // The entry that makes the page too large opens the next one. A page always has one entry, however large that is.
        let mut bytes = 0;
        while let Some(entry) = self.held_over.take().or_else(|| {
            let next = self.entries.next();
            next.map(|entry| entry_to_wire(&entry, Some(&mask)))
        }) {
            bytes += entry.encoded_len();
            if !event.entries.is_empty() && bytes > PAGE_BYTES {
                event.more = true;
                self.held_over = Some(entry);
                return Some(event);
            }
            event.entries.push(entry);
        }
        self.done = true;
        Some(event)
    }
}

/// The trust domains that these entries federate with.
fn named_by(entries: &[Arc<Entry>]) -> BTreeSet<TrustDomain> {
    let names = entries.iter().flat_map(|entry| entry.federates_with.iter());
    names.cloned().collect()
}

fn as_entry(side: Option<&Object>) -> Option<&Entry> {
    match side {
        Some(Object::Entry(entry)) => Some(entry),
        _ => None,
    }
}
