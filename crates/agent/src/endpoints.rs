//! The agent's Unix sockets: bound, accepted on, bounded, and every connection tied to the process behind it.
//!
//! It knows peers and connections; what is said on them is for the services. Python, Java and C clients send the
//! socket's path as `:authority`, which HTTP/2 libraries refuse: a filter makes it legal before anybody parses it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use config::fault::{Code, Fault};
use daemon::log_limit::LogLimit;
use daemon::socket::Modes;
use daemon::tasks::Shutdown;
use daemon::telemetry::Telemetry;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use plugin::workload_attestor::{Peer, PeerError};
use proto::authority_filter::AuthorityFilter;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

mod connections;
mod requests;
pub(crate) mod router;
pub(crate) mod standard;

pub(crate) use connections::Connections;
use connections::Slot;
use requests::{Open, Requests};
use router::Router;

use crate::attestor::Workload;

/// A client that connects has something to say: its HTTP/2 preface comes within this time.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// A request is complete and its answer, or the first part of it, there within this time: longer than a stream waits for
/// its first SVID.
const ANSWER: Duration = Duration::from_secs(45);
/// After `EMFILE` and the like, the kernel needs a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client opens a few streams per connection; some pool a thousand.
const STREAMS: u32 = 2048;
const HEADER_BYTES: u32 = 16 << 10;
const WINDOW: u32 = 64 << 10;
/// What a connection that makes room for another has to end what it does.
const EVICTED_GRACE: Duration = Duration::from_secs(1);
/// As good as never.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// What connections have to end what they do when the agent stops.
const DRAIN: Duration = Duration::from_secs(3);

/// The connections that the admin socket may have: taken away from the public one's, so that workloads never keep an
/// operator out.
const ADMIN_CONNECTIONS: usize = 64;

/// What the sockets may hold, out of one budget of the process.
pub(crate) fn budgets(telemetry: &Telemetry) -> (Connections, Connections) {
    let most = connections::most_connections();
    let admin = ADMIN_CONNECTIONS.min(most / 4);
    let requests = Arc::new(Requests::new());
    (
        Connections::new(
            "workload_api",
            most - admin,
            Arc::clone(&requests),
            telemetry.clone(),
        ),
        Connections::new("admin", admin, requests, telemetry.clone()),
    )
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Socket(daemon::socket::Socket);

impl Socket {
    /// # Errors
    /// As [`daemon::socket::Socket::bind`].
    pub(crate) fn bind(path: &Path, modes: Modes) -> Result<Self, Fault> {
        daemon::socket::Socket::bind(path, modes).map(Self)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Serves until the shutdown; connections then get a moment to end.
    ///
    /// # Errors
    /// When the socket can't be handed to the runtime.
    pub(crate) async fn serve(
        self,
        router: Router,
        connections: Connections,
        mut shutdown: Shutdown,
    ) -> Result<(), Fault> {
        let (listener, file) = self.0.into_parts();
        let listener = UnixListener::from_std(listener).map_err(|error| {
            Fault::new(Code::Internal, "socket cannot be served").because(error)
        })?;
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Whose user the kernel does not tell shares with others of that kind.
                    let user = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
                    let Some(slot) = connections.admit(user) else {
                        limit_reached(user);
                        continue;
                    };
                    drop(tokio::spawn(connection(
                        stream,
                        router.clone(),
                        slot,
                        shutdown.clone(),
                    )));
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        drop(file);
        connections.drained(DRAIN).await;
        Ok(())
    }
}

/// The answer, or DeadlineExceeded: a request that is never completed must not keep its place for ever.
async fn in_time(
    answer: impl Future<Output = Response<tonic::body::Body>>,
) -> Response<tonic::body::Body> {
    let answered = tokio::time::timeout(ANSWER, answer).await;
    answered.unwrap_or_else(|_elapsed| {
        let late = format!(
            "the request was not complete or not answered within {} s",
            ANSWER.as_secs()
        );
        tonic::Status::deadline_exceeded(late).into_http()
    })
}

fn limit_reached(user: u32) {
    static LINES: LazyLock<LogLimit<u32>> = LazyLock::new(LogLimit::default);
    if let Some(left_out) = LINES.admit(&user) {
        tracing::warn!(
            uid = user,
            left_out,
            "connection refused: the connection limit is reached"
        );
    }
}

/// A caller in another PID namespace, most likely, or one that exited.
fn not_identified(user: u32, error: &PeerError) {
    static LINES: LazyLock<LogLimit<u32>> = LazyLock::new(LogLimit::default);
    if let Some(left_out) = LINES.admit(&user) {
        let code = match error {
            PeerError::NotVisible | PeerError::NotAProcess { .. } => Code::WorkloadUnreadable,
            PeerError::Gone { .. } => Code::WorkloadGone,
            PeerError::Socket(_) => Code::Internal,
        };
        tracing::warn!(code = code.as_str(), uid = user, left_out, %error, "caller not identified");
    }
}

/// Answers one request, within what its user may have open.
async fn answer(
    router: &Router,
    workload: Arc<Workload>,
    slot: &Arc<Slot>,
    request: Request<Incoming>,
) -> Response<tonic::body::Body> {
    let Some(open) = Open::on(slot) else {
        return requests::too_many().into_http();
    };
    let mut request = request.map(|body| open.meter(body));
    request.extensions_mut().insert(workload);
    let response = in_time(router.route(request)).await;
    response.map(|body| open.until_sent(body))
}

/// One connection. Until its client speaks it costs little more than the socket.
async fn connection(stream: UnixStream, router: Router, slot: Slot, mut shutdown: Shutdown) {
    let workload = match Peer::from_unix_stream(&stream) {
        Ok(peer) => Arc::new(Workload::new(Arc::new(peer))),
        Err(error) => {
            not_identified(slot.user(), &error);
            return;
        }
    };
    let spoke = tokio::select! {
        () = shutdown.requested() => false,
        () = slot.evicted() => false,
        readable = tokio::time::timeout(FIRST_BYTES, stream.readable()) => matches!(readable, Ok(Ok(()))),
    };
    if spoke {
        Box::pin(converse(stream, workload, router, Arc::new(slot), shutdown)).await;
    }
}

/// A connection whose client has spoken, to its end.
async fn converse(
    stream: UnixStream,
    workload: Arc<Workload>,
    router: Router,
    slot: Arc<Slot>,
    mut shutdown: Shutdown,
) {
    let own_slot = Arc::clone(&slot);
    let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, workload, slot) =
            (router.clone(), Arc::clone(&workload), Arc::clone(&own_slot));
        // Apart from the stream that goes on after it: only a call that is being answered needs its room.
        Box::pin(
            async move { Ok::<_, Infallible>(answer(&router, workload, &slot, request).await) },
        )
    });
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(64 << 10);
    let stream = TokioIo::new(AuthorityFilter::new(stream));
    let mut serving = std::pin::pin!(http.serve_connection(stream, answer));
    let mut leaving = false;
    let cut_off = tokio::time::sleep(FAR);
    tokio::pin!(cut_off);
    loop {
        let idle_left = slot.idle_left();
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = shutdown.requested(), if !leaving => leaving = true,
            () = slot.evicted() => {
                // A request that came in at the same time is answered, or refused in a way that the client repeats.
                leaving = true;
                cut_off.as_mut().reset(Instant::now() + EVICTED_GRACE);
            }
            () = &mut cut_off => return,
            () = tokio::time::sleep(idle_left), if !leaving => {
                // A request may have come in meanwhile.
                leaving = slot.idle_left().is_zero();
            }
        }
        if leaving {
            serving.as_mut().graceful_shutdown();
        }
    }
}

#[cfg(test)]
mod tests;
