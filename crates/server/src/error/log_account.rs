//! On whose account the lines of a call are written, so that no peer fills the log, whoever it is.
//!
//! An error is logged where it becomes an answer, far from the connection. So the account comes with the task: `api` sets it
//! for each call and for the stream that answers it.

use std::sync::Arc;

use daemon::log_limit::LogLimit;

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

    /// Does `step`, which does not wait, on this account.
    pub(crate) fn of_step<T>(self: &Arc<Self>, step: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(Arc::clone(self), step)
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
