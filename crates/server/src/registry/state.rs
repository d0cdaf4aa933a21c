//! The whole working state at one revision. Changed only by committed writes, in commit order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use super::agents::AgentTable;
use super::changes::ChangeLog;
use super::cursor::Cursor;
use super::deleted::DeletedEntries;
use super::entries::EntryTable;
use super::records::{
    Change, FederationRelationship, Journal, Kind, Lease, Object, Unknown, Write,
};
use super::tokens::TokenTable;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cursor: Cursor,
    pub(crate) entries: EntryTable,
    pub(crate) agents: AgentTable,
    pub(crate) bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    pub(crate) relationships: BTreeMap<TrustDomain, Arc<FederationRelationship>>,
    pub(crate) tokens: TokenTable,
    pub(crate) journals: BTreeMap<String, Arc<Journal>>,
    pub(crate) leases: BTreeMap<String, Arc<Lease>>,
    pub(crate) changes: ChangeLog,
    pub(crate) deleted_entries: DeletedEntries,
    /// Only of objects that have any: there are none unless servers of several versions share the database.
    unknown: HashMap<(Kind, Arc<str>), Arc<Unknown>>,
}

impl State {
    pub(crate) fn empty(trust_domain: &TrustDomain, cursor: Cursor) -> Self {
        Self {
            cursor,
            entries: EntryTable::new(SpiffeId::server(trust_domain)),
            agents: AgentTable::default(),
            bundles: BTreeMap::new(),
            relationships: BTreeMap::new(),
            tokens: TokenTable::default(),
            journals: BTreeMap::new(),
            leases: BTreeMap::new(),
            changes: ChangeLog::starting_at(cursor),
            deleted_entries: DeletedEntries::default(),
            unknown: HashMap::new(),
        }
    }

    /// The members of an object's row that this version does not know.
    pub(crate) fn unknown(&self, kind: Kind, key: &Arc<str>) -> Option<Arc<Unknown>> {
        if self.unknown.is_empty() {
            return None;
        }
        self.unknown.get(&(kind, Arc::clone(key))).cloned()
    }

    pub(crate) fn keep_unknown(&mut self, kind: Kind, key: &str, unknown: Option<Arc<Unknown>>) {
        match unknown {
            Some(unknown) => {
                self.unknown.insert((kind, Arc::from(key)), unknown);
            }
            None if self.unknown.is_empty() => {}
            None => {
                self.unknown.remove(&(kind, Arc::from(key)));
            }
        }
    }

    pub(crate) fn get(&self, kind: Kind, key: &str) -> Option<Object> {
        match kind {
            Kind::Entry => self
                .entries
                .get(key)
                .map(|slot| Object::Entry(Arc::clone(&slot.entry))),
            Kind::Agent => {
                let id = SpiffeId::parse(key).ok()?;
                self.agents.get(&id).cloned().map(Object::Agent)
            }
            Kind::Bundle => {
                let name = TrustDomain::parse(key).ok()?;
                self.bundles.get(&name).cloned().map(Object::Bundle)
            }
            Kind::FederationRelationship => {
                let name = TrustDomain::parse(key).ok()?;
                self.relationships
                    .get(&name)
                    .cloned()
                    .map(Object::FederationRelationship)
            }
            Kind::JoinToken => self.tokens.get(key).cloned().map(Object::JoinToken),
            Kind::Journal => self.journals.get(key).cloned().map(Object::Journal),
            Kind::Lease => self.leases.get(key).cloned().map(Object::Lease),
        }
    }

    /// Inserts or replaces one object without an entry in the change log, as a load does. Returns the previous one.
    pub(crate) fn put(&mut self, row: i64, object: Object) -> Option<Object> {
        match object {
            Object::Entry(entry) => self.entries.put(row, entry).map(Object::Entry),
            Object::Agent(agent) => self.agents.put(row, agent).map(Object::Agent),
            Object::Bundle(bundle) => self
                .bundles
                .insert(bundle.trust_domain.clone(), bundle)
                .map(Object::Bundle),
            Object::FederationRelationship(relationship) => self
                .relationships
                .insert(relationship.trust_domain.clone(), relationship)
                .map(Object::FederationRelationship),
            Object::JoinToken(token) => self.tokens.put(token).map(Object::JoinToken),
            Object::Journal(journal) => self
                .journals
                .insert(journal.id.clone(), journal)
                .map(Object::Journal),
            Object::Lease(lease) => self
                .leases
                .insert(lease.name.clone(), lease)
                .map(Object::Lease),
        }
    }

    fn remove(&mut self, kind: Kind, key: &str) -> Option<Object> {
        match kind {
            Kind::Entry => self
                .entries
                .remove(key)
                .map(|slot| Object::Entry(slot.entry)),
            Kind::Agent => self
                .agents
                .remove(&SpiffeId::parse(key).ok()?)
                .map(Object::Agent),
            Kind::Bundle => self
                .bundles
                .remove(&TrustDomain::parse(key).ok()?)
                .map(Object::Bundle),
            Kind::FederationRelationship => self
                .relationships
                .remove(&TrustDomain::parse(key).ok()?)
                .map(Object::FederationRelationship),
            Kind::JoinToken => self.tokens.remove(key).map(Object::JoinToken),
            Kind::Journal => self.journals.remove(key).map(Object::Journal),
            Kind::Lease => self.leases.remove(key).map(Object::Lease),
        }
    }

    /// Completes a load: this state is the snapshot at `cursor`.
    pub(crate) fn starts_at(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.changes = ChangeLog::starting_at(cursor);
    }

    /// Moves to the last of the revisions `passed` by the writes that lead there. A follower may apply several revisions at
    /// once; each is noted, so that an agent whose cursor is any of them can continue.
    pub(crate) fn apply(&mut self, passed: &[Cursor], writes: Vec<Write>) {
        for write in writes {
            let new = write.object.clone();
            self.keep_unknown(write.kind, &write.key, write.unknown);
            if write.kind == Kind::Entry && new.is_none() {
                self.deleted_entries.insert(Arc::clone(&write.key));
            }
            let old = match write.object {
                Some(object) => self.put(write.row, object),
                None => self.remove(write.kind, &write.key),
            };
            // A write that stores what is there already (a repeated call, or a lost answer) wakes nobody.
            if old != new {
                self.changes.push(Change {
                    revision: write.revision,
                    kind: write.kind,
                    key: write.key,
                    old,
                    new,
                });
            }
        }
        for cursor in passed {
            self.changes.pass(*cursor);
            self.cursor = *cursor;
        }
    }

    /// The row of an object whose listings are ordered by it.
    pub(crate) fn row(&self, kind: Kind, key: &str) -> Option<i64> {
        match kind {
            Kind::Entry => self.entries.get(key).map(|slot| slot.row),
            Kind::Agent => self.agents.row(&SpiffeId::parse(key).ok()?),
            _ => None,
        }
    }
}
