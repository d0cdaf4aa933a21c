//! One reader of the change log for all watchers: it finds whom each change concerns and wakes their watchers alone, so that
//! a change costs the agents that it concerns and not all that there are. It also keeps the time for all of them: an entry
//! that expires is a change at that second, long before it is pruned.
//!
//! A watcher may be woken too often, never too seldom: what its agent is sent is decided by the registry again.
//!
//! Order of locks: the registry's, then the subscriptions', then one subscription's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use daemon::tasks::Shutdown;
use daemon::telemetry::Telemetry;
use spiffe::clock::Clock;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;

use super::affected::{Affected, Ancestors, Touched};
use super::subscription::{Pending, Subscription, Subscriptions};
use crate::metrics::{WATCHERS, WATCHERS_WOKEN};
use crate::registry::{Change, Cursor, Kind, Object, Registry, Snapshot};

/// The clock may be set: the next expiry is looked for at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The subscriptions, and the task that fills them.
#[derive(Debug)]
pub(crate) struct Notifier {
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    telemetry: Telemetry,
    server: SpiffeId,
    state: Mutex<NotifierState>,
}

#[derive(Debug)]
struct NotifierState {
    subscriptions: Subscriptions,
    /// Changes up to here have been passed on.
    cursor: Cursor,
    /// Expiries up to this second have been passed on.
    expired_through: i64,
}

/// A watcher's subscription; ends when dropped.
#[derive(Debug)]
pub(super) struct Membership {
    notifier: Arc<Notifier>,
    number: u64,
    subscription: Arc<Subscription>,
}

impl Membership {
    pub(super) async fn pending(&self) -> Pending {
        self.subscription.pending().await
    }

    pub(super) fn subscription(&self) -> &Arc<Subscription> {
        &self.subscription
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.notifier.lock();
        state.subscriptions.remove(self.number);
        let left = state.subscriptions.len();
        drop(state);
        self.notifier.telemetry.set_number(&WATCHERS, left, []);
    }
}

impl Notifier {
    pub(crate) fn new(
        registry: Arc<Registry>,
        clock: Arc<dyn Clock>,
        telemetry: Telemetry,
    ) -> Self {
        let server = SpiffeId::server(registry.trust_domain());
        let (cursor, expired_through) = {
            let snapshot = registry.snapshot();
            (snapshot.cursor(), snapshot.now())
        };
        Self {
            registry,
            clock,
            telemetry,
            server,
            state: Mutex::new(NotifierState {
                subscriptions: Subscriptions::default(),
                cursor,
                expired_through,
            }),
        }
    }

    /// Subscribes an agent. What the registry shows after this returns, and everything later, reaches the subscriber.
    pub(super) fn subscribe(self: &Arc<Self>, agent: SpiffeId) -> Membership {
        // Under the registry's lock: a change of the node's selectors comes wholly before this or wholly after.
        let snapshot = self.registry.snapshot();
        let selectors = snapshot
            .agent(&agent)
            .map_or_else(SelectorSet::default, |agent| agent.selectors.clone());
        let mut state = self.lock();
        let (number, subscription) = state.subscriptions.add(agent, selectors);
        let watchers = state.subscriptions.len();
        drop(state);
        drop(snapshot);
        self.telemetry.set_number(&WATCHERS, watchers, []);
        Membership {
            notifier: Arc::clone(self),
            number,
            subscription,
        }
    }

    /// Follows the registry and the clock until the server stops.
    pub(crate) async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        let mut revisions = self.registry.subscribe();
        loop {
            // Taken before the look, so that what comes during it causes another.
            revisions.mark_unchanged();
            let next_expiry = self.advance();
            tokio::select! {
                () = shutdown.requested() => return,
                changed = revisions.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.until(next_expiry)) => {}
            }
        }
    }

    fn until(&self, expiry: Option<i64>) -> Duration {
        let left = expiry.map_or(LONGEST_SLEEP, |expiry| {
            let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(expiry).unwrap_or_default());
            at.duration_since(self.clock.now()).unwrap_or_default()
        });
        left.min(LONGEST_SLEEP)
    }

    /// Passes on what has changed and what has expired since the last call; returns the next expiry.
    fn advance(&self) -> Option<i64> {
        let snapshot = self.registry.snapshot();
        let mut state = self.lock();
        let changes = snapshot.changes_since(state.cursor, usize::MAX);
        let expired_through = state.expired_through;
        state.cursor = snapshot.cursor();
        state.expired_through = snapshot.now();
        let mut woken = Woken::default();
        match &changes {
            Some(changes) => {
                // First, so that an alias finds the nodes by the selectors that they have at this revision.
                for change in changes {
                    pass_on_agent_change(change, &mut state.subscriptions, &mut woken);
                }
                let affected = Affected::new(&snapshot, self.server.clone(), changes);
                let mut batch = Batch {
                    affected: &affected,
                    subscriptions: &state.subscriptions,
                    own: self.registry.trust_domain(),
                    above: HashMap::new(),
                    woken: &mut woken,
                };
                for change in changes {
                    batch.pass_on(change);
                }
                for entry in snapshot.expiring_between(expired_through) {
                    let touched = affected.touched_by_expiry(entry);
                    batch.pass_on_entry(entry, &touched);
                }
            }
            None => reset_everyone(&snapshot, &mut state.subscriptions, &mut woken),
        }
        let cursor = snapshot.cursor();
        let next_expiry = snapshot.next_expiry(snapshot.now());
        // Watchers take the registry's lock when they wake: it is free by then.
        drop(state);
        drop(snapshot);
        if !woken.0.is_empty() {
            self.telemetry.sample(&WATCHERS_WOKEN, woken.0.len(), []);
        }
        for subscription in woken.0.into_values() {
            subscription.seal(cursor);
        }
        next_expiry
    }

    fn lock(&self) -> MutexGuard<'_, NotifierState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscriptions with their numbers.
type Members = Arc<[(u64, Arc<Subscription>)]>;

/// The subscriptions that have something new, each once.
#[derive(Default)]
struct Woken(BTreeMap<u64, Arc<Subscription>>);

impl Woken {
    fn add(&mut self, number: u64, subscription: &Arc<Subscription>) {
        self.0
            .entry(number)
            .or_insert_with(|| Arc::clone(subscription));
    }
}

/// An agent whose selectors have changed starts over: it may reach other aliases, and may have lost some. Any other change of
/// its record (a ban, a renewal) wakes the watcher as well, which then checks whether the stream may go on.
fn pass_on_agent_change(change: &Change, subscriptions: &mut Subscriptions, woken: &mut Woken) {
    if change.kind != Kind::Agent {
        return;
    }
    let (former, present) = (
        selectors(change.old.as_ref()),
        selectors(change.new.as_ref()),
    );
    let Ok(agent) = SpiffeId::parse(&change.key) else {
        return;
    };
    let moved = former != present;
    for (number, subscription) in subscriptions.of_agent(&agent) {
        subscription.add_agent_change(moved);
        woken.add(number, subscription);
    }
    if moved {
        subscriptions.set_selectors(&agent, present.unwrap_or(&SelectorSet::default()));
    }
}

/// Every agent starts over: the log does not reach back far enough, or belongs to another history.
fn reset_everyone(snapshot: &Snapshot<'_>, subscriptions: &mut Subscriptions, woken: &mut Woken) {
    for agent in subscriptions.agents() {
        let selectors = snapshot.agent(&agent).map(|agent| agent.selectors.clone());
        subscriptions.set_selectors(&agent, &selectors.unwrap_or_default());
    }
    for (number, subscription) in subscriptions.everyone() {
        subscription.add_agent_change(true);
        woken.add(number, subscription);
    }
}

/// The passing on of one batch of changes.
struct Batch<'a> {
    affected: &'a Affected<'a>,
    subscriptions: &'a Subscriptions,
    own: &'a TrustDomain,
    /// The subscriptions above each parent that occurred: entries made together often share it.
    above: HashMap<SpiffeId, Members>,
    woken: &'a mut Woken,
}

impl Batch<'_> {
    fn pass_on(&mut self, change: &Change) {
        match change.kind {
            Kind::Bundle => self.pass_on_bundle(&change.key),
            Kind::Entry => {
                let (old, new) = (entry(change.old.as_ref()), entry(change.new.as_ref()));
                let touched = self.affected.touched(&change.key, old, new);
                for side in [old, new].into_iter().flatten() {
                    self.pass_on_entry(side, &touched);
                }
            }
            _ => {}
        }
    }

    fn pass_on_bundle(&mut self, key: &str) {
        let Ok(trust_domain) = TrustDomain::parse(key) else {
            return;
        };
        let own = trust_domain == *self.own;
        for (number, subscription) in self.subscriptions.everyone() {
            if subscription.add_bundle(&trust_domain, own) {
                self.woken.add(number, subscription);
            }
        }
    }

    /// Passes on what one version of an entry touches to the agents above that version. A moved entry is passed on twice: to the
    /// agents that lose it, and to those that get it.
    fn pass_on_entry(&mut self, entry: &Entry, touched: &Touched) {
        if self.affected.is_alias(entry) {
            // No agent is sent the alias itself, only what is below it.
            if matches!(touched, Touched::Entries(ids) if ids.len() <= 1) {
                return;
            }
            let nodes = self.subscriptions.with_selectors(&entry.selectors);
            for (number, subscription) in nodes {
                subscription.add_entries(touched);
                self.woken.add(number, subscription);
            }
            return;
        }
        let Self {
            affected,
            subscriptions,
            ..
        } = *self;
        let above = self
            .above
            .entry(entry.parent_id.clone())
            .or_insert_with(|| subscriptions_above(affected, subscriptions, &entry.parent_id));
        for (number, subscription) in above.iter() {
            subscription.add_entries(touched);
            self.woken.add(*number, subscription);
        }
    }
}

fn subscriptions_above(
    affected: &Affected<'_>,
    subscriptions: &Subscriptions,
    parent: &SpiffeId,
) -> Members {
    let mut found = BTreeMap::new();
    let mut add = |(number, subscription): (u64, &Arc<Subscription>)| {
        found.insert(number, Arc::clone(subscription));
    };
    match affected.ancestors(parent) {
        Ancestors::All => subscriptions.everyone().for_each(add),
        Ancestors::Some { ids, aliases } => {
            for id in ids {
                subscriptions.of_agent(id).for_each(&mut add);
            }
            for alias in aliases {
                subscriptions
                    .with_selectors(&alias.selectors)
                    .for_each(&mut add);
            }
        }
    }
    found.into_iter().collect()
}

fn entry(side: Option<&Object>) -> Option<&Entry> {
    match side {
        Some(Object::Entry(entry)) => Some(entry),
        _ => None,
    }
}

fn selectors(side: Option<&Object>) -> Option<&SelectorSet> {
    match side {
        Some(Object::Agent(agent)) => Some(&agent.selectors),
        _ => None,
    }
}
