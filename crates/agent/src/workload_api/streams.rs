//! The three streams: X509-SVIDs, X.509 bundles, JWT bundles. Each message is the full state, sent when it differs from
//! the one before, and only after the caller was looked at again. A new caller gets nothing stale while the server answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::Instant;
use tonic::Status;

use super::Context;
use super::messages::{self, Encoded};
use crate::attestor::Workload;
use crate::cache::update::WorkloadUpdate;
use crate::cache::{Outlook, Purpose, Subscription};
use crate::gate::Caller;
use crate::rate_limit::Method;

/// A new caller waits this long for SVIDs that are being issued in place of stale ones; then it gets those.
/// Short enough for callers with a deadline of a second.
pub(super) const RENEWAL_TIMEOUT: Duration = Duration::from_millis(500);
/// The first message waits this long for all of the caller's SVIDs; then those that are there are sent.
pub(super) const COMPLETE_TIMEOUT: Duration = Duration::from_secs(5);
/// A caller that has no SVID at all by then has to come back.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(20);

/// A caller of whom not all is known is attested again after this time.
const INCOMPLETE_RETRY: Duration = Duration::from_secs(5);

/// A stream of messages as they are sent.
type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Which bundles a stream is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    X509,
    Jwt,
}

/// What a stream sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Svids,
    Bundles(Kind),
}

struct Sending {
    context: Arc<Context>,
    caller: Caller,
    what: What,
    subscription: Subscription,
    sent: Option<Encoded>,
    opened: Instant,
    /// Time has passed since the caller was attested.
    waited: bool,
    over: bool,
}

/// FetchX509SVID.
pub(super) async fn x509_svids(
    context: Arc<Context>,
    workload: Arc<Workload>,
) -> Result<Messages, Status> {
    open(context, workload, What::Svids, Method::FetchX509Svid).await
}

/// FetchX509Bundles and FetchJWTBundles.
pub(super) async fn bundles(
    context: Arc<Context>,
    workload: Arc<Workload>,
    kind: Kind,
) -> Result<Messages, Status> {
    let method = match kind {
        Kind::X509 => Method::FetchX509Bundles,
        Kind::Jwt => Method::FetchJwtBundles,
    };
    open(context, workload, What::Bundles(kind), method).await
}

async fn open(
    context: Arc<Context>,
    workload: Arc<Workload>,
    what: What,
    method: Method,
) -> Result<Messages, Status> {
    let caller = context.gate.admit(workload, Some(method)).await?;
    let subscription = subscribe(&context, &caller, what);
    let mut sending = Sending {
        context,
        caller,
        what,
        subscription,
        sent: None,
        opened: Instant::now(),
        waited: false,
        over: false,
    };
    // A refusal is the whole answer and needs no stream.
    let first = sending.next().await?;
    let messages = unfold((Some(first), sending), |(first, mut sending)| async move {
        if let Some(first) = first {
            return Some((Ok(first.frame()), (None, sending)));
        }
        if sending.over {
            return None;
        }
        let next = sending.next().await;
        sending.over = next.is_err();
        Some((next.map(|next| next.frame()), (None, sending)))
    });
    Ok(Box::pin(messages))
}

fn subscribe(context: &Context, caller: &Caller, what: What) -> Subscription {
    let purpose = match what {
        What::Svids => Purpose::X509Svids,
        What::Bundles(_) => Purpose::Bundles,
    };
    context.gate.cache.subscribe(&caller.selectors, purpose)
}

impl Sending {
    /// Waits for the next message that is worth sending; an error is the stream's end.
    async fn next(&mut self) -> Result<Encoded, Status> {
        loop {
            // In this order: what changes from here on wakes `wait`, and an update that is read after the outlook is
            // at least as new as what the outlook counted as settled.
            self.subscription.updates.mark_unchanged();
            let better_until = self.better_until();
            let update = Arc::clone(&self.subscription.updates.borrow());
            if better_until.is_none()
                && let Some(message) = self.message_of(&update)?
            {
                if self.waited && self.caller_changed().await? {
                    continue;
                }
                self.waited = true;
                self.sent = Some(message.clone());
                return Ok(message);
            }
            self.waited = true;
            let incomplete = !self.caller.incomplete.is_empty();
            tokio::select! {
                changed = self.wait(better_until) => changed?,
                // The caller may have more than what it was given so far.
                () = tokio::time::sleep(INCOMPLETE_RETRY), if incomplete => {
                    self.caller_changed().await?;
                }
            }
        }
    }

    /// How long the first message is held back because a better one is about to come.
    fn better_until(&self) -> Option<Instant> {
        if self.what != What::Svids || self.sent.is_some() {
            return None;
        }
        let complete_by = self.opened + COMPLETE_TIMEOUT;
        let horizon = complete_by.saturating_duration_since(Instant::now());
        let until = match self.subscription.outlook(horizon) {
            Outlook::Settled => return None,
            Outlook::Issuing => complete_by,
            // What is stale but valid is the better answer when there is no server.
            Outlook::Renewing if !self.context.gate.status.borrow().connected => return None,
            Outlook::Renewing => self.opened + RENEWAL_TIMEOUT,
        };
        (Instant::now() < until).then_some(until)
    }

    /// The message, unless it was sent already or there is none yet.
    fn message_of(&self, update: &WorkloadUpdate) -> Result<Option<Encoded>, Status> {
        let open_to_all =
            self.context.config.allow_unauthenticated_verifiers && self.what != What::Svids;
        if !update.has_identity() && !open_to_all {
            return Err(self.context.gate.no_identity(&self.caller));
        }
        let message = match self.what {
            What::Svids => messages::x509_svids(update),
            What::Bundles(Kind::X509) => messages::x509_bundles(update),
            What::Bundles(Kind::Jwt) => messages::jwt_bundles(update),
        };
        Ok(message
            .filter(|message| self.sent.as_ref() != Some(*message))
            .cloned())
    }

    /// Waits for a change: before the first message until `better_until`, or until the caller has to come back.
    async fn wait(&mut self, better_until: Option<Instant>) -> Result<(), Status> {
        let changed = self.subscription.updates.changed();
        let outcome = if self.sent.is_some() {
            changed.await
        } else {
            let give_up = self.opened + ISSUE_TIMEOUT;
            match tokio::time::timeout_at(better_until.unwrap_or(give_up), changed).await {
                Ok(outcome) => outcome,
                Err(_elapsed) if better_until.is_some() => Ok(()),
                Err(_elapsed) => return Err(self.context.gate.not_issued_yet(&self.caller)),
            }
        };
        // The cache outlives its streams, unless the agent ends.
        outcome.map_err(|_closed| Status::unavailable("the agent is stopping"))
    }

    /// Attests the process again before it gets something new: it may run another program.
    async fn caller_changed(&mut self) -> Result<bool, Status> {
        let changed = self.context.gate.attest_again(&mut self.caller).await?;
        if changed {
            self.subscription = subscribe(&self.context, &self.caller, self.what);
        }
        Ok(changed)
    }
}
