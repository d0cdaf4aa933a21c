//! What this node knows: entries, SVIDs, bundles, and who is interested in them.
//!
//! Workload streams read it and hear of changes by one `watch` channel per set of selectors. It asks nobody for
//! anything: what it lacks it shows by [`Cache::take_wanted`] and one notification, and the sync task fills it. It knows
//! neither the server's wire nor that of any API.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use daemon::telemetry::Telemetry;
use spiffe::bundle::Bundle;
use spiffe::clock::Clock;
use spiffe::entry::Entry;
use spiffe::random::Random;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::{Notify, watch};

pub(crate) mod bundles;
pub(crate) mod entries;
mod interest;
mod issuance;
pub(crate) mod jwt;
pub(crate) mod keys;
mod memo;
mod state;
pub(crate) mod svids;
mod timers;
pub(crate) mod update;

use interest::SetId;
use jwt::{Cached, JwtKey, JwtToken};
use state::{Applied, State};
use svids::{IssuedSvid, RotationRule};
use update::WorkloadUpdate;

use crate::metrics;

pub(crate) use interest::Purpose;

/// Sizes and rules of a cache.
#[derive(Debug, Clone)]
pub(crate) struct CacheOptions {
    pub(crate) trust_domain: TrustDomain,
    /// Cached X509-SVIDs; those that a stream holds may go over it.
    pub(crate) x509_svids: usize,
    /// Cached JWT-SVIDs, never exceeded.
    pub(crate) jwt_svids: usize,
    pub(crate) rotation: RotationRule,
}

/// A change reported by the server.
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

/// The entry that comes nearest to matching a workload.
#[derive(Debug)]
pub(crate) struct Nearest {
    pub(crate) entry: Arc<Entry>,
    /// How many selectors the workload lacks.
    pub(crate) lacking: usize,
    pub(crate) expired: bool,
}

/// What a caller that just came may expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// Nothing better comes soon.
    Settled,
    /// Every SVID is there, and a newer one is being asked for: the entry changed, or much of its life is over.
    Renewing,
    /// An SVID that is missing may come.
    Issuing,
}

/// The shared state. All methods are quick and none waits.
#[derive(Debug)]
pub(crate) struct Cache {
    state: Mutex<State>,
    wanted: Notify,
    changed: Notify,
    ready: watch::Sender<bool>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    telemetry: Telemetry,
}

/// A stream's interest in a set of selectors. While it lives, what it needs is issued and renewed.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// The latest state of the set, and word of each change.
    pub(crate) updates: watch::Receiver<Arc<WorkloadUpdate>>,
    cache: Arc<Cache>,
    set: SetId,
    purpose: Purpose,
}

impl Subscription {
    /// What is still to be expected until `horizon`.
    pub(crate) fn outlook(&self, horizon: Duration) -> Outlook {
        let now = self.cache.clock.now();
        self.cache.lock().outlook(self.set, now, now + horizon)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cache.lock().unsubscribe(self.set, self.purpose);
    }
}

impl Cache {
    pub(crate) fn new(
        options: CacheOptions,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self {
            state: Mutex::new(State::new(options, clock.now())),
            wanted: Notify::new(),
            changed: Notify::new(),
            ready: watch::Sender::new(false),
            clock,
            random,
            telemetry: Telemetry::default(),
        }
    }

    /// The same, measuring what it does.
    pub(crate) fn with_telemetry(self, telemetry: Telemetry) -> Self {
        Self { telemetry, ..self }
    }

    /// Turns true when entries and the own bundle are known, from the server or from disk.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(crate) fn set_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Opens a stream of what a set of selectors is entitled to. For X509-SVIDs, what is missing becomes wanted. What is
    /// due is done first: after a suspend or a step of the clock the sync task may not have woken yet.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        selectors: &SelectorSet,
        purpose: Purpose,
    ) -> Subscription {
        let mut state = self.lock();
        let now = self.clock.now();
        let due = state.tick(now);
        let (set, updates, wanted) = state.subscribe(selectors, purpose, now);
        drop(state);
        self.wake_sync(due || wanted);
        Subscription {
            updates,
            cache: Arc::clone(self),
            set,
            purpose,
        }
    }

    /// What a set of selectors is entitled to now; causes no issuance of its own. What is due is done first, as in
    /// [`Self::subscribe`].
    pub(crate) fn current(&self, selectors: &SelectorSet) -> Arc<WorkloadUpdate> {
        let mut state = self.lock();
        let now = self.clock.now();
        let due = state.tick(now);
        let update = state.current(selectors, now);
        drop(state);
        self.wake_sync(due);
        update
    }

    /// Takes in what the server reported; false when all of it was known.
    pub(crate) fn apply(&self, delta: Delta) -> bool {
        let applied = self.lock().apply(delta, self.clock.now());
        self.report_applied(&applied);
        if applied.changed {
            self.changed.notify_one();
        }
        self.wake_sync(applied.wanted);
        applied.changed
    }

    /// Takes up to `limit` entries whose SVID is wanted. Each is to be answered by [`Self::put_svids`],
    /// [`Self::refused`] or [`Self::not_answered`].
    pub(crate) fn take_wanted(&self, limit: usize) -> Vec<Arc<Entry>> {
        self.lock().take_wanted(limit, self.clock.now())
    }

    /// Waits until something is wanted.
    pub(crate) async fn wanting(&self) {
        self.wanted.notified().await;
    }

    /// Waits until there is something new to be kept on disk.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes in issued SVIDs. One whose entry is gone or names another identity by now is dropped, one that has expired
    /// counts as refused.
    pub(crate) fn put_svids(&self, issued: Vec<IssuedSvid>) {
        let wanted = self
            .lock()
            .put_svids(issued, self.clock.now(), &*self.random);
        self.report_sizes();
        self.changed.notify_one();
        self.wake_sync(wanted);
    }

    /// Takes in SVIDs that were issued before a restart.
    pub(crate) fn restore(&self, svids: Vec<IssuedSvid>) {
        let wanted = self.lock().restore(svids, self.clock.now(), &*self.random);
        self.report_sizes();
        self.wake_sync(wanted);
    }

    /// The server would not issue these: they may be wanted again after a pause that grows with each refusal.
    pub(crate) fn refused(&self, entry_ids: &[Arc<str>]) {
        self.lock()
            .refused(entry_ids, self.clock.now(), &*self.random);
    }

    /// The server could not be asked for these: they may be wanted again after `pause`, or when it returns.
    pub(crate) fn not_answered(&self, entry_ids: &[Arc<str>], pause: Duration) {
        self.lock().not_answered(entry_ids, pause, self.clock.now());
    }

    /// The server answers again after it did not.
    pub(crate) fn server_returned(&self) {
        let wanted = self.lock().server_returned();
        self.wake_sync(wanted);
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn next_due(&self) -> Option<SystemTime> {
        self.lock().next_due()
    }

    /// Renews and withdraws what is due, and notices when the clock was set back: to be called whenever the sync task
    /// wakes. Who reads for a workload does it too.
    pub(crate) fn tick(&self) {
        let wanted = self.lock().tick(self.clock.now());
        self.report_sizes();
        self.wake_sync(wanted);
    }

    pub(crate) fn jwt(&self, key: &JwtKey) -> Cached {
        self.lock().jwt(key, self.clock.now())
    }

    /// Caches a token that was issued for `asked`, unless that entry has changed since.
    pub(crate) fn put_jwt(&self, asked: &Entry, key: JwtKey, token: Arc<JwtToken>) {
        self.lock().put_jwt(asked, key, token, self.clock.now());
        self.report_sizes();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts()
    }

    /// The entry that comes nearest to matching: for the operator's log, since it looks at every entry.
    pub(crate) fn nearest(&self, selectors: &SelectorSet) -> Option<Nearest> {
        self.lock().nearest(selectors, self.clock.now())
    }

    /// Everything worth keeping over a restart.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }

    /// The known entries, by ID.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().entries()
    }

    /// The known bundles, as the server sent them.
    pub(crate) fn bundles(&self) -> Vec<Arc<Bundle>> {
        self.lock().bundles()
    }

    fn report_applied(&self, applied: &Applied) {
        let telemetry = &self.telemetry;
        telemetry.add(&metrics::ENTRY_ADDED, applied.added, []);
        telemetry.add(&metrics::ENTRY_UPDATED, applied.updated, []);
        telemetry.add(&metrics::ENTRY_REMOVED, applied.removed, []);
        if let Some(tainted) = applied.tainted {
            telemetry.sample(&metrics::TAINTED_X509_SVIDS, tainted.x509_svids, []);
            telemetry.sample(&metrics::TAINTED_JWT_SVIDS, tainted.jwt_svids, []);
        }
        self.report_sizes();
    }

    fn report_sizes(&self) {
        if !self.telemetry.is_enabled() {
            return;
        }
        let counts = self.counts();
        for (gauge, number) in [
            (&metrics::ENTRIES, counts.entries),
            (&metrics::BUNDLES, counts.bundles),
            (&metrics::X509_SVIDS, counts.x509_svids),
            (&metrics::JWT_SVIDS, counts.jwt_svids),
        ] {
            self.telemetry.set_number(gauge, number, []);
        }
    }

    fn wake_sync(&self, wanted: bool) {
        if wanted {
            self.wanted.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
