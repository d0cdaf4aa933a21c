//! A request's body on its way in: how large its message may be and how long it may take.
//!
//! A message is held in memory until it is complete, so what anybody may send is small, and nobody may keep one unfinished.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;

use crate::caller::{Authority, Caller};

/// For whoever can connect: an attestation payload and a CSR are a few KiB.
const STRANGERS_MESSAGE: usize = 64 << 10;
/// SPIRE: gRPC's default.
const MESSAGE: usize = 4 << 20;
/// From the first moment that a request has to be waited for until its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// The one call on whose stream an agent may take its time.
const UNHURRIED: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";

/// The largest message that this caller may send, in bytes.
pub(super) fn largest_message(caller: &Caller) -> usize {
    if matches!(caller.authority, Authority::Anybody) && !caller.connection.is_local() {
        STRANGERS_MESSAGE
    } else {
        MESSAGE
    }
}

/// A body that fails when it does not end in time.
#[derive(Debug)]
pub(super) struct Intake<B> {
    body: B,
    hurried: bool,
    /// Runs once the body had to be waited for, which most never have.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<B> Intake<B> {
    pub(super) fn of_call(method: &str, body: B) -> Self {
        Self {
            body,
            hurried: method != UNHURRIED,
            deadline: None,
        }
    }
}

impl<B> Body for Intake<B>
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
        if !this.hurried {
            return Poll::Pending;
        }
        let deadline = this
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        ready!(deadline.as_mut().poll(context));
        let late = format!("the request did not arrive within {} s", PATIENCE.as_secs());
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
        method: &str,
    ) -> (
        UnboundedSender<Sent>,
        impl Body<Data = Bytes, Error = tonic::codegen::StdError> + Unpin,
    ) {
        let (sender, sent) = unbounded_channel();
        let body = StreamBody::new(UnboundedReceiverStream::new(sent));
        (sender, Intake::of_call(method, body))
    }

    fn byte() -> Sent {
        Ok(Frame::data(Bytes::from_static(b"x")))
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_on_a_request_that_never_ends() {
        let (sender, mut body) = body("/a.B/C");
        sender.send(byte()).unwrap();
        body.frame().await.unwrap().unwrap();
        let late = body.frame().await.unwrap().unwrap_err();
        let late = late.downcast::<Status>().unwrap();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_on_a_request_that_drips() {
        let (sender, mut body) = body("/a.B/C");
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
        let (sender, mut body) = body(UNHURRIED);
        let waited = tokio::time::timeout(PATIENCE * 6, body.frame()).await;
        waited.unwrap_err();
        drop(sender);
        assert!(body.frame().await.is_none());
    }
}
