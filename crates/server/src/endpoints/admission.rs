//! The connections of one endpoint: counted, capped, all awaited at the end.
//!
//! Each connection has a [`Slot`], which counts for an account: at first for the address it comes from, and once the peer is
//! authenticated for its identity. At a cap, room is made: for an account among its own connections, unauthenticated peers
//! and workloads among theirs, and the endpoint as a whole among theirs first, then among idle ones. So no number of
//! connections that cost nothing keeps anybody out. Nothing here waits for a peer.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::budget::{Budget, Limits};
use crate::principal::{Account, Class};

/// Connections beyond the cap that were asked to close and have not yet closed.
const LEAVING: usize = 256;
/// Busy connections that are looked at for an idle one.
const LOOKED_AT: usize = 64;

/// How many connections an endpoint holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    pub(super) most: usize,
    /// Of unauthenticated peers and workloads together.
    pub(super) shed_first: usize,
    /// Of those, from one source.
    pub(super) per_source: usize,
}

impl Capacity {
    pub(super) fn of(most: usize) -> Self {
        Self {
            most,
            shed_first: most,
            per_source: most,
        }
    }

    fn of_account(self, account: &Account) -> usize {
        match account {
            Account::Source(_) => self.per_source,
            Account::Uid(_) => self.most,
            Account::Identity(_, class) => Limits::of(*class).connections,
        }
    }
}

/// One accepted connection as its endpoint sees it.
#[derive(Debug)]
pub(super) struct Slot {
    id: u64,
    calls: AtomicUsize,
    closing: watch::Sender<bool>,
    evicted: watch::Sender<bool>,
    table: Arc<Mutex<Table>>,
}

/// Counts a call of a slot for as long as it lives.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Slot>);

impl Slot {
    /// Lets the slot count for the account of its peer, and gives what that account may make this server hold. A workload
    /// goes on counting for its source as well.
    pub(super) fn enter(&self, account: Account, class: Class) -> Arc<Budget> {
        lock(&self.table).enter(self.id, account, class)
    }

    pub(super) fn begin_call(self: &Arc<Self>) -> InFlight {
        self.calls.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(super) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    /// Asks the streams of the connection to end.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// True once streams that would last should end.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Returns when the connection must end at once, to make room for another.
    pub(super) async fn evicted(&self) {
        let mut evicted = self.evicted.subscribe();
        // The sender lives in this slot, so this cannot fail; if it did, ending would be right.
        drop(evicted.wait_for(|evicted| *evicted).await.map(|_| ()));
    }

    fn evict(&self) {
        self.close();
        self.evicted.send_replace(true);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the slot out of the table when the connection's task ends, however it ends.
struct Occupied(Arc<Slot>);

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut table = lock(&self.0.table);
        table.running = table.running.saturating_sub(1);
        // None: it was evicted.
        drop(table.remove(self.0.id));
    }
}

/// The running connections.
#[derive(Debug)]
pub(super) struct Admission {
    table: Arc<Mutex<Table>>,
    running: JoinSet<()>,
    capacity: Capacity,
}

impl Admission {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table::new(capacity))),
            running: JoinSet::new(),
            capacity,
        }
    }

    /// Returns when evicted connections are not in the way of the next one. They end as soon as they get their turn and wait
    /// for no peer; without this, a burst of connections would have others refused that come just after it.
    pub(super) async fn settled(&mut self) {
        while self.running.try_join_next().is_some() {}
        let most = self.capacity.most.saturating_add(LEAVING);
        while self.running.len() >= most && self.running.join_next().await.is_some() {}
    }

    /// Runs what `serve` makes of a new connection's slot, which counts for `account`. At a cap another connection is ended
    /// for it; returns false when there is none that may be.
    pub(super) fn spawn<F>(
        &mut self,
        account: Account,
        class: Class,
        serve: impl FnOnce(Arc<Slot>) -> F,
    ) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while self.running.try_join_next().is_some() {}
        let Some(slot) = self.admit(account, class) else {
            return false;
        };
        let occupied = Occupied(Arc::clone(&slot));
        // On the heap: a future that another one captures and awaits has its room there twice.
        let serving = Box::pin(serve(slot));
        self.running.spawn(async move {
            let _occupied = occupied;
            serving.await;
        });
        true
    }

    fn admit(&self, account: Account, class: Class) -> Option<Arc<Slot>> {
        let mut table = lock(&self.table);
        table.make_room(class)?;
        table.next += 1;
        table.running += 1;
        let slot = Arc::new(Slot {
            id: table.next,
            calls: AtomicUsize::new(0),
            closing: watch::Sender::new(false),
            evicted: watch::Sender::new(false),
            table: Arc::clone(&self.table),
        });
        table.make_room_in(&account);
        table.insert(Place {
            slot: Arc::clone(&slot),
            accounts: vec![account],
            class,
        });
        Some(slot)
    }

    pub(super) async fn all_ended(mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which connections there are and for whom they count. Slots that were evicted are gone from it. Identifiers ascend with
/// age.
#[derive(Debug)]
struct Table {
    capacity: Capacity,
    next: u64,
    /// Evicted ones that have not ended are still among them.
    running: usize,
    places: HashMap<u64, Place>,
    shed_first: BTreeSet<u64>,
    shed_last: BTreeSet<u64>,
    /// Where the search for an idle one of `shed_last` goes on, so that busy ones hide none behind them.
    looked_at: u64,
    by_account: HashMap<Account, BTreeSet<u64>>,
    /// Also of accounts whose connections are evicted while calls of theirs are in flight.
    budgets: HashMap<Account, Weak<Budget>>,
}

#[derive(Debug)]
struct Place {
    slot: Arc<Slot>,
    accounts: Vec<Account>,
    class: Class,
}

impl Table {
    fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            next: 0,
            running: 0,
            places: HashMap::new(),
            shed_first: BTreeSet::new(),
            shed_last: BTreeSet::new(),
            looked_at: 0,
            by_account: HashMap::new(),
            budgets: HashMap::new(),
        }
    }

    /// Room in the endpoint for one more of the class. `None` when there is none to be had.
    fn make_room(&mut self, class: Class) -> Option<()> {
        if class.is_shed_first() && self.shed_first.len() >= self.capacity.shed_first {
            let one = self.longest_held(&self.shed_first);
            self.evict(one);
        }
        // Evicted ones end as soon as they get their turn; they must not pile up before that.
        if self.running >= self.capacity.most.saturating_add(LEAVING) {
            return None;
        }
        if self.places.len() < self.capacity.most {
            return Some(());
        }
        let one = self
            .longest_held(&self.shed_first)
            .or_else(|| self.idle_of_the_others())?;
        self.evict(Some(one));
        Some(())
    }

    /// Room among an account's own connections.
    fn make_room_in(&mut self, account: &Account) {
        let most = self.capacity.of_account(account);
        let open = self.by_account.get(account);
        if let Some(open) = open.filter(|open| open.len() >= most) {
            let one = self.longest_held(open);
            self.evict(one);
        }
    }

    fn insert(&mut self, place: Place) {
        let id = place.slot.id;
        for account in &place.accounts {
            let open = self.by_account.entry(account.clone()).or_default();
            open.insert(id);
        }
        self.of_class(place.class).insert(id);
        self.places.insert(id, place);
    }

    fn remove(&mut self, id: u64) -> Option<Place> {
        let place = self.places.remove(&id)?;
        self.of_class(place.class).remove(&id);
        for account in &place.accounts {
            if let Some(open) = self.by_account.get_mut(account) {
                open.remove(&id);
                if open.is_empty() {
                    self.by_account.remove(account);
                }
            }
        }
        Some(place)
    }

    fn of_class(&mut self, class: Class) -> &mut BTreeSet<u64> {
        if class.is_shed_first() {
            &mut self.shed_first
        } else {
            &mut self.shed_last
        }
    }

    fn evict(&mut self, id: Option<u64>) {
        if let Some(place) = id.and_then(|id| self.remove(id)) {
            place.slot.evict();
        }
    }

    fn enter(&mut self, id: u64, account: Account, class: Class) -> Arc<Budget> {
        let budget = self.budget(&account, class);
        // None: evicted meanwhile; it ends as soon as it looks.
        let Some(mut place) = self.remove(id) else {
            return budget;
        };
        if !place.accounts.contains(&account) {
            self.make_room_in(&account);
            if !class.is_shed_first() {
                place.accounts.clear();
            }
            place.accounts.push(account);
        }
        place.class = class;
        self.insert(place);
        budget
    }

    fn budget(&mut self, account: &Account, class: Class) -> Arc<Budget> {
        if let Some(budget) = self.budgets.get(account).and_then(Weak::upgrade) {
            return budget;
        }
        if self.budgets.len() > self.places.len().saturating_mul(2).saturating_add(64) {
            self.budgets.retain(|_, budget| budget.strong_count() > 0);
        }
        let budget = Budget::new(Limits::of(class));
        self.budgets
            .insert(account.clone(), Arc::downgrade(&budget));
        budget
    }

    /// The oldest idle one, if there is one soon, or else the oldest.
    fn longest_held(&self, open: &BTreeSet<u64>) -> Option<u64> {
        let idle = open.iter().take(LOOKED_AT).find(|id| self.is_idle(**id));
        idle.or_else(|| open.first()).copied()
    }

    fn idle_of_the_others(&mut self) -> Option<u64> {
        let after = self.shed_last.range((Excluded(self.looked_at), Unbounded));
        let mut last = self.looked_at;
        let found = after
            .chain(&self.shed_last)
            .take(LOOKED_AT)
            .copied()
            .inspect(|id| last = *id)
            .find(|id| self.is_idle(*id));
        self.looked_at = last;
        found
    }

    fn is_idle(&self, id: u64) -> bool {
        let place = self.places.get(&id);
        place.is_some_and(|place| !place.slot.has_calls())
    }
}

/// How many connections the limit of open files leaves room for, after raising it as far as this process may.
pub(crate) fn room_for_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 256;
    };
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    // A quarter is kept for the database, files and the other endpoints.
    usize::try_from(limit - limit / 4).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use spiffe::id::SpiffeId;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::source::Source;

    fn source(address: &str) -> Account {
        Account::Source(Source::of(address.parse().unwrap()))
    }

    /// Takes the slot of a peer that has shown this SVID.
    fn enter(slot: &Slot, path: &str, class: Class) -> Arc<Budget> {
        let id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
        slot.enter(Account::Identity(id, class), class)
    }

    type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

    /// The endpoint under test, with the names of the connections that were evicted.
    struct Endpoint {
        admission: Admission,
        evicted: UnboundedSender<u32>,
        events: UnboundedReceiver<u32>,
    }

    impl Endpoint {
        fn of(most: usize, shed_first: usize, per_source: usize) -> Self {
            let (evicted, events) = unbounded_channel();
            Self {
                admission: Admission::new(Capacity {
                    most,
                    shed_first,
                    per_source,
                }),
                evicted,
                events,
            }
        }

        /// A connection that says its name when it is evicted. `prepare` runs as the handshake would.
        fn open<T: Send + 'static>(
            &mut self,
            name: u32,
            from: Account,
            class: Class,
            prepare: impl FnOnce(&Arc<Slot>) -> T,
        ) -> bool {
            let evicted = self.evicted.clone();
            self.admission.spawn(from, class, |slot| {
                let held = prepare(&slot);
                let serving: Serving = Box::pin(async move {
                    slot.evicted().await;
                    evicted.send(name).unwrap();
                    drop(held);
                });
                serving
            })
        }

        fn open_idle(&mut self, name: u32, address: &str) -> bool {
            self.open(name, source(address), Class::Unauthenticated, |_| ())
        }

        async fn nobody_was_evicted(&mut self) {
            tokio::task::yield_now().await;
            self.events.try_recv().unwrap_err();
        }
    }

    #[tokio::test]
    async fn ends_the_oldest_idle_connection_for_a_new_one() {
        let mut endpoint = Endpoint::of(2, 2, 2);
        for name in 1..=3 {
            assert!(endpoint.open_idle(name, &format!("192.0.2.{name}")));
        }
        assert_eq!(endpoint.events.recv().await, Some(1));
        endpoint.nobody_was_evicted().await;
    }

    #[tokio::test]
    async fn a_burst_that_is_evicted_has_nobody_refused_who_comes_after_it() {
        let mut endpoint = Endpoint::of(2, 2, 2);
        // No evicted one gets its turn meanwhile.
        let burst = u32::try_from(LEAVING).unwrap() + 2;
        for name in 0..burst {
            assert!(endpoint.open_idle(name, "192.0.2.1"));
        }
        endpoint.admission.settled().await;
        assert!(endpoint.open_idle(burst, "192.0.2.2"));
        // Who holds a place is not waited for.
        while endpoint.admission.running.len() > 2 {
            endpoint.admission.running.join_next().await;
        }
        endpoint.admission.settled().await;
    }

    #[tokio::test]
    async fn refuses_a_connection_when_all_others_are_agents_with_calls() {
        let mut endpoint = Endpoint::of(1, 1, 1);
        let busy = |slot: &Arc<Slot>| {
            enter(slot, "/agent", Class::Agent);
            slot.begin_call()
        };
        assert!(endpoint.open(1, source("192.0.2.1"), Class::Unauthenticated, busy));
        assert!(!endpoint.open_idle(2, "192.0.2.2"));
        endpoint.nobody_was_evicted().await;
    }

    #[tokio::test]
    async fn finds_an_idle_agent_behind_many_busy_ones() {
        let count = LOOKED_AT + 10;
        let mut endpoint = Endpoint::of(count + 1, count, count);
        for number in 0..count {
            let busy = |slot: &Arc<Slot>| {
                enter(slot, &format!("/agent/{number}"), Class::Agent);
                slot.begin_call()
            };
            assert!(endpoint.open(0, source("192.0.2.1"), Class::Unauthenticated, busy));
        }
        let idle = |slot: &Arc<Slot>| {
            enter(slot, "/idle", Class::Agent);
        };
        assert!(endpoint.open(7, source("192.0.2.1"), Class::Unauthenticated, idle));
        let admitted = (0..2).any(|_| endpoint.open_idle(8, "192.0.2.2"));
        assert!(admitted);
        assert_eq!(endpoint.events.recv().await, Some(7));
    }

    #[tokio::test]
    async fn frees_the_places_of_connections_that_ended() {
        let mut endpoint = Endpoint::of(1, 1, 1);
        for number in 0..1_000_u32 {
            let address = std::net::IpAddr::from(number.to_be_bytes());
            let account = Account::Source(Source::of(address));
            let ended = |slot: Arc<Slot>| {
                drop(slot.enter(account.clone(), Class::Unauthenticated));
                std::future::ready(())
            };
            assert!(
                endpoint
                    .admission
                    .spawn(account.clone(), Class::Unauthenticated, ended)
            );
            tokio::task::yield_now().await;
        }
        let table = lock(&endpoint.admission.table);
        assert!(table.places.len() <= 1 && table.by_account.len() <= 1);
        assert!(table.budgets.len() < 100, "{}", table.budgets.len());
    }

    #[tokio::test]
    async fn ends_a_busy_unauthenticated_peer_before_an_idle_agent() {
        let mut endpoint = Endpoint::of(2, 2, 2);
        let agent = |slot: &Arc<Slot>| {
            enter(slot, "/agent", Class::Agent);
        };
        assert!(endpoint.open(1, source("192.0.2.1"), Class::Unauthenticated, agent));
        assert!(endpoint.open(
            2,
            source("192.0.2.2"),
            Class::Unauthenticated,
            Slot::begin_call
        ));
        assert!(endpoint.open_idle(3, "192.0.2.3"));
        assert_eq!(endpoint.events.recv().await, Some(2));
    }

    #[tokio::test]
    async fn lets_a_source_crowd_out_only_itself() {
        let mut endpoint = Endpoint::of(100, 100, 2);
        assert!(endpoint.open_idle(0, "192.0.2.1"));
        // A network of IPv6 is one source.
        for name in 1..=4 {
            assert!(endpoint.open_idle(name, &format!("2001:db8::{name}")));
        }
        assert_eq!(endpoint.events.recv().await, Some(1));
        assert_eq!(endpoint.events.recv().await, Some(2));
        endpoint.nobody_was_evicted().await;
    }

    #[tokio::test]
    async fn bounds_the_share_of_all_unauthenticated_peers() {
        let mut endpoint = Endpoint::of(100, 3, 2);
        for name in 1..=5 {
            assert!(endpoint.open_idle(name, &format!("192.0.2.{name}")));
        }
        assert_eq!(endpoint.events.recv().await, Some(1));
        assert_eq!(endpoint.events.recv().await, Some(2));
        endpoint.nobody_was_evicted().await;
    }

    #[tokio::test]
    async fn counts_no_agent_in_the_share_of_its_source() {
        let mut endpoint = Endpoint::of(100, 100, 2);
        for name in 1..=50 {
            let agent = |slot: &Arc<Slot>| {
                enter(slot, &format!("/agent/{name}"), Class::Agent);
            };
            assert!(endpoint.open(name, source("192.0.2.1"), Class::Unauthenticated, agent));
        }
        endpoint.nobody_was_evicted().await;
    }

    #[tokio::test]
    async fn counts_workloads_in_the_share_of_their_source() {
        let mut endpoint = Endpoint::of(100, 100, 2);
        for name in 1..=3 {
            let workload = |slot: &Arc<Slot>| {
                enter(slot, &format!("/workload/{name}"), Class::Workload);
            };
            assert!(endpoint.open(name, source("192.0.2.1"), Class::Unauthenticated, workload));
        }
        assert_eq!(endpoint.events.recv().await, Some(1));
        endpoint.nobody_was_evicted().await;
    }

    #[tokio::test]
    async fn lets_an_identity_crowd_out_only_itself() {
        for class in [Class::Workload, Class::Agent] {
            let most = u32::try_from(Limits::of(class).connections).unwrap();
            let mut endpoint = Endpoint::of(1_000, 1_000, 1_000);
            assert!(endpoint.open_idle(0, "192.0.2.1"));
            for name in 1..=most + 2 {
                let same = |slot: &Arc<Slot>| enter(slot, "/same", class);
                let from = source("192.0.2.1");
                assert!(endpoint.open(name, from, Class::Unauthenticated, same));
            }
            assert_eq!(endpoint.events.recv().await, Some(1));
            assert_eq!(endpoint.events.recv().await, Some(2));
            endpoint.nobody_was_evicted().await;
        }
    }

    #[tokio::test]
    async fn keeps_one_budget_for_all_connections_of_an_identity() {
        let mut endpoint = Endpoint::of(10, 10, 10);
        let mut budgets = Vec::new();
        for name in 1..=3 {
            let agent = |slot: &Arc<Slot>| {
                budgets.push(enter(slot, "/agent", Class::Agent));
            };
            assert!(endpoint.open(name, source("192.0.2.1"), Class::Unauthenticated, agent));
        }
        assert!(
            budgets
                .windows(2)
                .all(|pair| Arc::ptr_eq(&pair[0], &pair[1]))
        );
    }
}
