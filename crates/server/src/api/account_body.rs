//! The stream that answers a call, sent on the account of the call: what is logged meanwhile counts for its peer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::error::log_account::LogAccount;

/// `body`, of which each frame is made on `account`.
pub(super) fn on_account(account: Arc<LogAccount>, body: Body) -> Body {
    Body::new(OnAccount { account, body })
}

struct OnAccount {
    account: Arc<LogAccount>,
    body: Body,
}

impl HttpBody for OnAccount {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let account = Arc::clone(&self.account);
        account.of_step(|| Pin::new(&mut self.body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
