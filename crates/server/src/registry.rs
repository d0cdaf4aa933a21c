//! The server's working state in memory: every read is answered here, without the database and without waiting.
//! Built from one snapshot of the store, then changed only by committed writes, in commit order; two registries at
//! the same revision of one store are equal. Does not read or write the store: `datastore` feeds it.

mod agents;
mod authorized;
mod changes;
mod cursor;
mod deleted;
mod entries;
mod freshness;
mod group;
mod listing;
mod proof;
mod records;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod tokens;
mod writer;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use daemon::telemetry::Telemetry;
use spiffe::bundle::Bundle;
use spiffe::clock::{Clock, unix_seconds};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::watch;

use crate::metrics;
use authorized::Node;
use freshness::Freshness;
use listing::Gathering;

pub use cursor::Cursor;
pub(crate) use freshness::{Condition, Stale};
pub use listing::{AgentFilter, BadPageToken, EntryFilter, Listing, Page, SetMatch};
pub use proof::Authorized;
pub use records::{
    Agent, AgentPatch, BundleEndpointProfile, Change, FederationRelationship, JoinTokenRecord,
    Journal, Kind, Lease, Object,
};
pub(crate) use records::{Unknown, Write};
pub(crate) use snapshot::Snapshot;
pub(crate) use state::State;
pub(crate) use writer::RegistryWriter;

/// Entries looked at before the lock is given back during a long scan.
const SCAN_BUDGET: usize = 8_192;

/// The state, and a channel of its revisions. Reads take a shared lock for microseconds. Who holds a registry can only read
/// it: changes take its one [`RegistryWriter`], which the datastore's writer owns.
pub struct Registry {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    freshness: Freshness,
    telemetry: Telemetry,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Registry {
    fn new(
        state: State,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        max_staleness: Duration,
        telemetry: Telemetry,
    ) -> Self {
        let revision = watch::Sender::new(state.cursor.revision());
        let registry = Self {
            state: RwLock::new(state),
            revision,
            trust_domain,
            clock,
            freshness: Freshness::new(max_staleness),
            telemetry,
        };
        registry.report_sizes();
        registry
    }

    /// How current this state is.
    pub(crate) fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The revision that reads now show.
    pub fn revision(&self) -> u64 {
        self.cursor().revision()
    }

    /// The same with its token, which tells it from the same number of another history.
    pub fn cursor(&self) -> Cursor {
        self.read().cursor
    }

    /// Receives each new revision that changed more than leases and journals. Late readers see the latest only.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The changes after `cursor` in commit order, or `None` when the reader must start over: it is too far behind, ahead of
    /// this store, or of a history that the store has lost.
    pub fn changes_since(&self, cursor: Cursor) -> Option<Vec<Change>> {
        self.read().changes.since(cursor, usize::MAX)
    }

    pub fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        self.read()
            .entries
            .get(id)
            .map(|slot| Arc::clone(&slot.entry))
    }

    /// Lists entries in the order of their creation. A page costs what it holds, wherever it starts.
    pub fn entries(
        &self,
        filter: &EntryFilter,
        page: &Page,
    ) -> Result<Listing<Arc<Entry>>, BadPageToken> {
        let mut gathering = Gathering::new(page);
        self.scan_entries(filter, page.after()?, |row, entry| {
            gathering.offer(row, Arc::clone(entry))
        });
        Ok(gathering.finish())
    }

    pub fn entry_count(&self, filter: &EntryFilter) -> usize {
        if filter.is_empty() {
            return self.read().entries.len();
        }
        let mut count = 0;
        self.scan_entries(filter, i64::MIN, |_, _| {
            count += 1;
            true
        });
        count
    }

    /// Visits the entries behind a row that the filter takes, until `visit` has enough. The lock is given back now and then.
    fn scan_entries(
        &self,
        filter: &EntryFilter,
        after: i64,
        mut visit: impl FnMut(i64, &Arc<Entry>) -> bool,
    ) {
        let mut after = Some(after);
        while let Some(row) = after {
            after = self
                .read()
                .entries
                .scan(filter, row, SCAN_BUDGET, &mut visit);
        }
    }

    /// Entries that give `id`, the expired among them: for the admin and downstream look-ups.
    pub fn entries_for_spiffe_id(&self, id: &SpiffeId) -> Vec<Arc<Entry>> {
        self.read().entries.with_spiffe_id(id).cloned().collect()
    }

    /// The first unexpired entry that gives `id` and pleases `wanted`.
    pub fn find_entry_for(
        &self,
        id: &SpiffeId,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Option<Arc<Entry>> {
        let now = self.now();
        let state = self.read();
        state
            .entries
            .with_spiffe_id(id)
            .find(|entry| !entry.is_expired(now) && wanted(entry))
            .cloned()
    }

    /// Every unexpired entry the agent may have, in no particular order. Uses the selectors of the attested node.
    pub fn authorized_entries(&self, agent: &SpiffeId) -> Vec<Arc<Entry>> {
        let now = self.now();
        let state = self.read();
        let none = SelectorSet::default();
        let selectors = state
            .agents
            .get(agent)
            .map_or(&none, |agent| &agent.selectors);
        state.entries.authorized(Node {
            id: agent,
            selectors,
            now,
        })
    }

    /// Whether the agent may have this entry, looking at its parent, not at whether it is registered: also right
    /// for the former self of an entry in a [`Change`].
    pub fn authorizes(&self, agent: &SpiffeId, entry: &Entry) -> bool {
        let now = self.now();
        let state = self.read();
        let none = SelectorSet::default();
        let selectors = state
            .agents
            .get(agent)
            .map_or(&none, |agent| &agent.selectors);
        state.entries.authorizes(
            Node {
                id: agent,
                selectors,
                now,
            },
            entry,
        )
    }

    /// The entry, if it is registered and the agent may have it.
    pub fn authorized_entry(&self, agent: &SpiffeId, entry_id: &str) -> Option<Authorized> {
        let now = self.now();
        let state = self.read();
        let none = SelectorSet::default();
        let selectors = state
            .agents
            .get(agent)
            .map_or(&none, |agent| &agent.selectors);
        let entry = &state.entries.get(entry_id)?.entry;
        state
            .entries
            .authorizes(
                Node {
                    id: agent,
                    selectors,
                    now,
                },
                entry,
            )
            .then(|| Authorized::new(Arc::clone(entry), agent))
    }

    /// Whether what was found then still holds: the entry is as it was, or gives the same identity for no shorter time, and
    /// the agent is still authorized for it and not banned. To be asked after each wait.
    pub fn is_still_authorized(&self, authorized: &Authorized) -> bool {
        let Some(agent) = authorized.agent() else {
            return true;
        };
        if self.agent(agent).is_some_and(|agent| agent.banned) {
            return false;
        }
        // 0: never.
        let end = |entry: &Entry| match entry.expires_at {
            0 => i64::MAX,
            end => end,
        };
        self.authorized_entry(agent, &authorized.id)
            .is_some_and(|now| {
                Arc::ptr_eq(now.entry(), authorized.entry())
                    || (now.spiffe_id == authorized.spiffe_id
                        && now.dns_names == authorized.dns_names
                        && end(&now) >= end(authorized))
            })
    }

    pub fn agent(&self, id: &SpiffeId) -> Option<Arc<Agent>> {
        self.read().agents.get(id).cloned()
    }

    pub fn agents(
        &self,
        filter: &AgentFilter,
        page: &Page,
    ) -> Result<Listing<Arc<Agent>>, BadPageToken> {
        self.read().agents.list(filter, page)
    }

    pub fn agent_count(&self, filter: &AgentFilter) -> usize {
        self.read().agents.count(filter)
    }

    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.read().bundles.get(trust_domain).cloned()
    }

    /// All bundles, including this trust domain's own, by trust domain.
    pub fn bundles(&self) -> Vec<Arc<Bundle>> {
        self.read().bundles.values().cloned().collect()
    }

    pub fn federation_relationship(
        &self,
        trust_domain: &TrustDomain,
    ) -> Option<Arc<FederationRelationship>> {
        self.read().relationships.get(trust_domain).cloned()
    }

    /// All relationships, by trust domain.
    pub fn federation_relationships(&self) -> Vec<Arc<FederationRelationship>> {
        self.read().relationships.values().cloned().collect()
    }

    pub fn journals(&self) -> Vec<Arc<Journal>> {
        self.read().journals.values().cloned().collect()
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn report_sizes(&self) {
        if !self.telemetry.is_enabled() {
            return;
        }
        let state = self.read();
        let sizes = [
            (&metrics::ENTRIES, state.entries.len()),
            (
                &metrics::AGENTS,
                state.agents.count(&AgentFilter::default()),
            ),
            (&metrics::BUNDLES, state.bundles.len()),
        ];
        drop(state);
        for (gauge, size) in sizes {
            self.telemetry.set_number(gauge, size, []);
        }
    }

    fn now(&self) -> i64 {
        unix_seconds(self.clock.now())
    }
}
