//! The entries that one agent has been told of, with counts of what they refer to.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

#[derive(Debug)]
pub(super) struct Told {
    agent: SpiffeId,
    entries: HashMap<Arc<str>, Arc<Entry>>,
    /// How many hang below each ID other than the agent's own.
    parents: HashMap<SpiffeId, usize>,
    /// How many federate with each trust domain.
    federated: HashMap<TrustDomain, usize>,
}

impl Told {
    pub(super) fn nothing(agent: SpiffeId) -> Self {
        Self {
            agent,
            entries: HashMap::new(),
            parents: HashMap::new(),
            federated: HashMap::new(),
        }
    }

    /// Forgets all; returns what it was.
    pub(super) fn take(&mut self) -> HashMap<Arc<str>, Arc<Entry>> {
        let former = std::mem::replace(self, Self::nothing(self.agent.clone()));
        former.entries
    }

    /// Remembers an entry; returns its former form.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        if entry.parent_id != self.agent {
            *self.parents.entry(entry.parent_id.clone()).or_default() += 1;
        }
        for name in &entry.federates_with {
            *self.federated.entry(name.clone()).or_default() += 1;
        }
        let former = self.entries.insert(Arc::clone(&entry.id), entry);
        if let Some(former) = &former {
            self.uncount(former);
        }
        former
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Arc<Entry>> {
        let former = self.entries.remove(id);
        if let Some(former) = &former {
            self.uncount(former);
        }
        former
    }

    fn uncount(&mut self, entry: &Entry) {
        take_one(&mut self.parents, &entry.parent_id);
        for name in &entry.federates_with {
            take_one(&mut self.federated, name);
        }
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// Whether any of them hangs below this ID.
    pub(super) fn has_below(&self, id: &SpiffeId) -> bool {
        self.parents.contains_key(id)
    }

    pub(super) fn federated(&self) -> impl Iterator<Item = &TrustDomain> {
        self.federated.keys()
    }
}

fn take_one<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
