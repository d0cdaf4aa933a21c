//! The watch: an agent holds one stream and hears of each change that concerns it as soon as it is committed.
//!
//! First a full list, or what has changed since the agent's cursor; then deltas. Each event is checked against the agent's row
//! again at the moment it leaves, and the stream of an agent that is evicted, banned or expired ends at once. What an
//! agent gets is decided by the registry alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use proto::message_body;
use proto::plastron::server::v1::watch_server::Watch as WatchApi;
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use spiffe::clock::Clock;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::audit::Fields;
use crate::authz::{Authorizer, StreamEnd};
use crate::caller::{Caller, PeerSvid};
use crate::error::Kind;
use crate::ops::agents::Agents;
use crate::ratelimit::RateLimits;
use crate::registry::Registry;
use notifier::{Membership, Notifier};
use subscription::Pending;
use view::{Outgoing, View};

mod affected;
pub(crate) mod notifier;
mod subscription;
#[cfg(test)]
mod tests;
mod view;

/// Events made ahead of what the agent has read.
const AHEAD: usize = 2;
/// A watcher rests this many times as long as it worked, so that a storm of changes costs each a share of a core at most.
const REST_FACTOR: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(1);
/// For an agent to read one event before its stream ends.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// For a first list to be read before another agent's turn comes.
const LIST_TURN: Duration = Duration::from_secs(10);
/// First lists that are sent at once; other agents wait for their turn.
pub(crate) const FIRST_LISTS: usize = 64;

#[derive(Debug)]
pub(crate) struct WatchService {
    pub(crate) agents: Arc<Agents>,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) notifier: Arc<Notifier>,
    /// Held while a first list is sent.
    pub(crate) lists: Arc<Semaphore>,
}

#[tonic::async_trait]
impl WatchApi for WatchService {
    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request)?;
        let svid = caller.agent()?.svid().clone();
        let version = &request.get_ref().agent_version;
        caller.describe(|| {
            Fields::new()
                .with("spiffe_id", svid.id())
                .with("agent_version", version.escape_debug())
        });
        // A write for each stream that an agent opens would be the agent's to multiply.
        let may_write = || self.limits.post_status.take_now(&caller.connection);
        let reported = self.agents.report_version(svid.id(), version, may_write);
        match reported.await {
            Err(error) if error.kind() == Kind::InvalidArgument => return Err(error.into()),
            // An agent is served although its version cannot be written down.
            Err(error) => error.log(),
            Ok(()) => {}
        }
        caller.still_entitled()?;
        let (events, stream) = mpsc::channel(AHEAD);
        // Before the first look, so that no change falls between.
        let membership = self.notifier.subscribe(svid.id().clone());
        let view = View::new(
            Arc::clone(&self.registry),
            svid.id().clone(),
            Arc::clone(membership.subscription()),
        );
        let watcher = Watcher {
            svid: svid.clone(),
            clock: Arc::clone(&self.clock),
            authorizer: Arc::clone(&self.authorizer),
            membership,
            revisions: self.registry.subscribe(),
            view,
            lists: Arc::clone(&self.lists),
            events,
        };
        tokio::spawn(watcher.run(request.into_inner()));
        let authorizer = Arc::clone(&self.authorizer);
        // Each push checks the agent again, so the connection need not end for that.
        let kept_open = caller.connection.keep_open();
        let checked = ReceiverStream::new(stream).scan(kept_open, move |_, event| {
            std::future::ready(match authorizer.recheck_agent(&svid) {
                Ok(()) => Some(*event),
                Err(StreamEnd::Denied(denied)) => Some(Err(denied.into())),
                Err(StreamEnd::Superseded) => None,
            })
        });
        Ok(Response::new(Box::pin(until_closing(
            checked,
            caller.connection.closing(),
        ))))
    }
}

impl WatchService {
    /// The events of a watch as they are sent: ten thousand agents that are idle hold no copy of their lists.
    pub(crate) async fn frames(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Status> {
        let events = WatchApi::watch(self, request).await?.into_inner();
        Ok(events.map(|event| event.map(|event| Bytes::from(message_body::frame(&event)))))
    }
}

/// Ends a stream when its connection is to end.
pub(crate) fn until_closing<S: Stream>(
    stream: S,
    mut closing: watch::Receiver<bool>,
) -> impl Stream<Item = S::Item> {
    stream.take_until(async move {
        // An error means that the connection is gone.
        drop(closing.wait_for(|closing| *closing).await.map(|_| ()));
    })
}

/// On the heap: a channel keeps room for thirty-two of them, as long as the stream is open.
type NextEvent = Box<Result<WatchEvent, Status>>;

struct Watcher {
    svid: PeerSvid,
    clock: Arc<dyn Clock>,
    authorizer: Arc<Authorizer>,
    membership: Membership,
    revisions: watch::Receiver<u64>,
    view: View,
    lists: Arc<Semaphore>,
    events: mpsc::Sender<NextEvent>,
}

/// The stream is over.
struct Ended;

impl Watcher {
    async fn run(mut self, request: WatchRequest) {
        // Lists and pushes have room of their own, for as long as they take: a watcher that waits needs little.
        if Box::pin(self.first_list(&request)).await.is_err() {
            return;
        }
        drop(request);
        let life = self
            .svid
            .not_after()
            .duration_since(self.clock.now())
            .unwrap_or_default();
        let mut expiry = Instant::now() + life;
        let registry = Arc::clone(&self.authorizer.registry);
        loop {
            let pending = tokio::select! {
                pending = self.membership.pending() => pending,
                // The check below says so to the agent, which then goes to another server.
                _ = registry.freshness().stale() => Pending::default(),
                () = tokio::time::sleep_until(expiry) => Pending::default(),
                () = self.events.closed() => return,
            };
            if pending.replaced {
                return;
            }
            if let Err(end) = self.authorizer.recheck_agent(&self.svid) {
                if let StreamEnd::Denied(denied) = end {
                    // The agent learns why; if it does not read, the stream ends all the same.
                    drop(self.events.try_send(Box::new(Err(denied.into()))));
                }
                return;
            }
            // The clock says that it has not expired: look again soon.
            expiry = expiry.max(Instant::now() + LONGEST_REST);
            let started = Instant::now();
            let Some(outgoing) = self.view.advance(&pending) else {
                continue;
            };
            let worked = started.elapsed();
            if Box::pin(self.push(outgoing)).await.is_err() {
                return;
            }
            tokio::time::sleep((worked * REST_FACTOR).min(LONGEST_REST)).await;
        }
    }

    /// When all agents come back at once, a bounded number of lists is in memory.
    async fn first_list(&mut self, request: &WatchRequest) -> Result<(), Ended> {
        let lists = Arc::clone(&self.lists);
        let turn = tokio::select! {
            turn = lists.acquire() => turn.map_err(|_closed| Ended)?,
            () = self.events.closed() => return Err(Ended),
        };
        let first = self.view.start(request);
        let mut pushing = std::pin::pin!(self.push(first));
        if let Ok(pushed) = tokio::time::timeout(LIST_TURN, pushing.as_mut()).await {
            return pushed;
        }
        // A slow reader goes on without its turn: what it still holds is a pointer for each entry.
        drop(turn);
        pushing.await
    }

    /// Hands events over as the agent reads them; an agent that loses its standing meanwhile gets no more, and one that
    /// does not read at all loses its stream.
    async fn push(&mut self, outgoing: Outgoing) -> Result<(), Ended> {
        let mut revisions = self.revisions.clone();
        for event in outgoing {
            if self.membership.subscription().is_replaced() {
                return Err(Ended);
            }
            let deadline = Instant::now() + READ_TIMEOUT;
            let permit = loop {
                tokio::select! {
                    permit = self.events.reserve() => break permit.map_err(|_gone| Ended)?,
                    changed = revisions.changed() => {
                        changed.map_err(|_gone| Ended)?;
                        self.authorizer.recheck_agent(&self.svid).map_err(|_denied| Ended)?;
                    }
                    () = tokio::time::sleep_until(deadline) => return Err(Ended),
                }
            };
            permit.send(Box::new(Ok(event)));
        }
        Ok(())
    }
}
