//! The proof that an agent may have an entry's identity.

use std::ops::Deref;
use std::sync::Arc;

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;

/// An entry that an agent was found to be authorized for. Only [`super::Registry::authorized_entry`] makes one, so that
/// whatever takes it cannot be reached without the check.
#[derive(Debug, Clone)]
pub struct Authorized {
    entry: Arc<Entry>,
    /// None in tests of what takes a proof.
    agent: Option<SpiffeId>,
}

impl Authorized {
    pub(super) fn new(entry: Arc<Entry>, agent: &SpiffeId) -> Self {
        Self {
            entry,
            agent: Some(agent.clone()),
        }
    }

    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub(super) fn agent(&self) -> Option<&SpiffeId> {
        self.agent.as_ref()
    }

    /// As if the check had passed, for ever.
    #[cfg(test)]
    pub(crate) fn for_tests(entry: &Entry) -> Self {
        Self {
            entry: Arc::new(entry.clone()),
            agent: None,
        }
    }
}

impl Deref for Authorized {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}
