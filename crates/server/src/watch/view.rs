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

use super::hub::News;
use super::told::Told;
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
    told: Told,
    bundles: HashMap<TrustDomain, Arc<Bundle>>,
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
            told: Told::nothing(agent.clone()),
            agent,
            server,
            revision: 0,
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
            self.told.insert(entry);
        }
        let untouched =
            changes.is_some_and(|changes| !changes.iter().any(|change| self.concerns(change)));
        let bundles = self.wanted_bundles();
        let by_name = |bundle: &Arc<Bundle>| (bundle.trust_domain.clone(), Arc::clone(bundle));
        self.bundles = bundles.iter().map(by_name).collect();
        // The sets may hold something newer than that revision, of which the agent has not heard.
        let quiet = self.registry.revision() == self.revision;
        if untouched && quiet {
            return vec![self.event()];
        }
        let all = Delta {
            changed: self.told.iter().cloned().collect(),
            removed: Vec::new(),
        };
        let mut events = self.events(&all, &bundles, Vec::new());
        if let Some(first) = events.first_mut() {
            first.reset = true;
        }
        events
    }

    /// The events that the news amount to; none when they do not concern the agent after all.
    pub(super) fn advance(&mut self, news: News) -> Vec<WatchEvent> {
        self.revision = self.revision.max(news.revision);
        let delta = if news.everything {
            self.compare_all()
        } else {
            self.compare(news.entries)
        };
        let (changed, removed) = self.compare_bundles();
        let nothing = delta.changed.is_empty() && delta.removed.is_empty();
        if nothing && changed.is_empty() && removed.is_empty() {
            return Vec::new();
        }
        self.events(&delta, &changed, removed)
    }

    /// Looks at some entries; at all when one of them stood between the agent and others.
    fn compare(&mut self, mut ids: Vec<Arc<str>>) -> Delta {
        ids.sort_unstable();
        ids.dedup();
        let mut delta = Delta::default();
        for id in ids {
            let now = self.registry.authorized_entry(&self.agent, &id);
            let told = match &now {
                Some(entry) => self.told.insert(Arc::clone(entry)),
                None => self.told.remove(&id),
            };
            let moved = |told: &Arc<Entry>| {
                now.as_ref()
                    .is_none_or(|now| now.spiffe_id != told.spiffe_id)
            };
            if told
                .as_ref()
                .is_some_and(|told| moved(told) && self.told.has_below(&told.spiffe_id))
            {
                delta.merge(self.compare_all());
            }
            match (now, told) {
                (Some(now), Some(told)) if Arc::ptr_eq(&told, &now) => {}
                (Some(now), _) => delta.changed.push(now),
                (None, Some(_)) => delta.removed.push(id),
                (None, None) => {}
            }
        }
        delta
    }

    fn compare_all(&mut self) -> Delta {
        let mut former = self.told.take();
        let mut delta = Delta::default();
        for entry in self.registry.authorized_entries(&self.agent) {
            let told = former.remove(&entry.id);
            if !told.is_some_and(|told| Arc::ptr_eq(&told, &entry)) {
                delta.changed.push(Arc::clone(&entry));
            }
            self.told.insert(entry);
        }
        delta.removed.extend(former.into_keys());
        delta
    }

    /// Bundles that are new or other than told, and the names of those that are no longer the agent's.
    fn compare_bundles(&mut self) -> (Vec<Arc<Bundle>>, Vec<String>) {
        let mut changed = Vec::new();
        let mut former = std::mem::take(&mut self.bundles);
        for bundle in self.wanted_bundles() {
            let told = former.remove(&bundle.trust_domain);
            if !told.is_some_and(|told| Arc::ptr_eq(&told, &bundle)) {
                changed.push(Arc::clone(&bundle));
            }
            self.bundles.insert(bundle.trust_domain.clone(), bundle);
        }
        let mut removed: Vec<_> = former
            .into_keys()
            .map(|name| name.as_str().to_owned())
            .collect();
        removed.sort_unstable();
        (changed, removed)
    }

    /// Whether a change may matter to the agent. Asked once, when a stream continues at a cursor.
    fn concerns(&self, change: &Change) -> bool {
        let entry = |side: &Option<Object>| match side {
            Some(Object::Entry(entry)) => Some(Arc::clone(entry)),
            _ => None,
        };
        match change.kind {
            Kind::Bundle => true,
            Kind::Agent => change.key.as_ref() == self.agent.as_str(),
            Kind::Entry if self.told.contains(&change.key) => true,
            Kind::Entry => [entry(&change.old), entry(&change.new)]
                .into_iter()
                .flatten()
                .any(|entry| {
                    // What hung below it may have gone with it.
                    has_children(&self.registry, &entry.spiffe_id)
                        || self.told.has_below(&entry.spiffe_id)
                        || self.is_alias_of_agent(&entry)
                        || self.registry.authorizes(&self.agent, &entry)
                }),
            _ => false,
        }
    }

    fn is_alias_of_agent(&self, entry: &Entry) -> bool {
        let agent = self.registry.agent(&self.agent);
        entry.parent_id == self.server
            && agent.is_some_and(|agent| entry.selectors.is_subset_of(&agent.selectors))
    }

    /// The own bundle, and those that the agent's entries federate with, as far as they are known.
    fn wanted_bundles(&self) -> Vec<Arc<Bundle>> {
        let mut names: Vec<&TrustDomain> = self.told.federated().collect();
        names.push(self.registry.trust_domain());
        names.sort_unstable();
        names.dedup();
        let bundles = names
            .into_iter()
            .filter_map(|name| self.registry.bundle(name));
        bundles.collect()
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

impl Delta {
    fn merge(&mut self, other: Self) {
        self.changed.extend(other.changed);
        self.removed.extend(other.removed);
    }
}

/// Whether any entry hangs below this ID.
pub(super) fn has_children(registry: &Registry, id: &SpiffeId) -> bool {
    let below = EntryFilter {
        by_parent_id: Some(id.clone()),
        ..EntryFilter::default()
    };
    let one = Page {
        size: 1,
        token: String::new(),
    };
    registry
        .entries(&below, &one)
        .is_ok_and(|listing| !listing.items.is_empty())
}
