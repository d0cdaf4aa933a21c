//! What one agent has been told, and the difference between that and what it should now know.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use proto::convert::{agent_entry_mask, bundle_to_wire, entry_to_wire};
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use crate::registry::{Change, EntryFilter, Kind, Object, Page, Registry};

/// Entries in one event; as many as SPIRE has in a page.
const PAGE: usize = 500;
/// Bytes of entries in one event, far below the 4 MiB that a client accepts.
const PAGE_BYTES: usize = 1 << 20;

/// One agent's knowledge as the server believes it to be.
#[derive(Debug)]
pub(super) struct View {
    registry: Arc<Registry>,
    agent: SpiffeId,
    server: SpiffeId,
    /// Everything up to here has been told.
    revision: u64,
    entries: HashMap<Arc<str>, Arc<Entry>>,
    bundles: HashMap<TrustDomain, Arc<Bundle>>,
}

/// What one change means for the agent.
enum Effect {
    Nothing,
    /// This entry alone came, changed or went.
    Entry(Arc<str>),
    /// Bundles have changed.
    Bundles,
    /// Anything may have.
    Unknown,
}

/// The difference to tell.
#[derive(Default)]
struct Delta {
    changed: Vec<Arc<Entry>>,
    removed: Vec<Arc<str>>,
}

impl View {
    pub(super) fn new(registry: Arc<Registry>, agent: SpiffeId) -> Self {
        let server = SpiffeId::server(registry.trust_domain());
        Self {
            registry,
            agent,
            server,
            revision: 0,
            entries: HashMap::new(),
            bundles: HashMap::new(),
        }
    }

    /// The first events: nothing but a revision when the agent's cursor is good and nothing that concerns it happened
    /// since, else everything.
    pub(super) fn start(&mut self, request: &WatchRequest) -> Vec<WatchEvent> {
        // Read before the sets: what is committed in between is told twice rather than never.
        self.revision = self.registry.revision();
        let known = request.cursor != 0 && request.epoch == self.registry.epoch();
        let changes = if known {
            self.registry.changes_since(request.cursor)
        } else {
            None
        };
        for entry in self.registry.authorized_entries(&self.agent) {
            self.entries.insert(Arc::clone(&entry.id), entry);
        }
        let untouched = changes.is_some_and(|changes| {
            changes.iter().all(|change| {
                change.revision > self.revision || matches!(self.effect(change), Effect::Nothing)
            })
        });
        let bundles = self.wanted_bundles();
        self.bundles = bundles
            .iter()
            .map(|bundle| (bundle.trust_domain.clone(), Arc::clone(bundle)))
            .collect();
        // The sets may hold something newer than that revision, of which the agent has not heard.
        let quiet = self.registry.revision() == self.revision;
        if untouched && quiet {
            return vec![self.event()];
        }
        let all = Delta {
            changed: self.entries.values().cloned().collect(),
            removed: Vec::new(),
        };
        let mut events = self.events(&all, &bundles, Vec::new());
        if let Some(first) = events.first_mut() {
            first.reset = true;
        }
        events
    }

    /// The events since the last; none when nothing that concerns the agent happened.
    pub(super) fn advance(&mut self) -> Vec<WatchEvent> {
        let before = self.revision;
        self.revision = self.registry.revision();
        let delta = match self.registry.changes_since(before) {
            None => Some(self.compare_all()),
            Some(changes) => self.follow(&changes),
        };
        let Some(delta) = delta else {
            return Vec::new();
        };
        let wanted = self.wanted_bundles();
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        let mut former = std::mem::take(&mut self.bundles);
        for bundle in wanted {
            let told = former.remove(&bundle.trust_domain);
            if !told.is_some_and(|told| Arc::ptr_eq(&told, &bundle)) {
                changed.push(Arc::clone(&bundle));
            }
            self.bundles.insert(bundle.trust_domain.clone(), bundle);
        }
        removed.extend(former.into_keys().map(|name| name.as_str().to_owned()));
        if delta.changed.is_empty()
            && delta.removed.is_empty()
            && changed.is_empty()
            && removed.is_empty()
        {
            return Vec::new();
        }
        removed.sort_unstable();
        self.events(&delta, &changed, removed)
    }

    /// Applies changes one by one while each is about one entry; compares all when that is not enough. `None` when nothing
    /// concerns the agent.
    fn follow(&mut self, changes: &[Change]) -> Option<Delta> {
        let (mut touched, mut any) = (Vec::new(), false);
        for change in changes {
            match self.effect(change) {
                Effect::Nothing => continue,
                Effect::Entry(id) => touched.push(id),
                Effect::Bundles => {}
                Effect::Unknown => return Some(self.compare_all()),
            }
            any = true;
        }
        if !any {
            return None;
        }
        touched.sort_unstable();
        touched.dedup();
        let mut delta = Delta::default();
        for id in touched {
            match self.registry.authorized_entry(&self.agent, &id) {
                Some(entry) => {
                    let told = self.entries.insert(id, Arc::clone(&entry));
                    if !told.is_some_and(|told| Arc::ptr_eq(&told, &entry)) {
                        delta.changed.push(entry);
                    }
                }
                None => {
                    if self.entries.remove(&id).is_some() {
                        delta.removed.push(id);
                    }
                }
            }
        }
        Some(delta)
    }

    fn compare_all(&mut self) -> Delta {
        let mut former = std::mem::take(&mut self.entries);
        let mut delta = Delta::default();
        for entry in self.registry.authorized_entries(&self.agent) {
            let told = former.remove(&entry.id);
            if !told.is_some_and(|told| Arc::ptr_eq(&told, &entry)) {
                delta.changed.push(Arc::clone(&entry));
            }
            self.entries.insert(Arc::clone(&entry.id), entry);
        }
        delta.removed.extend(former.into_keys());
        delta
    }

    fn effect(&self, change: &Change) -> Effect {
        match change.kind {
            Kind::Entry => self.entry_effect(change),
            Kind::Bundle => {
                let own = change.key.as_ref() == self.registry.trust_domain().as_str();
                let told = own || self.entries.values().any(|entry| names(entry, &change.key));
                if told {
                    Effect::Bundles
                } else {
                    Effect::Nothing
                }
            }
            Kind::Agent if change.key.as_ref() == self.agent.as_str() => {
                let selectors = |side: &Option<Object>| match side {
                    Some(Object::Agent(agent)) => Some(agent.selectors.clone()),
                    _ => None,
                };
                if selectors(&change.old) == selectors(&change.new) {
                    Effect::Nothing
                } else {
                    Effect::Unknown
                }
            }
            _ => Effect::Nothing,
        }
    }

    fn entry_effect(&self, change: &Change) -> Effect {
        let sides = [&change.old, &change.new]
            .into_iter()
            .filter_map(|side| match side {
                Some(Object::Entry(entry)) => Some(entry),
                _ => None,
            });
        let mut concerned = self.entries.contains_key(&change.key);
        for entry in sides {
            if entry.parent_id == self.server {
                // A node alias: whoever has its selectors also has what hangs below it.
                let ours = self.registry.agent(&self.agent);
                if ours.is_some_and(|agent| entry.selectors.is_subset_of(&agent.selectors)) {
                    return Effect::Unknown;
                }
                continue;
            }
            if concerned || self.registry.authorizes(&self.agent, entry) {
                if self.has_children(&entry.spiffe_id) {
                    return Effect::Unknown;
                }
                concerned = true;
            }
        }
        if concerned {
            Effect::Entry(Arc::clone(&change.key))
        } else {
            Effect::Nothing
        }
    }

    fn has_children(&self, id: &SpiffeId) -> bool {
        let below = EntryFilter {
            by_parent_id: Some(id.clone()),
            ..EntryFilter::default()
        };
        let one = Page {
            size: 1,
            token: String::new(),
        };
        self.registry
            .entries(&below, &one)
            .is_ok_and(|listing| !listing.items.is_empty())
    }

    /// The own bundle, and those that the agent's entries federate with, as far as they are known.
    fn wanted_bundles(&self) -> Vec<Arc<Bundle>> {
        let mut names: Vec<&TrustDomain> = self
            .entries
            .values()
            .flat_map(|entry| &entry.federates_with)
            .collect();
        names.push(self.registry.trust_domain());
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .filter_map(|name| self.registry.bundle(name))
            .collect()
    }

    fn event(&self) -> WatchEvent {
        WatchEvent {
            revision: self.revision,
            epoch: self.registry.epoch().to_owned(),
            ..WatchEvent::default()
        }
    }

    /// Cuts a difference into events of a bounded size. Bundles go first: an entry's federated bundles are there with it.
    fn events(
        &self,
        delta: &Delta,
        bundles: &[Arc<Bundle>],
        removed_bundles: Vec<String>,
    ) -> Vec<WatchEvent> {
        let mask = agent_entry_mask();
        let mut event = self.event();
        event.bundles = bundles
            .iter()
            .map(|bundle| bundle_to_wire(bundle, None))
            .collect();
        event.removed_bundles = removed_bundles;
        event.removed_entry_ids = delta
            .removed
            .iter()
            .map(|id| id.as_ref().to_owned())
            .collect();
        let (mut events, mut bytes) = (Vec::new(), 0);
        for entry in &delta.changed {
            let wire = entry_to_wire(entry, Some(&mask));
            bytes += wire.encoded_len();
            if !event.entries.is_empty() && (event.entries.len() >= PAGE || bytes > PAGE_BYTES) {
                event.more = true;
                events.push(std::mem::replace(&mut event, self.event()));
                bytes = wire.encoded_len();
            }
            event.entries.push(wire);
        }
        events.push(event);
        events
    }
}

fn names(entry: &Entry, trust_domain: &str) -> bool {
    entry
        .federates_with
        .iter()
        .any(|name| name.as_str() == trust_domain)
}
