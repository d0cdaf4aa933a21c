//! The attested nodes in memory: by ID, and in the order they came for listings.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use spiffe::id::SpiffeId;

use super::listing::{AgentFilter, BadPageToken, Gathering, Listing, Page};
use super::records::Agent;

#[derive(Debug, Default)]
pub(crate) struct AgentTable {
    rows: HashMap<SpiffeId, i64>,
    by_row: BTreeMap<i64, Arc<Agent>>,
}

impl AgentTable {
    pub(crate) fn get(&self, id: &SpiffeId) -> Option<&Arc<Agent>> {
        self.by_row.get(self.rows.get(id)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.by_row.values()
    }

    pub(crate) fn put(&mut self, row: i64, agent: Arc<Agent>) -> Option<Arc<Agent>> {
        let old = self.rows.insert(agent.id.clone(), row);
        let former = old.and_then(|old| self.by_row.remove(&old));
        self.by_row.insert(row, agent);
        former
    }

    pub(crate) fn row(&self, id: &SpiffeId) -> Option<i64> {
        self.rows.get(id).copied()
    }

    pub(crate) fn remove(&mut self, id: &SpiffeId) -> Option<Arc<Agent>> {
        self.by_row.remove(&self.rows.remove(id)?)
    }

    pub(crate) fn list(
        &self,
        filter: &AgentFilter,
        page: &Page,
    ) -> Result<Listing<Arc<Agent>>, BadPageToken> {
        let mut gathering = Gathering::new(page);
        for (&row, agent) in self.by_row.range(page.after()?.saturating_add(1)..) {
            if filter.matches(agent) && !gathering.offer(row, Arc::clone(agent)) {
                break;
            }
        }
        Ok(gathering.finish())
    }

    pub(crate) fn count(&self, filter: &AgentFilter) -> usize {
        if filter.is_empty() {
            return self.rows.len();
        }
        self.by_row
            .values()
            .filter(|agent| filter.matches(agent))
            .count()
    }
}
