//! What this node knows: entries, SVIDs, bundles, and who is listening.
//!
//! Workload streams read it and hear of changes by one `watch` channel per set of selectors. It asks nobody for
//! anything: what it lacks it shows by [`Cache::take_wanted`] and one notification, and the sync task fills it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use spiffe::bundle::Bundle;
use spiffe::clock::Clock;
use spiffe::entry::Entry;
use spiffe::random::{Random, unit_interval};
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::{Notify, watch};

pub(crate) mod bundles;
pub(crate) mod entries;
pub(crate) mod jwt;
pub(crate) mod keys;
pub(crate) mod svids;
pub(crate) mod update;

use bundles::Bundles;
use entries::EntryIndex;
use jwt::{Cached, JwtCache, JwtKey, JwtToken};
use svids::{Due, IssuedSvid, RotationRule, Svids};
use update::{Identity, WorkloadUpdate};

/// How many sets that nobody listens to are kept for the next caller.
const IDLE_SETS: usize = 1024;

/// Sizes and rules of a cache.
#[derive(Debug, Clone)]
pub(crate) struct CacheOptions {
    pub(crate) trust_domain: TrustDomain,
    /// Kept X509-SVIDs; those that a stream holds may go over it.
    pub(crate) x509_svids: usize,
    /// Kept JWT-SVIDs, never exceeded.
    pub(crate) jwt_svids: usize,
    pub(crate) rotation: RotationRule,
}

/// A change told by the server.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) removed_entries: Vec<Arc<str>>,
    pub(crate) bundles: Vec<Bundle>,
    pub(crate) removed_bundles: Vec<TrustDomain>,
}

impl Delta {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.removed_entries.is_empty() && self.bundles.is_empty() && self.removed_bundles.is_empty()
    }
}

/// Counts for the debug API and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) entries: usize,
    pub(crate) x509_svids: usize,
    pub(crate) jwt_svids: usize,
    pub(crate) bundles: usize,
}

/// The shared state. All methods are quick and none waits.
#[derive(Debug)]
pub(crate) struct Cache {
    inner: Mutex<Inner>,
    wanted: Notify,
    changed: Notify,
    ready: watch::Sender<bool>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

#[derive(Debug)]
struct Inner {
    options: CacheOptions,
    entries: EntryIndex,
    bundles: Bundles,
    svids: Svids,
    tokens: JwtCache,
    sets: HashMap<SelectorSet, Listeners>,
    wanted: BTreeSet<Arc<str>>,
    in_flight: BTreeSet<Arc<str>>,
}

/// The streams of one set of selectors.
#[derive(Debug)]
struct Listeners {
    sender: watch::Sender<Arc<WorkloadUpdate>>,
    /// Somebody asked for X509-SVIDs, so they are to be issued and renewed.
    wants_x509: bool,
}

impl Cache {
    pub(crate) fn new(options: CacheOptions, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        let inner = Inner {
            tokens: JwtCache::new(options.jwt_svids),
            options,
            entries: EntryIndex::default(),
            bundles: Bundles::default(),
            svids: Svids::default(),
            sets: HashMap::new(),
            wanted: BTreeSet::new(),
            in_flight: BTreeSet::new(),
        };
        Self { inner: Mutex::new(inner), wanted: Notify::new(), changed: Notify::new(), ready: watch::Sender::new(false), clock, random }
    }

    /// Turns true when entries and the own bundle are known, from the server or from disk.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(crate) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Listens to what a set of selectors is entitled to, its X509-SVIDs included: what is missing becomes wanted.
    pub(crate) fn subscribe(&self, selectors: &SelectorSet) -> watch::Receiver<Arc<WorkloadUpdate>> {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.listeners(selectors, now).wants_x509 = true;
        let missing = inner.want_svids_of(selectors, now);
        let receiver = inner.listeners(selectors, now).sender.subscribe();
        drop(inner);
        if missing {
            self.wanted.notify_one();
        }
        receiver
    }

    /// Listens for bundles and entries only; causes no issuance.
    pub(crate) fn subscribe_bundles(&self, selectors: &SelectorSet) -> watch::Receiver<Arc<WorkloadUpdate>> {
        self.lock().listeners(selectors, self.clock.now()).sender.subscribe()
    }

    /// What a set of selectors is entitled to now; causes no issuance.
    pub(crate) fn current(&self, selectors: &SelectorSet) -> Arc<WorkloadUpdate> {
        Arc::clone(&self.lock().listeners(selectors, self.clock.now()).sender.borrow())
    }

    /// Takes in what the server told.
    pub(crate) fn apply(&self, delta: Delta) {
        let now = self.clock.now();
        let mut inner = self.lock();
        let touched = inner.apply_delta(delta);
        let missing = inner.refresh(now, |set, update| touched.concerns(set, update));
        drop(inner);
        self.changed.notify_one();
        if missing {
            self.wanted.notify_one();
        }
    }

    /// Takes up to `limit` entries whose SVID somebody waits for. Each is to be answered by [`Self::put_svids`] or
    /// [`Self::failed`].
    pub(crate) fn take_wanted(&self, limit: usize) -> Vec<Arc<Entry>> {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(id) = inner.wanted.pop_first() else { break };
            if let Some(entry) = inner.entries.get(&id).map(Arc::clone) {
                inner.in_flight.insert(id);
                taken.push(entry);
            }
        }
        taken
    }

    /// Waits until something is wanted.
    pub(crate) async fn wanting(&self) {
        self.wanted.notified().await;
    }

    /// Waits until there is something new to be kept on disk.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Keeps issued SVIDs and tells those who wait. An SVID whose entry is gone, or names another identity by now, is
    /// dropped.
    pub(crate) fn put_svids(&self, issued: Vec<IssuedSvid>) {
        let now = self.clock.now();
        let mut inner = self.lock();
        let mut touched = BTreeSet::new();
        for svid in issued {
            inner.in_flight.remove(&svid.entry_id);
            let Some(entry) = inner.entries.get(&svid.entry_id).filter(|entry| entry.spiffe_id == svid.spiffe_id) else { continue };
            let outdated = entry.revision_number != svid.revision;
            let id = Arc::clone(&svid.entry_id);
            let renew_at = inner.options.rotation.renew_at(svid.not_before, svid.not_after, unit_interval(&*self.random));
            inner.svids.put(svid, renew_at);
            if outdated {
                inner.svids.mark_stale(&id);
            }
            touched.insert(id);
        }
        let gone = inner.make_room();
        touched.extend(gone);
        let missing = inner.refresh(now, |_, update| update.entries.iter().any(|entry| touched.contains(&entry.id)));
        drop(inner);
        self.changed.notify_one();
        if missing {
            self.wanted.notify_one();
        }
    }

    /// The server would not or could not issue these: they may be wanted again after `retry_in`.
    pub(crate) fn failed(&self, entry_ids: &[Arc<str>], retry_in: Duration) {
        let retry_at = self.clock.now() + retry_in;
        let mut inner = self.lock();
        for id in entry_ids {
            inner.in_flight.remove(id);
            inner.svids.postpone(id, retry_at);
        }
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn next_due(&self) -> Option<SystemTime> {
        self.lock().svids.next_due()
    }

    /// Renews and drops what is due.
    pub(crate) fn tick(&self) {
        let now = self.clock.now();
        let mut inner = self.lock();
        let mut expired = BTreeSet::new();
        let mut missing = false;
        for due in inner.svids.take_due(now) {
            match due {
                Due::Renew(id, used) if used || inner.is_held(&id) => missing |= inner.want(&id),
                Due::Retry(id) if inner.is_held(&id) => missing |= inner.want(&id),
                Due::Renew(..) | Due::Retry(_) => {}
                Due::Expired(id) => {
                    expired.insert(id);
                }
            }
        }
        missing |= inner.refresh(now, |_, update| update.identities.iter().any(|identity| expired.contains(&identity.entry.id)));
        drop(inner);
        if missing {
            self.wanted.notify_one();
        }
    }

    /// Renews the SVIDs that these authorities signed, and forgets the tokens of these keys.
    pub(crate) fn taint(&self, x509_key_ids: &BTreeSet<Vec<u8>>, jwt_key_ids: &BTreeSet<String>) {
        let mut inner = self.lock();
        let mut missing = false;
        for id in inner.svids.signed_by(x509_key_ids) {
            inner.svids.mark_stale(&id);
            missing |= inner.want(&id);
        }
        inner.tokens.forget(|_, token| token.key_id.as_ref().is_some_and(|key_id| jwt_key_ids.contains(key_id)));
        drop(inner);
        if missing {
            self.wanted.notify_one();
        }
    }

    pub(crate) fn jwt(&self, key: &JwtKey) -> Cached {
        self.lock().tokens.get(key, self.clock.now())
    }

    pub(crate) fn put_jwt(&self, key: JwtKey, token: Arc<JwtToken>) {
        self.lock().tokens.put(key, token);
    }

    pub(crate) fn counts(&self) -> Counts {
        let inner = self.lock();
        Counts { entries: inner.entries.len(), x509_svids: inner.svids.len(), jwt_svids: inner.tokens.len(), bundles: inner.bundles.iter().count() }
    }

    /// The entry that comes nearest to matching, and how many selectors it lacks: for the operator's log.
    pub(crate) fn nearest(&self, selectors: &SelectorSet) -> Option<(Arc<Entry>, usize)> {
        self.lock().entries.nearest(selectors).map(|(entry, lacking)| (Arc::clone(entry), lacking))
    }

    /// Everything worth keeping over a restart.
    pub(crate) fn snapshot(&self) -> (Vec<Arc<Entry>>, Vec<Arc<Bundle>>, Vec<IssuedSvid>) {
        let inner = self.lock();
        (
            inner.entries.iter().cloned().collect(),
            inner.bundles.iter().map(|bundle| Arc::clone(&bundle.bundle)).collect(),
            inner.svids.iter().cloned().collect(),
        )
    }

    /// The known entries, by ID.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().entries.iter().cloned().collect()
    }

    /// The known bundles.
    pub(crate) fn bundles(&self) -> Vec<Arc<Bundle>> {
        self.lock().bundles.iter().map(|bundle| Arc::clone(&bundle.bundle)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a delta changed, to find the sets that it concerns.
struct Touched {
    entries: Vec<Arc<Entry>>,
    own_bundle: bool,
    bundles: BTreeSet<TrustDomain>,
}

impl Touched {
    fn concerns(&self, set: &SelectorSet, update: &WorkloadUpdate) -> bool {
        self.own_bundle
            || self.entries.iter().any(|entry| entries::matches(entry, set))
            || update.entries.iter().any(|entry| entry.federates_with.iter().any(|other| self.bundles.contains(other)))
    }
}

impl Inner {
    fn listeners(&mut self, selectors: &SelectorSet, now: SystemTime) -> &mut Listeners {
        if !self.sets.contains_key(selectors) {
            if self.sets.len() >= IDLE_SETS {
                self.sets.retain(|_, listeners| listeners.sender.receiver_count() > 0);
            }
            let update = self.update_of(selectors, now);
            self.sets.insert(selectors.clone(), Listeners { sender: watch::Sender::new(Arc::new(update)), wants_x509: false });
        }
        self.sets.entry(selectors.clone()).or_insert_with(|| Listeners {
            sender: watch::Sender::new(Arc::new(WorkloadUpdate::new(Vec::new(), Vec::new(), None, Vec::new()))),
            wants_x509: false,
        })
    }

    fn update_of(&mut self, selectors: &SelectorSet, now: SystemTime) -> WorkloadUpdate {
        let entries = entries::without_repeated_hints(self.entries.matching(selectors));
        let identities = entries
            .iter()
            .filter_map(|entry| {
                let svid = self.svids.valid(&entry.id, now).filter(|svid| svid.spiffe_id == entry.spiffe_id)?;
                Some(Identity { entry: Arc::clone(entry), svid: svid.clone() })
            })
            .collect();
        let own = self.bundles.get(&self.options.trust_domain).map(Arc::clone);
        let foreign: BTreeSet<&TrustDomain> = entries.iter().flat_map(|entry| &entry.federates_with).filter(|other| **other != self.options.trust_domain).collect();
        let federated = foreign.into_iter().filter_map(|other| self.bundles.get(other).map(Arc::clone)).collect();
        WorkloadUpdate::new(entries, identities, own, federated)
    }

    /// Marks what a set lacks as wanted; true if there is any. Asking counts as a use of what it has.
    fn want_svids_of(&mut self, selectors: &SelectorSet, now: SystemTime) -> bool {
        let Some(update) = self.sets.get(selectors).map(|listeners| Arc::clone(&listeners.sender.borrow())) else { return false };
        let mut missing = false;
        for entry in &update.entries {
            let _used = self.svids.valid(&entry.id, now).is_some();
            if self.svids.needs_issue(&entry.id, now) {
                missing |= self.want(&entry.id);
            }
        }
        missing
    }

    fn want(&mut self, id: &Arc<str>) -> bool {
        !self.in_flight.contains(id) && self.wanted.insert(Arc::clone(id))
    }

    fn is_held(&self, entry_id: &str) -> bool {
        self.sets.values().any(|listeners| {
            listeners.wants_x509 && listeners.sender.receiver_count() > 0 && listeners.sender.borrow().entries.iter().any(|entry| *entry.id == *entry_id)
        })
    }

    /// Computes the sets that `concerned` names anew: those with streams are told if something changed, the others are
    /// forgotten. True if that made SVIDs wanted.
    fn refresh(&mut self, now: SystemTime, concerned: impl Fn(&SelectorSet, &WorkloadUpdate) -> bool) -> bool {
        self.sets.retain(|set, listeners| listeners.sender.receiver_count() > 0 || !concerned(set, &listeners.sender.borrow()));
        let stale: Vec<SelectorSet> = self.sets.iter().filter(|(set, listeners)| concerned(set, &listeners.sender.borrow())).map(|(set, _)| set.clone()).collect();
        let mut missing = false;
        for set in stale {
            let update = self.update_of(&set, now);
            let Some(listeners) = self.sets.get(&set) else { continue };
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

    fn apply_delta(&mut self, delta: Delta) -> Touched {
        let mut touched = Touched { entries: Vec::new(), own_bundle: false, bundles: BTreeSet::new() };
        for entry in delta.entries {
            if self.entries.get(&entry.id).is_some_and(|known| *known == entry) {
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
                self.tokens.forget(|spiffe_id, _| *spiffe_id == old.spiffe_id);
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
    fn entry_changed(&mut self, old: &Entry, new: &Entry) {
        if old.spiffe_id == new.spiffe_id {
            if (old.revision_number, old.created_at) != (new.revision_number, new.created_at) {
                self.svids.mark_stale(&new.id);
                self.tokens.forget(|spiffe_id, _| *spiffe_id == old.spiffe_id);
            }
        } else {
            self.svids.remove(&old.id);
            self.tokens.forget(|spiffe_id, _| *spiffe_id == old.spiffe_id);
        }
    }

    fn make_room(&mut self) -> Vec<Arc<str>> {
        let limit = self.options.x509_svids;
        if self.svids.len() <= limit {
            return Vec::new();
        }
        let held: BTreeSet<Arc<str>> = self
            .sets
            .values()
            .filter(|listeners| listeners.wants_x509 && listeners.sender.receiver_count() > 0)
            .flat_map(|listeners| listeners.sender.borrow().entries.iter().map(|entry| Arc::clone(&entry.id)).collect::<Vec<_>>())
            .collect();
        self.svids.evict(limit, |id| held.contains(id))
    }
}

#[cfg(test)]
mod tests;
