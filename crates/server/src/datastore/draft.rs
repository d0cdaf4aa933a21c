//! The next revision in the making: committed state below, the group's own writes above. Operations read and write
//! here, so that each sees what those before it in the same transaction did.
//! An operation checks first and writes last: one that refuses has left nothing.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use crate::registry::{Agent, Kind, Object, State, Unknown, Write};

/// Rows are numbered within the revision that made them, so that numbers ascend without a counter of their own.
const ROWS_PER_REVISION_BITS: u32 = 24;

/// A row to write: the statement's parameters. No body means delete.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) key: Arc<str>,
    pub(super) row: i64,
    pub(super) object: Option<Object>,
    /// Members of the row that a newer version wrote.
    pub(super) unknown: Option<Arc<Unknown>>,
    /// An existing entry's similarity changes, perhaps to one that another row of this commit still has.
    pub(super) moves: bool,
}

/// An entry as a key: equal to those similar to it.
#[derive(Debug)]
struct SimilarKey(Arc<Entry>);

impl PartialEq for SimilarKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_similar_to(&other.0)
    }
}

impl Eq for SimilarKey {}

impl Hash for SimilarKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.0.spiffe_id, &self.0.parent_id, &self.0.selectors).hash(state);
    }
}

#[derive(Debug)]
pub(super) struct Draft<'a> {
    state: &'a State,
    revision: u64,
    writes: Vec<Write>,
    /// Where in `writes` an object's latest form is.
    overlay: HashMap<Kind, HashMap<Arc<str>, usize>>,
    similarity: HashMap<SimilarKey, Arc<str>>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &'a State, revision: u64) -> Self {
        Self {
            state,
            revision,
            writes: Vec::new(),
            overlay: HashMap::new(),
            similarity: HashMap::new(),
        }
    }

    /// The revision that this draft becomes, as an entry's revision number.
    pub(super) fn revision(&self) -> i64 {
        i64::try_from(self.revision).unwrap_or(i64::MAX)
    }

    fn written(&self, kind: Kind, key: &str) -> Option<&Write> {
        self.writes.get(*self.overlay.get(&kind)?.get(key)?)
    }

    pub(super) fn get(&self, kind: Kind, key: &str) -> Option<Object> {
        match self.written(kind, key) {
            Some(write) => write.object.clone(),
            None => self.state.get(kind, key),
        }
    }

    pub(super) fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        match self.get(Kind::Entry, id) {
            Some(Object::Entry(entry)) => Some(entry),
            _ => None,
        }
    }

    pub(super) fn agent(&self, id: &SpiffeId) -> Option<Arc<Agent>> {
        match self.get(Kind::Agent, id.as_str()) {
            Some(Object::Agent(agent)) => Some(agent),
            _ => None,
        }
    }

    pub(super) fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        match self.get(Kind::Bundle, trust_domain.as_str()) {
            Some(Object::Bundle(bundle)) => Some(bundle),
            _ => None,
        }
    }

    /// An entry of the same parent, SPIFFE ID and selectors.
    pub(super) fn similar(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let similar = |other: &Arc<Entry>| other.is_similar_to(entry);
        if let Some(other) = self.state.entries.similar(entry)
            && let Some(other) = self.entry(&other.id).filter(similar)
        {
            return Some(other);
        }
        if self.similarity.is_empty() {
            return None;
        }
        self.entry(self.similarity.get(&SimilarKey(Arc::clone(entry)))?)
            .filter(similar)
    }

    /// The entries of this draft that please `wanted`. Looks at every entry there is.
    pub(super) fn entries_where(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        let committed = self
            .state
            .entries
            .iter()
            .filter(|entry| self.written(Kind::Entry, &entry.id).is_none());
        let mut found: Vec<_> = committed.filter(|entry| wanted(entry)).cloned().collect();
        for (place, write) in self.writes.iter().enumerate() {
            if let Some(Object::Entry(entry)) = &write.object
                && self
                    .overlay
                    .get(&Kind::Entry)
                    .and_then(|keys| keys.get(&entry.id))
                    == Some(&place)
                && wanted(entry)
            {
                found.push(Arc::clone(entry));
            }
        }
        found
    }

    /// The entries under `parent` that please `wanted`.
    pub(super) fn entries_under(
        &self,
        parent: &SpiffeId,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Vec<Arc<Entry>> {
        let committed = self
            .state
            .entries
            .with_parent(parent)
            .filter_map(|entry| self.entry(&entry.id));
        let mut found: Vec<_> = committed.filter(|entry| wanted(entry)).collect();
        let new = self.writes.iter().filter_map(|write| match &write.object {
            Some(Object::Entry(entry)) if entry.parent_id == *parent => self.entry(&entry.id),
            _ => None,
        });
        for entry in new.filter(|entry| wanted(entry)) {
            if found.iter().all(|other| other.id != entry.id) {
                found.push(entry);
            }
        }
        found
    }

    /// The committed state, for looks at objects that no operation of the same group touches in between.
    pub(super) fn committed(&self) -> &'a State {
        self.state
    }

    pub(super) fn put(&mut self, object: Object) {
        let key: Arc<str> = match &object {
            Object::Entry(entry) => {
                self.similarity
                    .insert(SimilarKey(Arc::clone(entry)), Arc::clone(&entry.id));
                Arc::clone(&entry.id)
            }
            other => Arc::from(other.key()),
        };
        self.write(object.kind(), key, Some(object));
    }

    pub(super) fn delete(&mut self, kind: Kind, key: &str) {
        self.write(kind, Arc::from(key), None);
    }

    fn write(&mut self, kind: Kind, key: Arc<str>, object: Option<Object>) {
        let place = self.writes.len();
        let row = i64::try_from((self.revision << ROWS_PER_REVISION_BITS) | place as u64)
            .unwrap_or(i64::MAX);
        self.overlay
            .entry(kind)
            .or_default()
            .insert(Arc::clone(&key), place);
        self.writes.push(Write {
            kind,
            key,
            row,
            object,
            unknown: None,
            revision: self.revision,
        });
    }

    /// What to tell the database and then the registry: each object's last form, in the order of the last writes.
    pub(super) fn finish(self) -> (Vec<Row>, Vec<Write>) {
        let Self {
            state,
            writes,
            overlay,
            ..
        } = self;
        let last = |place: usize, write: &Write| {
            overlay
                .get(&write.kind)
                .and_then(|keys| keys.get(&write.key))
                == Some(&place)
        };
        let mut rows = Vec::with_capacity(writes.len());
        let mut kept = Vec::with_capacity(writes.len());
        for (place, write) in writes.iter().enumerate() {
            if !last(place, write) {
                continue;
            }
            let old = state.get(write.kind, &write.key);
            if old == write.object {
                continue;
            }
            let moves = match (&write.object, &old) {
                (Some(Object::Entry(new)), Some(Object::Entry(old))) => !new.is_similar_to(old),
                _ => false,
            };
            let Write { kind, row, .. } = *write;
            // An object that is there keeps its place, in the database as well.
            let row = state.row(kind, &write.key).unwrap_or(row);
            let unknown = match &write.object {
                Some(_) => state.unknown(kind, &write.key),
                None => None,
            };
            rows.push(Row {
                kind,
                key: Arc::clone(&write.key),
                row,
                object: write.object.clone(),
                unknown: unknown.clone(),
                moves,
            });
            kept.push(Write {
                row,
                unknown,
                ..write.clone()
            });
        }
        (rows, kept)
    }
}
