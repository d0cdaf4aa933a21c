//! How many connections there may be, and which one goes when there are too many: the one that has been idle longest. No
//! user of the machine can take all places.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::telemetry::Telemetry;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::requests::{Requests, Share};
use crate::metrics::{CONNECTIONS, CONNECTIONS_REFUSED};

/// More connections than this are not kept, whatever the limit of open files is.
const MOST: usize = 4096;
/// Open files that everything else needs.
const RESERVED: u64 = 256;
/// A connection holds its socket and its peer's pidfd.
const FILES_EACH: u64 = 2;

/// A client that has connected asks for something within this time.
const NEVER_USED: Duration = Duration::from_secs(10);
/// A client that is done for the moment may keep its connection for so long.
const UNUSED: Duration = Duration::from_secs(300);

/// All connections of one socket.
#[derive(Debug, Clone)]
pub(crate) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    requests: Arc<Requests>,
    table: Mutex<Table>,
    ended: Notify,
    /// Which socket it is, for the telemetry.
    socket: &'static str,
    telemetry: Telemetry,
}

#[derive(Debug, Default)]
struct Table {
    open: usize,
    tick: u64,
    /// Connections without a request under way, the longest idle first.
    idle: BTreeMap<u64, Idle>,
    /// How many connections each user has.
    held: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Idle {
    user: u32,
    evict: Arc<Notify>,
}

impl Table {
    /// Takes the longest idle connection out of the list: of anybody, or of one user.
    fn pop_idle(&mut self, of: Option<u32>) -> Option<Idle> {
        let Some(user) = of else {
            return self.idle.pop_first().map(|(_, idle)| idle);
        };
        let since = self.idle.iter().find(|(_, idle)| idle.user == user);
        let since = since.map(|(since, _)| *since)?;
        self.idle.remove(&since)
    }
}

/// A connection's place. Free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    user: u32,
    share: Share,
    evict: Arc<Notify>,
    usage: Mutex<Use>,
}

#[derive(Debug, Default)]
struct Use {
    requests: usize,
    /// The key under which the connection is among the idle ones.
    idle_since: Option<u64>,
    ever_used: bool,
    /// When the last request ended, or the connection began.
    quiet_from: Option<Instant>,
}

impl Connections {
    pub(super) fn new(
        socket: &'static str,
        most: usize,
        requests: Arc<Requests>,
        telemetry: Telemetry,
    ) -> Self {
        Self(Arc::new(Shared {
            most,
            requests,
            table: Mutex::default(),
            ended: Notify::new(),
            socket,
            telemetry,
        }))
    }

    /// A place for one more of this user's. When all are taken, or the user has three quarters of them, the connection that
    /// has been idle longest, or that one of the user's, is asked to end; nothing when every such connection is busy.
    pub(super) fn admit(&self, user: u32) -> Option<Slot> {
        let slot = self.place_for(user);
        let counter = match &slot {
            Some(_) => &CONNECTIONS,
            None => &CONNECTIONS_REFUSED,
        };
        self.0.telemetry.count(counter, [self.0.socket]);
        slot
    }

    fn place_for(&self, user: u32) -> Option<Slot> {
        let mut table = self.0.lock();
        let share = self.0.most - self.0.most / 4;
        let at_share = table.held.get(&user).is_some_and(|held| *held >= share);
        if at_share || table.open >= self.0.most {
            let longest_idle = table.pop_idle(at_share.then_some(user))?;
            longest_idle.evict.notify_one();
        }
        table.open += 1;
        *table.held.entry(user).or_default() += 1;
        drop(table);
        let slot = Slot {
            shared: Arc::clone(&self.0),
            user,
            share: self.0.requests.share_of(user),
            evict: Arc::default(),
            usage: Mutex::default(),
        };
        slot.change(|requests| requests);
        Some(slot)
    }

    /// Waits until all are gone, but not longer than `timeout`.
    pub(super) async fn drained(&self, timeout: Duration) {
        let all_gone = async {
            loop {
                let ended = self.0.ended.notified();
                if self.0.lock().open == 0 {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(timeout, all_gone).await.is_err() {
            tracing::debug!("connections were cut off");
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Returns when the place is needed for somebody else.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// How long the connection may stay as it is; zero when its time is up.
    pub(super) fn idle_left(&self) -> Duration {
        let now = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = if now.ever_used { UNUSED } else { NEVER_USED };
        match now.quiet_from {
            Some(quiet_from) if now.requests == 0 => allowed.saturating_sub(quiet_from.elapsed()),
            _ => UNUSED,
        }
    }

    pub(super) fn user(&self) -> u32 {
        self.user
    }

    /// What the connection's user may have open.
    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    pub(super) fn begin_request(&self) {
        self.change(|requests| requests + 1);
    }

    pub(super) fn end_request(&self) {
        self.change(|requests| requests.saturating_sub(1));
    }

    /// Changes the number of requests and keeps the list of idle connections in step with it.
    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut now = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        now.requests = change(now.requests);
        match (now.requests, now.idle_since) {
            (0, None) => {
                let mut table = self.shared.lock();
                table.tick += 1;
                let tick = table.tick;
                let idle = Idle {
                    user: self.user,
                    evict: Arc::clone(&self.evict),
                };
                table.idle.insert(tick, idle);
                now.idle_since = Some(tick);
                now.quiet_from = Some(Instant::now());
            }
            (1.., Some(since)) => {
                self.shared.lock().idle.remove(&since);
                now.idle_since = None;
                now.ever_used = true;
            }
            _ => {}
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let since = self
            .usage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .idle_since
            .take();
        let mut table = self.shared.lock();
        if let Some(since) = since {
            table.idle.remove(&since);
        }
        table.open -= 1;
        if let Some(held) = table.held.get_mut(&self.user) {
            *held -= 1;
            if *held == 0 {
                table.held.remove(&self.user);
            }
        }
        drop(table);
        self.shared.ended.notify_one();
    }
}

/// As many connections as this process may have files open for, after raising that limit as far as it goes.
pub(super) fn most_connections() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return MOST / 16;
    };
    let files = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    usize::try_from(files.saturating_sub(RESERVED) / FILES_EACH)
        .unwrap_or(MOST)
        .clamp(16, MOST)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::requests::Open;
    use super::*;

    /// A user.
    const ONE: u32 = 1;

    fn limited(most: usize) -> Connections {
        let requests = Arc::new(Requests::new());
        Connections::new("test", most, requests, Telemetry::default())
    }

    fn open(slot: &Arc<Slot>) -> Arc<Open> {
        Open::on(slot).unwrap()
    }

    #[tokio::test]
    async fn nobody_takes_all_places_from_the_others() {
        let connections = limited(4);
        let slots: Vec<_> = (0..3)
            .map(|_| Arc::new(connections.admit(ONE).unwrap()))
            .collect();
        let requests: Vec<_> = slots.iter().map(open).collect();
        assert!(connections.admit(ONE).is_none());
        let other = connections.admit(2).unwrap();
        assert!(connections.admit(ONE).is_none());
        drop(requests);
        // Room for one's own is made by one's own.
        let next = connections.admit(ONE).unwrap();
        assert!(other.evicted().now_or_never().is_none());
        let evicted = |slot: &&Arc<Slot>| slot.evicted().now_or_never().is_some();
        assert_eq!(slots.iter().filter(evicted).count(), 1);
        drop((slots, other, next));
        assert!(connections.0.lock().held.is_empty());
    }

    #[tokio::test]
    async fn the_longest_idle_connection_makes_room() {
        let connections = limited(2);
        let first = connections.admit(ONE).unwrap();
        let second = connections.admit(ONE).unwrap();
        let third = connections.admit(ONE);
        assert!(third.is_some());
        assert!(first.evicted().now_or_never().is_some());
        assert!(second.evicted().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_busy_connection_is_not_evicted_and_becomes_the_youngest_idle() {
        let connections = limited(2);
        let first = Arc::new(connections.admit(ONE).unwrap());
        let second = Arc::new(connections.admit(ONE).unwrap());
        let request = open(&first);
        let _third = connections.admit(ONE).unwrap();
        assert!(second.evicted().now_or_never().is_some());
        drop(request);
        assert!(first.evicted().now_or_never().is_none());
    }

    #[tokio::test]
    async fn nobody_is_admitted_while_all_are_busy() {
        let connections = limited(1);
        let only = Arc::new(connections.admit(ONE).unwrap());
        let request = open(&only);
        assert!(connections.admit(ONE).is_none());
        drop(request);
        assert!(connections.admit(ONE).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_for_nothing_has_to_go() {
        let connections = limited(2);
        let slot = Arc::new(connections.admit(ONE).unwrap());
        assert_eq!(slot.idle_left(), NEVER_USED);
        tokio::time::advance(NEVER_USED).await;
        assert_eq!(slot.idle_left(), Duration::ZERO);
        let request = open(&slot);
        tokio::time::advance(2 * UNUSED).await;
        assert_eq!(slot.idle_left(), UNUSED);
        drop(request);
        tokio::time::advance(UNUSED - NEVER_USED).await;
        assert_eq!(slot.idle_left(), NEVER_USED);
        tokio::time::advance(NEVER_USED).await;
        assert_eq!(slot.idle_left(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_dropped_connection_frees_its_place() {
        let connections = limited(1);
        for _ in 0..5 {
            let slot = Arc::new(connections.admit(ONE).unwrap());
            drop(open(&slot));
            drop(slot);
        }
        assert!(connections.0.lock().idle.is_empty());
        connections.drained(Duration::from_secs(1)).await;
    }
}
