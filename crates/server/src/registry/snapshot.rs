//! A look at the registry at one revision: everything read through it belongs together.
//!
//! Holds the shared lock. Its holder neither waits nor asks the [`Registry`] meanwhile: a waiting writer would block
//! that second read, and the first one the writer.

use std::sync::{Arc, RwLockReadGuard};

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;

use super::authorized::Node;
use super::{Agent, Change, Cursor, Registry, State};

/// Before every expiry: at this time nothing has expired yet.
const BEFORE_ANY_EXPIRY: i64 = i64::MIN;

pub(crate) struct Snapshot<'a> {
    registry: &'a Registry,
    state: RwLockReadGuard<'a, State>,
    now: i64,
    no_selectors: SelectorSet,
}

impl Registry {
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            registry: self,
            // The time is read first: what it says has expired is expired for every read that follows.
            now: self.now(),
            state: self.read(),
            no_selectors: SelectorSet::default(),
        }
    }
}

impl<'a> Snapshot<'a> {
    pub(crate) fn cursor(&self) -> Cursor {
        self.state.cursor
    }

    pub(crate) fn trust_domain(&self) -> &'a TrustDomain {
        self.registry.trust_domain()
    }

    /// Unix seconds.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// See [`Registry::changes_since`]; `None` also when there are more than `most`.
    pub(crate) fn changes_since(&self, cursor: Cursor, most: usize) -> Option<Vec<Change>> {
        self.state.changes.since(cursor, most)
    }

    pub(crate) fn agent(&self, id: &SpiffeId) -> Option<&Arc<Agent>> {
        self.state.agents.get(id)
    }

    pub(crate) fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.state.bundles.get(trust_domain)
    }

    /// The entries that give this SPIFFE ID, the expired among them.
    pub(crate) fn with_spiffe_id(&self, id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.state.entries.with_spiffe_id(id)
    }

    /// The entries whose parent is this SPIFFE ID, the expired among them.
    pub(crate) fn with_parent(&self, id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.state.entries.with_parent(id)
    }

    /// The entry, if it is registered, not expired, and the agent is authorized for it.
    pub(crate) fn authorized_entry(&self, agent: &SpiffeId, entry_id: &str) -> Option<&Arc<Entry>> {
        let entry = &self.state.entries.get(entry_id)?.entry;
        let authorized = self
            .state
            .entries
            .authorizes(self.node(agent, self.now), entry);
        authorized.then_some(entry)
    }

    /// Every unexpired entry the agent is authorized for, in no particular order.
    pub(crate) fn authorized_entries(&self, agent: &SpiffeId) -> Vec<Arc<Entry>> {
        self.state.entries.authorized(self.node(agent, self.now))
    }

    /// What [`Self::authorized_entries`] would hold as well if nothing ever expired: the expired entries that are still
    /// registered, and the entries that were reached through them alone.
    pub(crate) fn lapsed_entries(&self, agent: &SpiffeId) -> Vec<Arc<Entry>> {
        let entries = &self.state.entries;
        if self.expiring_between(BEFORE_ANY_EXPIRY).next().is_none() {
            return Vec::new();
        }
        let mut all = entries.authorized(self.node(agent, BEFORE_ANY_EXPIRY));
        all.retain(|entry| !entries.authorizes(self.node(agent, self.now), entry));
        all
    }

    /// The entries whose expiry lies between this second and another one, whichever is earlier: those that have expired
    /// since, and after the clock was set back those that have not expired after all.
    pub(crate) fn expiring_between(&self, other: i64) -> impl Iterator<Item = &Arc<Entry>> {
        let entries = &self.state.entries;
        entries.expiring(other.min(self.now), other.max(self.now))
    }

    /// The first expiry after `after`, as Unix time.
    pub(crate) fn next_expiry(&self, after: i64) -> Option<i64> {
        self.state.entries.next_expiry(after)
    }

    fn node<'b>(&'b self, agent: &'b SpiffeId, now: i64) -> Node<'b> {
        let selectors = self
            .agent(agent)
            .map_or(&self.no_selectors, |agent| &agent.selectors);
        Node {
            id: agent,
            selectors,
            now,
        }
    }
}
