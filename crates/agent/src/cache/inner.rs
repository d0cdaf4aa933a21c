//! What is behind the cache's lock: the tables, and who listens to which set of selectors.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::entry::Entry;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::watch;

use super::bundles::Bundles;
use super::entries::{self, EntryIndex};
use super::jwt::JwtCache;
use super::svids::Svids;
use super::update::{Identity, WorkloadUpdate};
use super::{CacheOptions, Delta};

/// How many sets that nobody listens to are kept for the next caller.
pub(super) const IDLE_SETS: usize = 1024;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: CacheOptions,
    pub(super) entries: EntryIndex,
    pub(super) bundles: Bundles,
    pub(super) svids: Svids,
    pub(super) tokens: JwtCache,
    pub(super) sets: HashMap<SelectorSet, Listeners>,
    pub(super) wanted: BTreeSet<Arc<str>>,
    pub(super) in_flight: BTreeSet<Arc<str>>,
}

/// The streams of one set of selectors.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) sender: watch::Sender<Arc<WorkloadUpdate>>,
    /// Somebody asked for X509-SVIDs, so they are to be issued and renewed.
    pub(super) wants_x509: bool,
}

/// What a delta changed, to find the sets that it concerns.
pub(super) struct Touched {
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) own_bundle: bool,
    pub(super) bundles: BTreeSet<TrustDomain>,
}

impl Touched {
    pub(super) fn nothing(&self) -> bool {
        self.entries.is_empty() && self.bundles.is_empty()
    }

    pub(super) fn concerns(&self, set: &SelectorSet, update: &WorkloadUpdate) -> bool {
        self.own_bundle
            || self
                .entries
                .iter()
                .any(|entry| entries::matches(entry, set))
            || update.entries.iter().any(|entry| {
                entry
                    .federates_with
                    .iter()
                    .any(|other| self.bundles.contains(other))
            })
    }
}

impl Inner {
    pub(super) fn listeners(&mut self, selectors: &SelectorSet, now: SystemTime) -> &mut Listeners {
        if !self.sets.contains_key(selectors) {
            if self.sets.len() >= IDLE_SETS {
                self.sets
                    .retain(|_, listeners| listeners.sender.receiver_count() > 0);
            }
            let update = self.update_of(selectors, now);
            self.sets.insert(
                selectors.clone(),
                Listeners {
                    sender: watch::Sender::new(Arc::new(update)),
                    wants_x509: false,
                },
            );
        }
        self.sets
            .entry(selectors.clone())
            .or_insert_with(|| Listeners {
                sender: watch::Sender::new(Arc::new(WorkloadUpdate::new(
                    Vec::new(),
                    Vec::new(),
                    None,
                    Vec::new(),
                ))),
                wants_x509: false,
            })
    }

    pub(super) fn update_of(&self, selectors: &SelectorSet, now: SystemTime) -> WorkloadUpdate {
        let entries = entries::without_repeated_hints(self.entries.matching(selectors));
        let identities = entries
            .iter()
            .filter_map(|entry| {
                let svid = self
                    .svids
                    .valid(&entry.id, now)
                    .filter(|svid| svid.spiffe_id == entry.spiffe_id)?;
                Some(Identity {
                    entry: Arc::clone(entry),
                    svid: svid.clone(),
                })
            })
            .collect();
        let own = self.bundles.get(&self.options.trust_domain).map(Arc::clone);
        let foreign: BTreeSet<&TrustDomain> = entries
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .filter(|other| **other != self.options.trust_domain)
            .collect();
        let federated = foreign
            .into_iter()
            .filter_map(|other| self.bundles.get(other).map(Arc::clone))
            .collect();
        WorkloadUpdate::new(entries, identities, own, federated)
    }

    pub(super) fn count_use(&mut self, selectors: &SelectorSet) {
        if let Some(listeners) = self.sets.get(selectors) {
            for identity in &listeners.sender.borrow().identities {
                self.svids.used(&identity.entry.id);
            }
        }
    }

    /// Marks what a set lacks as wanted; true if there is any.
    pub(super) fn want_svids_of(&mut self, selectors: &SelectorSet, now: SystemTime) -> bool {
        let Some(update) = self
            .sets
            .get(selectors)
            .map(|listeners| Arc::clone(&listeners.sender.borrow()))
        else {
            return false;
        };
        let mut missing = false;
        for entry in &update.entries {
            if self.svids.needs_issue(&entry.id, now) {
                missing |= self.want(&entry.id);
            }
        }
        missing
    }

    pub(super) fn want(&mut self, id: &Arc<str>) -> bool {
        !self.in_flight.contains(id) && self.wanted.insert(Arc::clone(id))
    }

    pub(super) fn is_held(&self, entry_id: &str) -> bool {
        self.sets.values().any(|listeners| {
            listeners.wants_x509
                && listeners.sender.receiver_count() > 0
                && listeners
                    .sender
                    .borrow()
                    .entries
                    .iter()
                    .any(|entry| *entry.id == *entry_id)
        })
    }

    /// Computes the sets that `concerned` names anew: those with streams are told if something changed, the others are
    /// forgotten. True if that made SVIDs wanted.
    pub(super) fn refresh(
        &mut self,
        now: SystemTime,
        concerned: impl Fn(&SelectorSet, &WorkloadUpdate) -> bool,
    ) -> bool {
        self.sets.retain(|set, listeners| {
            listeners.sender.receiver_count() > 0 || !concerned(set, &listeners.sender.borrow())
        });
        let stale: Vec<SelectorSet> = self
            .sets
            .iter()
            .filter(|(set, listeners)| concerned(set, &listeners.sender.borrow()))
            .map(|(set, _)| set.clone())
            .collect();
        let mut missing = false;
        for set in stale {
            let update = self.update_of(&set, now);
            let Some(listeners) = self.sets.get(&set) else {
                continue;
            };
            let wants_x509 = listeners.wants_x509;
            listeners.sender.send_if_modified(|known| {
                let differs = !known.says_the_same(&update);
                if differs {
                    *known = Arc::new(update);
                }
                differs
            });
            if wants_x509 {
                missing |= self.want_svids_of(&set, now);
            }
        }
        missing
    }

    pub(super) fn apply_delta(&mut self, delta: Delta) -> Touched {
        let mut touched = Touched {
            entries: Vec::new(),
            own_bundle: false,
            bundles: BTreeSet::new(),
        };
        for entry in delta.entries {
            if self
                .entries
                .get(&entry.id)
                .is_some_and(|known| *known == entry)
            {
                continue;
            }
            let old = self.entries.insert(Arc::clone(&entry));
            if let Some(old) = &old {
                self.entry_changed(old, &entry);
            }
            touched.entries.extend(old);
            touched.entries.push(entry);
        }
        for id in &delta.removed_entries {
            if let Some(old) = self.entries.remove(id) {
                self.svids.remove(id);
                self.wanted.remove(id);
                self.tokens
                    .forget(|spiffe_id, _| *spiffe_id == old.spiffe_id);
                touched.entries.push(old);
            }
        }
        for bundle in delta.bundles {
            let trust_domain = bundle.trust_domain.clone();
            if self.bundles.put(bundle) {
                touched.own_bundle |= trust_domain == self.options.trust_domain;
                touched.bundles.insert(trust_domain);
            }
        }
        for trust_domain in delta.removed_bundles {
            // The own bundle is only ever replaced: without it nobody could verify anybody.
            if trust_domain != self.options.trust_domain && self.bundles.remove(&trust_domain) {
                touched.bundles.insert(trust_domain);
            }
        }
        touched
    }

    /// An SVID for the same identity stays in use until its successor is there; for another identity it goes at once.
    pub(super) fn entry_changed(&mut self, old: &Entry, new: &Entry) {
        if old.spiffe_id == new.spiffe_id {
            if (old.revision_number, old.created_at) != (new.revision_number, new.created_at) {
                self.svids.mark_stale(&new.id);
                self.tokens
                    .forget(|spiffe_id, _| *spiffe_id == old.spiffe_id);
            }
        } else {
            self.svids.remove(&old.id);
            self.tokens
                .forget(|spiffe_id, _| *spiffe_id == old.spiffe_id);
        }
    }

    pub(super) fn make_room(&mut self) -> Vec<Arc<str>> {
        let limit = self.options.x509_svids;
        if self.svids.len() <= limit {
            return Vec::new();
        }
        let held: BTreeSet<Arc<str>> = self
            .sets
            .values()
            .filter(|listeners| listeners.wants_x509 && listeners.sender.receiver_count() > 0)
            .flat_map(|listeners| {
                listeners
                    .sender
                    .borrow()
                    .entries
                    .iter()
                    .map(|entry| Arc::clone(&entry.id))
                    .collect::<Vec<_>>()
            })
            .collect();
        self.svids.evict(limit, |id| held.contains(id))
    }
}
