//! Which entries a change touches, and which agents are above an entry.
//!
//! A change of one entry may authorize or withdraw others: its children by parent ID, and their descendants. Edges that the
//! same batch of changes has removed are followed too, so that what was reached through them is found and withdrawn. The
//! answers may name too much, never too little: the registry decides again for each entry what an agent is sent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;

use crate::registry::{Change, Kind, Object, Snapshot};

/// Entries named for one change before its agents are sent the whole list instead.
pub(super) const MAX_NAMED: usize = 4_096;
/// Steps from an entry up to the agents before every agent is taken to be above it.
const CLIMB_LIMIT: usize = 256;

/// Reads one batch of changes against the registry as it is after them.
pub(super) struct Affected<'a> {
    snapshot: &'a Snapshot<'a>,
    server: SpiffeId,
    /// The previous versions of changed entries by SPIFFE ID: edges upwards that may be gone.
    former_by_id: HashMap<&'a SpiffeId, Vec<&'a Entry>>,
    /// The same by parent ID: edges downwards that may be gone.
    former_by_parent: HashMap<&'a SpiffeId, Vec<&'a Entry>>,
}

/// The entries that a change touches.
#[derive(Debug, Clone)]
pub(super) enum Touched {
    Entries(Arc<[Arc<str>]>),
    /// More than are worth naming.
    TooMany,
}

/// Who may be authorized for the entries with a certain parent.
#[derive(Debug)]
pub(super) enum Ancestors<'a> {
    /// The agents among these IDs, and the nodes that have all selectors of one of these aliases.
    Some {
        ids: Vec<&'a SpiffeId>,
        aliases: Vec<&'a Entry>,
    },
    /// The search upwards was cut off at [`CLIMB_LIMIT`].
    All,
}

impl<'a> Affected<'a> {
    pub(super) fn new(snapshot: &'a Snapshot<'a>, server: SpiffeId, changes: &'a [Change]) -> Self {
        let mut affected = Self {
            snapshot,
            server,
            former_by_id: HashMap::new(),
            former_by_parent: HashMap::new(),
        };
        for change in changes {
            if let (Kind::Entry, Some(Object::Entry(old))) = (change.kind, &change.old) {
                affected
                    .former_by_id
                    .entry(&old.spiffe_id)
                    .or_default()
                    .push(old);
                affected
                    .former_by_parent
                    .entry(&old.parent_id)
                    .or_default()
                    .push(old);
            }
        }
        affected
    }

    /// Whether the entry is a node alias: its SPIFFE ID names the nodes that have its selectors.
    pub(super) fn is_alias(&self, entry: &Entry) -> bool {
        entry.parent_id == self.server
    }

    /// The changed entry itself, and its descendants when the change may have added or removed an edge.
    pub(super) fn touched(
        &self,
        key: &Arc<str>,
        old: Option<&Entry>,
        new: Option<&Entry>,
    ) -> Touched {
        if let (Some(old), Some(new)) = (old, new)
            && leads_the_same_way(old, new)
        {
            return Touched::Entries([Arc::clone(key)].into());
        }
        let from: Vec<&SpiffeId> = [old, new]
            .into_iter()
            .flatten()
            .map(|entry| &entry.spiffe_id)
            .collect();
        self.with_below(key, from)
    }

    /// An expired entry, and everything below it.
    pub(super) fn touched_by_expiry(&self, entry: &Entry) -> Touched {
        self.with_below(&entry.id, vec![&entry.spiffe_id])
    }

    /// The entry and its descendants, depth first. The order does not matter, since each of them is looked up again before it
    /// is sent. `seen` ends cycles of parents, which the API allows, and the server's own ID ends the search: what has it as its
    /// parent are the node aliases, which no entry reaches.
    fn with_below(&self, key: &Arc<str>, from: Vec<&SpiffeId>) -> Touched {
        let mut named = vec![Arc::clone(key)];
        let mut seen: HashSet<SpiffeId> = HashSet::new();
        let mut pending: Vec<SpiffeId> = from.into_iter().cloned().collect();
        while let Some(parent) = pending.pop() {
            if parent == self.server || !seen.insert(parent.clone()) {
                continue;
            }
            let former = self
                .former_by_parent
                .get(&parent)
                .into_iter()
                .flatten()
                .copied();
            let present = self.snapshot.with_parent(&parent).map(Arc::as_ref);
            for child in present.chain(former) {
                if named.len() >= MAX_NAMED {
                    return Touched::TooMany;
                }
                named.push(Arc::clone(&child.id));
                pending.push(child.spiffe_id.clone());
            }
        }
        Touched::Entries(named.into())
    }

    /// Climbs from `parent` to the agents. Expired entries are followed: the answer also serves to withdraw entries.
    ///
    /// A parent ID names an agent, or is the SPIFFE ID of other entries. So every ID on the way up is returned as a candidate,
    /// and the caller compares it with the agents that have subscriptions.
    pub(super) fn ancestors<'b>(&'b self, parent: &'b SpiffeId) -> Ancestors<'b> {
        let (mut ids, mut aliases, mut pending) = (Vec::new(), Vec::new(), vec![parent]);
        while let Some(id) = pending.pop() {
            if ids.contains(&id) {
                continue;
            }
            if ids.len() >= CLIMB_LIMIT {
                return Ancestors::All;
            }
            ids.push(id);
            let former = self.former_by_id.get(id).into_iter().flatten().copied();
            let present = self.snapshot.with_spiffe_id(id).map(Arc::as_ref);
            for entry in present.chain(former) {
                if self.is_alias(entry) {
                    aliases.push(entry);
                } else {
                    pending.push(&entry.parent_id);
                }
            }
        }
        Ancestors::Some { ids, aliases }
    }
}

/// Whether an update leaves unchanged which agents the entry reaches and what is reached through it.
fn leads_the_same_way(old: &Entry, new: &Entry) -> bool {
    old.parent_id == new.parent_id
        && old.spiffe_id == new.spiffe_id
        && old.selectors == new.selectors
        && old.expires_at == new.expires_at
}
