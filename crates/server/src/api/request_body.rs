//! The body of a request: how large its message may be and how long it may take to arrive.
//!
//! A message is held in memory until it is complete. An unauthenticated caller may therefore send only small ones, and no
//! caller may leave one unfinished.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;

use crate::authz::Lifetime;
use crate::caller::{Authority, Caller};

/// For callers without an identity: an attestation payload and a CSR are a few KiB.
const UNAUTHENTICATED_MESSAGE: usize = 64 << 10;
/// SPIRE: gRPC's default.
const MESSAGE: usize = 4 << 20;
/// From the first moment that the server waits for a request until the request is complete.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message that this caller may send, in bytes.
pub(super) fn largest_message(caller: &Caller) -> usize {
    if matches!(caller.authority, Authority::Anybody) && !caller.connection.is_local() {
        UNAUTHENTICATED_MESSAGE
    } else {
        MESSAGE
    }
}

/// A body that fails when it does not end in time, unless its method is a conversation.
#[derive(Debug)]
pub(super) struct RequestBody<B> {
    body: B,
    timed: bool,
    /// Runs from the first moment that the server waits for the body; most bodies are there at once.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<B> RequestBody<B> {
    pub(super) fn new(lifetime: Lifetime, body: B) -> Self {
        Self {
            body,
            timed: lifetime != Lifetime::Conversation,
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;

    type Sent = Result<Frame<Bytes>, Infallible>;

    fn body(
        lifetime: Lifetime,
    ) -> (
        UnboundedSender<Sent>,
        impl Body<Data = Bytes, Error = tonic::codegen::StdError> + Unpin,
    ) {
        let (sender, sent) = unbounded_channel();
        let body = StreamBody::new(UnboundedReceiverStream::new(sent));
        (sender, RequestBody::new(lifetime, body))
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
