//! On whose account the lines of a call are written, so that no peer fills the log, whoever it is.
//!
//! An error is logged where it becomes an answer, far from the connection. So the account comes with the task: `api` sets it
//! for each call and for the stream that answers it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use daemon::log_limit::LogLimit;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::principal::Account;

tokio::task_local! {
    static CURRENT: Arc<LogAccount>;
}

/// The account of a call, with the limit that it shares with all others.
#[derive(Debug)]
pub(crate) struct LogAccount {
    limit: Arc<LogLimit<Option<Account>>>,
    /// Peers without an account share one.
    account: Option<Account>,
}

impl LogAccount {
    pub(crate) fn new(
        limit: &Arc<LogLimit<Option<Account>>>,
        account: Option<Account>,
    ) -> Arc<Self> {
        let limit = Arc::clone(limit);
        Arc::new(Self { limit, account })
    }

    /// Does `call` on this account.
    pub(crate) fn of_call<F: Future>(self: Arc<Self>, call: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, call)
    }

    /// Makes what is logged while the stream is sent go on this account, too.
    pub(crate) fn of_stream(self: Arc<Self>, body: Body) -> Body {
        Body::new(OnAccount {
            account: self,
            body,
        })
    }
}

/// Does `task`, which outlives the present call or runs beside it, on the call's account.
pub(crate) fn inherited<F: Future>(task: F) -> impl Future<Output = F::Output> {
    let current = CURRENT.try_with(Arc::clone).ok();
    async move {
        match current {
            Some(current) => CURRENT.scope(current, task).await,
            None => task.await,
        }
    }
}

/// Whether a line may be written now: then the number of lines that were left out since the last one. What the server does
/// of itself is on nobody's account and not limited.
pub(super) fn admit() -> Option<u64> {
    CURRENT
        .try_with(|current| current.limit.admit(&current.account))
        .unwrap_or(Some(0))
}

/// A body that is sent on an account.
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
        CURRENT.sync_scope(account, || Pin::new(&mut self.body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
