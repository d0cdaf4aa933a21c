//! How many connections there may be, and which one goes when there are too many: the one that has been idle longest.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

/// More connections than this are not kept, whatever the limit of open files is.
const MOST: usize = 4096;
/// Open files that everything else needs.
const RESERVED: u64 = 256;
/// A connection holds its socket and its peer's pidfd.
const FILES_EACH: u64 = 2;

/// A client that has connected and said hello asks for something within this time.
const NEVER_USED: Duration = Duration::from_secs(10);
/// A client that is done for the moment may keep its connection for so long.
const UNUSED: Duration = Duration::from_secs(300);

/// All connections of one socket.
#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    table: Mutex<Table>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Table {
    open: usize,
    tick: u64,
    /// Connections without a request under way, the longest idle first.
    idle: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place. Free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
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
    /// As many connections as this process may have files open for.
    pub(super) fn new() -> Self {
        Self::with_limit(most())
    }

    pub(super) fn with_limit(most: usize) -> Self {
        Self(Arc::new(Shared {
            most,
            table: Mutex::default(),
            ended: Notify::new(),
        }))
    }

    /// A place for one more. When all are taken, the connection that has been idle longest is told to go; nothing
    /// when every connection is busy.
    pub(super) fn admit(&self) -> Option<Slot> {
        let mut table = self.0.lock();
        if table.open >= self.0.most {
            let (_, longest_idle) = table.idle.pop_first()?;
            longest_idle.notify_one();
        }
        table.open += 1;
        drop(table);
        let slot = Slot {
            shared: Arc::clone(&self.0),
            evict: Arc::default(),
            usage: Mutex::default(),
        };
        slot.change(|requests| requests);
        Some(slot)
    }

    /// Waits until all are gone, but not longer than `patience`.
    pub(super) async fn drained(&self, patience: Duration) {
        let all_gone = async {
            loop {
                let ended = self.0.ended.notified();
                if self.0.lock().open == 0 {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(patience, all_gone).await.is_err() {
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
    pub(super) fn patience(&self) -> Duration {
        let now = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = if now.ever_used { UNUSED } else { NEVER_USED };
        match now.quiet_from {
            Some(quiet_from) if now.requests == 0 => allowed.saturating_sub(quiet_from.elapsed()),
            _ => UNUSED,
        }
    }

    /// Counts a request until the result is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.change(|requests| requests + 1);
        Busy(Arc::clone(self))
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
                table.idle.insert(tick, Arc::clone(&self.evict));
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
        drop(table);
        self.shared.ended.notify_one();
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(super) struct Busy(Arc<Slot>);

impl Busy {
    /// Keeps the connection busy until the body was sent.
    pub(super) fn hold(busy: Self, body: tonic::body::Body) -> tonic::body::Body {
        tonic::body::Body::new(Held { body, _busy: busy }.boxed_unsync())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|requests| requests.saturating_sub(1));
    }
}

/// A body that holds on to its request's place.
struct Held {
    body: tonic::body::Body,
    _busy: Busy,
}

impl Body for Held {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Raises the limit of open files as far as it goes and derives from it.
fn most() -> usize {
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

    use super::*;

    #[tokio::test]
    async fn the_longest_idle_connection_makes_room() {
        let connections = Connections::with_limit(2);
        let first = connections.admit().unwrap();
        let second = connections.admit().unwrap();
        let third = connections.admit();
        assert!(third.is_some());
        assert!(first.evicted().now_or_never().is_some());
        assert!(second.evicted().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_busy_connection_is_not_evicted_and_becomes_the_youngest_idle() {
        let connections = Connections::with_limit(2);
        let first = Arc::new(connections.admit().unwrap());
        let second = Arc::new(connections.admit().unwrap());
        let request = first.busy();
        let _third = connections.admit().unwrap();
        assert!(second.evicted().now_or_never().is_some());
        drop(request);
        assert!(first.evicted().now_or_never().is_none());
    }

    #[tokio::test]
    async fn nobody_is_admitted_while_all_are_busy() {
        let connections = Connections::with_limit(1);
        let only = Arc::new(connections.admit().unwrap());
        let request = only.busy();
        assert!(connections.admit().is_none());
        drop(request);
        assert!(connections.admit().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_for_nothing_has_to_go() {
        let connections = Connections::with_limit(2);
        let slot = Arc::new(connections.admit().unwrap());
        assert_eq!(slot.patience(), NEVER_USED);
        tokio::time::advance(NEVER_USED).await;
        assert_eq!(slot.patience(), Duration::ZERO);
        let request = slot.busy();
        tokio::time::advance(2 * UNUSED).await;
        assert_eq!(slot.patience(), UNUSED);
        drop(request);
        tokio::time::advance(UNUSED - NEVER_USED).await;
        assert_eq!(slot.patience(), NEVER_USED);
        tokio::time::advance(NEVER_USED).await;
        assert_eq!(slot.patience(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_dropped_connection_frees_its_place() {
        let connections = Connections::with_limit(1);
        for _ in 0..5 {
            let slot = Arc::new(connections.admit().unwrap());
            drop(slot.busy());
            drop(slot);
        }
        assert!(connections.0.lock().idle.is_empty());
        connections.drained(Duration::from_secs(1)).await;
    }
}
