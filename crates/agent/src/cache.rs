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
mod inner;
pub(crate) mod jwt;
pub(crate) mod keys;
pub(crate) mod svids;
pub(crate) mod update;

use bundles::Bundles;
use entries::EntryIndex;
use inner::Inner;
use jwt::{Cached, JwtCache, JwtKey, JwtToken};
use svids::{Due, IssuedSvid, RotationRule, Svids};
use update::WorkloadUpdate;

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

/// Counts for the debug API and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) entries: usize,
    pub(crate) x509_svids: usize,
    pub(crate) jwt_svids: usize,
    pub(crate) bundles: usize,
}

/// What is worth keeping over a restart.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) bundles: Vec<Arc<Bundle>>,
    pub(crate) svids: Vec<IssuedSvid>,
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

impl Cache {
    pub(crate) fn new(
        options: CacheOptions,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
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
        Self {
            inner: Mutex::new(inner),
            wanted: Notify::new(),
            changed: Notify::new(),
            ready: watch::Sender::new(false),
            clock,
            random,
        }
    }

    /// Turns true when entries and the own bundle are known, from the server or from disk.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(crate) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Listens to what a set of selectors is entitled to, its X509-SVIDs included: what is missing becomes wanted.
    pub(crate) fn subscribe(
        &self,
        selectors: &SelectorSet,
    ) -> watch::Receiver<Arc<WorkloadUpdate>> {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.listeners(selectors, now).wants_x509 = true;
        let missing = inner.want_svids_of(selectors, now);
        inner.count_use(selectors);
        let receiver = inner.listeners(selectors, now).sender.subscribe();
        drop(inner);
        if missing {
            self.wanted.notify_one();
        }
        receiver
    }

    /// Listens for bundles and entries only; causes no issuance.
    pub(crate) fn subscribe_bundles(
        &self,
        selectors: &SelectorSet,
    ) -> watch::Receiver<Arc<WorkloadUpdate>> {
        self.lock()
            .listeners(selectors, self.clock.now())
            .sender
            .subscribe()
    }

    /// What a set of selectors is entitled to now; causes no issuance.
    pub(crate) fn current(&self, selectors: &SelectorSet) -> Arc<WorkloadUpdate> {
        Arc::clone(
            &self
                .lock()
                .listeners(selectors, self.clock.now())
                .sender
                .borrow(),
        )
    }

    /// Takes in what the server told; false when all of it was known.
    pub(crate) fn apply(&self, delta: Delta) -> bool {
        let now = self.clock.now();
        let mut inner = self.lock();
        let touched = inner.apply_delta(delta);
        if touched.nothing() {
            return false;
        }
        let missing = inner.refresh(now, |set, update| touched.concerns(set, update));
        drop(inner);
        self.changed.notify_one();
        if missing {
            self.wanted.notify_one();
        }
        true
    }

    /// Takes up to `limit` entries whose SVID somebody waits for. Each is to be answered by [`Self::put_svids`] or
    /// [`Self::failed`].
    pub(crate) fn take_wanted(&self, limit: usize) -> Vec<Arc<Entry>> {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(id) = inner.wanted.pop_first() else {
                break;
            };
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
            let Some(entry) = inner
                .entries
                .get(&svid.entry_id)
                .filter(|entry| entry.spiffe_id == svid.spiffe_id)
            else {
                continue;
            };
            let outdated = entry.revision_number != svid.revision;
            let id = Arc::clone(&svid.entry_id);
            let renew_at = inner.options.rotation.renew_at(
                svid.not_before,
                svid.not_after,
                unit_interval(&*self.random),
            );
            let renew_at = renew_at.max(not_sooner(svid.not_after, now));
            inner.svids.put(svid, renew_at);
            if outdated {
                inner.svids.mark_stale(&id);
            }
            touched.insert(id);
        }
        let gone = inner.make_room();
        touched.extend(gone);
        let missing = inner.refresh(now, |_, update| {
            update
                .entries
                .iter()
                .any(|entry| touched.contains(&entry.id))
        });
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
        missing |= inner.refresh(now, |_, update| {
            update
                .identities
                .iter()
                .any(|identity| expired.contains(&identity.entry.id))
        });
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
        inner.tokens.forget(|_, token| {
            token
                .key_id
                .as_ref()
                .is_some_and(|key_id| jwt_key_ids.contains(key_id))
        });
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
        Counts {
            entries: inner.entries.len(),
            x509_svids: inner.svids.len(),
            jwt_svids: inner.tokens.len(),
            bundles: inner.bundles.iter().count(),
        }
    }

    /// The entry that comes nearest to matching, and how many selectors it lacks: for the operator's log.
    pub(crate) fn nearest(&self, selectors: &SelectorSet) -> Option<(Arc<Entry>, usize)> {
        self.lock()
            .entries
            .nearest(selectors)
            .map(|(entry, lacking)| (Arc::clone(entry), lacking))
    }

    /// Everything worth keeping over a restart.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        Snapshot {
            entries: inner.entries.iter().cloned().collect(),
            bundles: inner
                .bundles
                .iter()
                .map(|bundle| Arc::clone(&bundle.bundle))
                .collect(),
            svids: inner.svids.iter().cloned().collect(),
        }
    }

    /// The known entries, by ID.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().entries.iter().cloned().collect()
    }

    /// The known bundles.
    pub(crate) fn bundles(&self) -> Vec<Arc<Bundle>> {
        self.lock()
            .bundles
            .iter()
            .map(|bundle| Arc::clone(&bundle.bundle))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Certificates begin some seconds before they are issued: of one that lives as short as that, half is over when it
/// comes. At least two fifths of what is left is used, or it would be renewed without end.
pub(crate) fn not_sooner(not_after: SystemTime, now: SystemTime) -> SystemTime {
    now + not_after
        .duration_since(now)
        .unwrap_or(Duration::ZERO)
        .mul_f64(0.4)
}

#[cfg(test)]
mod tests;
