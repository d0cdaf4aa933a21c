//! How many requests may be open, and how many bytes of requests held: overall, and for each user of the machine, so that
//! no user can take all of either. An open stream is an open request.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

use super::connections::Slot;

/// An open stream costs about 25 KiB with its connection, most of it HTTP/2's fixed buffers.
const REQUESTS: usize = 16_384;
/// What requests carry is small: an audience list, a token.
const BYTES: usize = 64 << 20;

/// What may be open on all sockets together. A user may have three quarters of it.
#[derive(Debug)]
pub(super) struct Requests {
    most: Amount,
    all: Arc<InUse>,
    users: Mutex<HashMap<u32, Weak<InUse>>>,
}

#[derive(Debug, Clone, Copy)]
struct Amount {
    requests: usize,
    bytes: usize,
}

/// What is open, of all or of one user.
#[derive(Debug)]
struct InUse {
    most: Amount,
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// One user's part.
#[derive(Debug, Clone)]
pub(super) struct Share {
    all: Arc<InUse>,
    own: Arc<InUse>,
}

/// An open request. It keeps its connection busy and counts until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    slot: Arc<Slot>,
    bytes: AtomicUsize,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self::with_limits(REQUESTS, BYTES)
    }

    pub(super) fn with_limits(requests: usize, bytes: usize) -> Self {
        let most = Amount { requests, bytes };
        Self {
            most,
            all: InUse::new(most),
            users: Mutex::default(),
        }
    }

    pub(super) fn share_of(&self, user: u32) -> Share {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let all = Arc::clone(&self.all);
        if let Some(own) = users.get(&user).and_then(Weak::upgrade) {
            return Share { all, own };
        }
        // Users without a connection are forgotten.
        users.retain(|_, own| own.strong_count() > 0);
        let own = InUse::new(Amount {
            requests: self.most.requests - self.most.requests / 4,
            bytes: self.most.bytes - self.most.bytes / 4,
        });
        users.insert(user, Arc::downgrade(&own));
        Share { all, own }
    }
}

impl InUse {
    fn new(most: Amount) -> Arc<Self> {
        Arc::new(Self {
            most,
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }
}

/// Counts `more`, if that stays within `most`.
fn take(count: &AtomicUsize, more: usize, most: usize) -> bool {
    let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
        now.checked_add(more).filter(|then| *then <= most)
    });
    taken.is_ok()
}

impl Share {
    fn take_request(&self) -> bool {
        if !take(&self.own.requests, 1, self.own.most.requests) {
            return false;
        }
        let taken = take(&self.all.requests, 1, self.all.most.requests);
        if !taken {
            self.own.requests.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    fn take_bytes(&self, more: usize) -> bool {
        if !take(&self.own.bytes, more, self.own.most.bytes) {
            return false;
        }
        let taken = take(&self.all.bytes, more, self.all.most.bytes);
        if !taken {
            self.own.bytes.fetch_sub(more, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        for part in [&self.own, &self.all] {
            part.requests.fetch_sub(1, Ordering::Relaxed);
            part.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Open {
    /// Opens a request on a connection; nothing when its user, or all together, have too many open.
    pub(super) fn on(slot: &Arc<Slot>) -> Option<Arc<Self>> {
        slot.share().take_request().then(|| {
            slot.begin_request();
            Arc::new(Self {
                slot: Arc::clone(slot),
                bytes: AtomicUsize::new(0),
            })
        })
    }

    /// The request's body, counted while it comes in.
    pub(super) fn meter<B>(self: &Arc<Self>, body: B) -> tonic::body::Body
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        tonic::body::Body::new(Metered {
            body,
            open: Arc::clone(self),
        })
    }

    /// Keeps the request open until the answer was sent.
    pub(super) fn until_sent(self: Arc<Self>, body: tonic::body::Body) -> tonic::body::Body {
        tonic::body::Body::new(Counted { body, _open: self }.boxed_unsync())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.slot
            .share()
            .give_back(self.bytes.load(Ordering::Relaxed));
        self.slot.end_request();
    }
}

pub(super) fn too_many() -> Status {
    Status::resource_exhausted("too many open requests; try again later")
}

struct Metered<B> {
    body: B,
    open: Arc<Open>,
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            Some(Ok(frame)) => frame,
        };
        let more = frame.data_ref().map_or(0, Bytes::remaining);
        if more > 0 {
            if !self.open.slot.share().take_bytes(more) {
                return Poll::Ready(Some(Err(too_many())));
            }
            self.open.bytes.fetch_add(more, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Counted {
    body: tonic::body::Body,
    _open: Arc<Open>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::super::connections::Connections;
    use super::*;

    fn slots(requests: usize, bytes: usize) -> impl Fn(u32) -> Arc<Slot> {
        let requests = Arc::new(Requests::with_limits(requests, bytes));
        let telemetry = daemon::telemetry::Telemetry::default();
        let connections = Connections::new("test", 100, requests, telemetry);
        move |user| Arc::new(connections.admit(user).unwrap())
    }

    #[tokio::test]
    async fn a_user_opens_three_quarters_of_all_requests_over_all_of_its_connections() {
        let slot_of = slots(8, 100);
        let (one, two) = (slot_of(1), slot_of(1));
        let open: Vec<_> = [&one, &two, &one, &two, &one, &two]
            .into_iter()
            .map(|slot| Open::on(slot).unwrap())
            .collect();
        assert!(Open::on(&one).is_none());
        let other = slot_of(2);
        let others: Vec<_> = (0..2).map(|_| Open::on(&other).unwrap()).collect();
        // All together have what there is.
        assert!(Open::on(&slot_of(3)).is_none());
        drop((open, others));
        assert!(Open::on(&one).is_some());
    }

    #[tokio::test]
    async fn a_request_counts_until_its_answer_was_sent() {
        let slot_of = slots(1, 100);
        let slot = slot_of(1);
        let answer = tonic::body::Body::new(Full::new(Bytes::from_static(b"x")));
        let body = Open::on(&slot).unwrap().until_sent(answer);
        assert!(Open::on(&slot).is_none());
        drop(body);
        assert!(Open::on(&slot).is_some());
    }

    #[tokio::test]
    async fn the_bytes_of_requests_count_while_they_are_open() {
        let slot_of = slots(100, 100);
        let slot = slot_of(1);
        let send = |bytes: usize| {
            let open = Open::on(&slot).unwrap();
            let body = open.meter(Full::new(Bytes::from(vec![0; bytes])));
            async move { (open, body.collect().await.is_ok()) }
        };
        let (first, complete) = send(60).await;
        assert!(complete);
        let (_second, complete) = send(20).await;
        assert!(!complete, "75 of 100 for one user");
        let (_third, complete) = send(15).await;
        assert!(complete);
        drop(first);
        assert!(send(20).await.1);
    }
}
