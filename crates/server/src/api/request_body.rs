//! The body of a request: how large its message may be and how long it may take to arrive.
//!
//! A message is held in memory until it is complete, and then until its call is answered, which may wait for its turn. An
//! unauthenticated caller may therefore send only small ones, no caller may leave one unfinished, and the bytes of all that
//! one caller has sent and not had answered are counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;

use crate::authz::Lifetime;
use crate::budget::HeldBytes;
use crate::caller::{Authority, Caller};

/// For callers without an identity: an attestation payload and a CSR are a few KiB.
const UNAUTHENTICATED_MESSAGE: usize = 64 << 10;
/// SPIRE: gRPC's default.
const MESSAGE: usize = 4 << 20;
/// From the first moment that the server waits for a request until the request is complete.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message that this caller may send, in bytes.
pub(super) fn largest_message(caller: &Caller) -> usize {
    if matches!(caller.authority, Authority::Anybody) && !caller.connection.is_local() {
        UNAUTHENTICATED_MESSAGE
    } else {
        MESSAGE
    }
}

/// A body that fails when it does not end in time, unless its method is a conversation, and when its sender's account holds too
/// many bytes of requests.
#[derive(Debug)]
pub(super) struct RequestBody<B> {
    body: B,
    timed: bool,
    counted: Counted,
    /// Runs from the first moment that the server waits for the body; most bodies are there at once.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<B> RequestBody<B> {
    /// What is counted in `held` stays counted for as long as its other owner likes, except for a conversation's messages.
    pub(super) fn new(lifetime: Lifetime, held: Arc<HeldBytes>, body: B) -> Self {
        Self {
            body,
            timed: lifetime != Lifetime::Conversation,
            counted: Counted::new(lifetime, held),
            deadline: None,
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            let data = match &frame {
                Some(Ok(frame)) => frame.data_ref(),
                _ => None,
            };
            if data.is_some_and(|data| !this.counted.take(data)) {
                let full =
                    "this peer has too many bytes of requests that are not answered; wait for some";
                return Poll::Ready(Some(Err(Status::resource_exhausted(full).into())));
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if !this.timed {
            return Poll::Pending;
        }
        let deadline = this
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
        ready!(deadline.as_mut().poll(context));
        let late = format!(
            "the request did not arrive within {} s",
            BODY_TIMEOUT.as_secs()
        );
        Poll::Ready(Some(Err(Status::deadline_exceeded(late).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What arrives, counted to its sender's account. A conversation may last, and what its earlier messages held is no longer
/// held; any other request counts until it is answered.
///
/// gRPC's framing: one byte of flags, four of length, the message.
#[derive(Debug)]
struct Counted {
    held: Arc<HeldBytes>,
    message_by_message: bool,
    prefix: [u8; PREFIX],
    prefix_len: usize,
    /// Of the message, once its prefix is complete.
    missing: usize,
}

const PREFIX: usize = 5;

impl Counted {
    fn new(lifetime: Lifetime, held: Arc<HeldBytes>) -> Self {
        Self {
            held,
            message_by_message: lifetime == Lifetime::Conversation,
            prefix: [0; PREFIX],
            prefix_len: 0,
            missing: 0,
        }
    }

    /// Counts what arrived. False when the account holds too much.
    fn take(&mut self, mut data: &[u8]) -> bool {
        if !self.message_by_message {
            return self.held.add(data.len());
        }
        while let Some((first, rest)) = data.split_first() {
            if let Some(octet) = self.prefix.get_mut(self.prefix_len) {
                *octet = *first;
                self.prefix_len += 1;
                data = rest;
                if self.prefix_len == PREFIX {
                    let [_flags, length @ ..] = self.prefix;
                    self.missing =
                        usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                }
            } else {
                let (part, rest) = data.split_at(data.len().min(self.missing));
                if !self.held.add(part.len()) {
                    return false;
                }
                self.missing -= part.len();
                data = rest;
            }
            if self.prefix_len == PREFIX && self.missing == 0 {
                self.prefix_len = 0;
                self.held.release();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::budget::{Budget, Limits};
    use crate::principal::Class;

    type Sent = Result<Frame<Bytes>, Infallible>;

    fn body(
        lifetime: Lifetime,
    ) -> (
        UnboundedSender<Sent>,
        impl Body<Data = Bytes, Error = tonic::codegen::StdError> + Unpin,
    ) {
        let (sender, sent) = unbounded_channel();
        let body = StreamBody::new(UnboundedReceiverStream::new(sent));
        let held = Arc::new(budget().hold_bytes());
        (sender, RequestBody::new(lifetime, held, body))
    }

    fn budget() -> Arc<Budget> {
        Budget::new(Limits::of(Class::Workload))
    }

    fn counted(lifetime: Lifetime, budget: &Arc<Budget>) -> Counted {
        Counted::new(lifetime, Arc::new(budget.hold_bytes()))
    }

    /// The beginning of a message of `length` bytes, of which the first `sent` have come.
    fn message(length: u32, sent: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(PREFIX + sent, 7);
        bytes
    }

    #[test]
    fn holds_the_bytes_of_requests_against_their_sender_whether_they_are_complete_or_not() {
        for sent in [60 << 10, 64 << 10] {
            let budget = budget();
            let limit = Limits::of(Class::Workload).bytes;
            let request = message(64 << 10, sent);
            let mut held = Vec::new();
            for _ in 0..limit / request.len() {
                let mut counted = counted(Lifetime::Unary, &budget);
                assert!(counted.take(&request));
                held.push(counted);
            }
            assert!(!counted(Lifetime::Unary, &budget).take(&request));
            held.pop();
            assert!(counted(Lifetime::Unary, &budget).take(&request));
        }
    }

    #[test]
    fn a_request_that_is_read_counts_for_as_long_as_its_call() {
        let budget = budget();
        let limit = Limits::of(Class::Workload).bytes;
        let until_answered = Arc::new(budget.hold_bytes());
        let mut body = Counted::new(Lifetime::Unary, Arc::clone(&until_answered));
        assert!(body.take(&vec![0; limit]));
        drop(body);
        assert!(!counted(Lifetime::Unary, &budget).take(&[0]));
        drop(until_answered);
        assert!(counted(Lifetime::Unary, &budget).take(&[0]));
    }

    #[test]
    fn lets_go_of_a_conversations_message_that_is_complete_however_it_is_cut() {
        let budget = budget();
        let mut stream = counted(Lifetime::Conversation, &budget);
        let (whole, begun) = (message(1_000, 1_000), message(1_000, 999));
        for _ in 0..10_000 {
            for piece in whole.chunks(333) {
                assert!(stream.take(piece));
            }
        }
        assert!(stream.take(&whole.repeat(100)));
        assert!(stream.take(&begun), "what is left is one message");
    }

    fn byte() -> Sent {
        Ok(Frame::data(Bytes::from_static(b"x")))
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_on_a_request_that_never_ends() {
        let (sender, mut body) = body(Lifetime::Unary);
        sender.send(byte()).unwrap();
        body.frame().await.unwrap().unwrap();
        let late = body.frame().await.unwrap().unwrap_err();
        let late = late.downcast::<Status>().unwrap();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_on_a_request_that_drips() {
        let (sender, mut body) = body(Lifetime::Unary);
        let dripping = tokio::spawn(async move {
            while sender.send(byte()).is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let mut frames = 0;
        while body.frame().await.unwrap().is_ok() {
            frames += 1;
        }
        assert!((9..=12).contains(&frames), "{frames}");
        drop(body);
        dripping.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_stream_of_a_live_agent() {
        let (sender, mut body) = body(Lifetime::Conversation);
        let waited = tokio::time::timeout(BODY_TIMEOUT * 6, body.frame()).await;
        waited.unwrap_err();
        drop(sender);
        assert!(body.frame().await.is_none());
    }
}
