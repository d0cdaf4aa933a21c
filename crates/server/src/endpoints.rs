//! The sockets of the server: accepting, capping, timing and ending connections.
//!
//! Makes one `Connection` for each accepted peer and hands its requests to `api`. Decides nothing about what a peer may do.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use spiffe::random::{Random, unit_interval};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tonic::body::Body;

use crate::api::Api;
use crate::budget::{CallPermit, Cost};
use crate::caller::Connection;
use crate::metrics::CONNECTIONS;
use crate::principal::Class;
use admission::{InFlight, Slot};
use daemon::log_limit::LogLimit;
use daemon::tasks::Shutdown;

pub(crate) mod admin;
pub(crate) mod admission;
#[cfg(test)]
mod budget_tests;
pub(crate) mod tcp;
#[cfg(test)]
mod tests;
pub(crate) mod trust;

/// A connection is asked to end at this age, so that a client shows its SVID afresh. SPIRE: MaxConnectionAge.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(180);
/// What calls in flight then still get; longer than the longest wait for a rate limit.
const AGE_GRACE: Duration = Duration::from_secs(90);
/// For GOAWAY to leave on a connection without calls.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// The same for a peer whose authority is no longer trusted; its calls get no more.
const WITHDRAWN_GRACE: Duration = Duration::from_millis(250);
/// SPIRE: gracefulStopTimeout.
pub(crate) const GRACEFUL_STOP: Duration = Duration::from_secs(10);
/// Finds peers that vanished without a word, on whose streams nothing is ever sent.
const PING_EVERY: Duration = Duration::from_secs(120);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What HTTP/2 lets one connection make this server hold. Its account's budget bounds all of its connections together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Http2Limits {
    /// Calls at once.
    streams: u32,
    headers: u32,
    /// Bytes that may arrive unread, of a call and of all together.
    stream_window: u32,
    connection_window: u32,
}

impl Http2Limits {
    fn of(class: Class) -> Self {
        if class.is_shed_first() {
            // An agent that attests needs one call at a time.
            Self {
                streams: 16,
                headers: 16 << 10,
                stream_window: 64 << 10,
                connection_window: 128 << 10,
            }
        } else {
            Self {
                streams: 1_000,
                headers: 64 << 10,
                stream_window: 1 << 20,
                connection_window: 4 << 20,
            }
        }
    }
}

/// Why a connection is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    TooOld,
    /// The bundle has lost the authority that vouched for the peer.
    Withdrawn,
    Stopping,
}

/// What every accept loop needs.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) api: Arc<Api>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) shutdown: Shutdown,
}

/// Serves gRPC on one connection until the peer leaves, the connection is too old, or the server stops.
/// `withdrawn` completes when what its peer was accepted for no longer holds.
async fn serve_connection<S>(
    stream: S,
    connection: Connection,
    slot: Arc<Slot>,
    serving: Serving,
    withdrawn: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Serving {
        api,
        random,
        mut shutdown,
    } = serving;
    let mut withdrawn = pin!(withdrawn);
    let connection = Arc::new(connection);
    let limits = Http2Limits::of(connection.principal().class());
    let served = (Arc::clone(&slot), Arc::clone(&connection));
    let service = service_fn(move |request| {
        let (slot, connection) = &served;
        let answering = answer(Arc::clone(&api), Arc::clone(connection), request);
        let in_flight = slot.begin_call();
        // Apart from the stream that goes on after it: only a call that is being answered needs its room.
        Box::pin(async move {
            let (response, permit) = answering.await;
            // A call counts for as long as its response is being sent.
            Ok::<_, Infallible>(response.map(|body| {
                Body::new(Counted {
                    body,
                    _in_flight: in_flight,
                    _permit: permit,
                })
            }))
        })
    });
    let mut serving = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.headers)
            .initial_stream_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let too_old = async {
        tokio::time::sleep(jittered(MAX_CONNECTION_AGE, random.as_ref())).await;
        connection.not_kept_open().await;
    };
    let ending = tokio::select! {
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = too_old => Ending::TooOld,
        () = slot.evicted() => return,
        () = withdrawn.as_mut() => Ending::Withdrawn,
        () = shutdown.requested() => Ending::Stopping,
    };
    slot.close();
    serving.as_mut().graceful_shutdown();
    let grace = match (slot.has_calls(), ending) {
        (_, Ending::Withdrawn) => WITHDRAWN_GRACE,
        // Nothing to wait for but GOAWAY; a peer that never spoke would not hear it.
        (false, _) => GOAWAY_GRACE,
        (true, Ending::Stopping) => GRACEFUL_STOP,
        (true, Ending::TooOld) => AGE_GRACE,
    };
    tokio::select! {
        _ended = serving => {}
        () = slot.evicted() => {}
        // Calls in flight get no more time than those of a connection that ends for this reason alone.
        () = withdrawn_after(withdrawn), if ending != Ending::Withdrawn => {}
        () = tokio::time::sleep(grace) => {
            tracing::debug!(
                seconds = grace.as_secs(),
                "connection cut off: calls did not end in time"
            );
        }
    }
}

/// Completes when what a peer was accepted for has not held for the grace of such connections.
async fn withdrawn_after(withdrawn: Pin<&mut impl Future<Output = ()>>) {
    withdrawn.await;
    tokio::time::sleep(WITHDRAWN_GRACE).await;
}

/// Answers a call, if the account of its peer has room for it. The permit is for as long as the answer is held.
async fn answer(
    api: Arc<Api>,
    connection: Arc<Connection>,
    request: http::Request<hyper::body::Incoming>,
) -> (http::Response<Body>, Option<CallPermit>) {
    let cost = Cost::of(request.uri().path());
    let permit = connection.budget().begin_call(cost);
    let response = api.call(&connection, request, permit.is_some()).await;
    (response, permit)
}

/// A response's body that keeps its call counted.
struct Counted {
    body: Body,
    _in_flight: InFlight,
    _permit: Option<CallPermit>,
}

impl hyper::body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// ± 10 %, so that the connections of a burst do not all come back at once.
fn jittered(period: Duration, random: &dyn Random) -> Duration {
    period.mul_f64(0.9 + 0.2 * unit_interval(random))
}

impl Serving {
    /// Counts a connection by what became of it.
    fn count(&self, endpoint: &'static str, outcome: &'static str) {
        let telemetry = &self.api.telemetry;
        telemetry.count(&CONNECTIONS, [endpoint, outcome]);
    }
}

/// The failures of one endpoint to accept. Peers that open many connections cause them.
#[derive(Debug, Default)]
struct FailedAccepts(LogLimit<()>);

impl FailedAccepts {
    /// A failing accept (no file descriptors left, most likely) must not turn into a busy loop.
    async fn pause_after(&self, error: &std::io::Error, shutdown: &mut Shutdown) {
        if let Some(left_out) = self.0.admit(&()) {
            tracing::warn!(%error, left_out, "cannot accept a connection; raise the limit of open files if this persists");
        }
        shutdown.sleep(Duration::from_millis(100)).await;
    }
}
