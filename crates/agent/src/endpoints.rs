//! The agent's Unix sockets: bound, accepted on, bounded, and every connection tied to the process behind it.
//!
//! It knows peers and connections; what is said on them is for the services. Python, Java and C clients send the
//! socket's path as `:authority`, which HTTP/2 libraries refuse: a filter makes it legal before anybody parses it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use config::fault::{Code, Fault};
use daemon::socket::Modes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use plugin::workload_attestor::Peer;
use proto::authority_filter::AuthorityFilter;
use tokio::net::{UnixListener, UnixStream};

mod connections;
pub(crate) mod http_health;
pub(crate) mod standard;

use connections::{Connections, Slot};

use crate::attestor::Workload;
use crate::stop::Stop;

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
/// What connections have to end what they do when the agent stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Something that answers requests of processes that are known.
pub(crate) trait Serve: Clone + Send + Sync + 'static {
    /// Answers one request. The peer is the process that opened the connection.
    fn serve(
        &self,
        workload: Arc<Workload>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<tonic::body::Body>> + Send;
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

    /// Serves until `stop`; connections then get a moment to end.
    ///
    /// # Errors
    /// When the socket can't be handed to the runtime.
    pub(crate) async fn serve(self, service: impl Serve, mut stop: Stop) -> Result<(), Fault> {
        let (listener, file) = self.0.into_parts();
        let listener = UnixListener::from_std(listener).map_err(|error| {
            Fault::new(Code::Internal, "socket cannot be served").because(error)
        })?;
        let connections = Connections::new();
        loop {
            let accepted = tokio::select! {
                () = stop.stopped() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Whose user the kernel does not tell shares with others of that kind.
                    let user = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
                    let Some(slot) = connections.admit(user) else {
                        tracing::warn!(
                            uid = user,
                            "connection refused: all places for it are busy"
                        );
                        continue;
                    };
                    drop(tokio::spawn(connection(
                        stream,
                        service.clone(),
                        slot,
                        stop.clone(),
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

/// The answer, or that there is none: a request that never gets complete must not hold its place for ever.
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

/// One connection. Until its client speaks it costs little more than the socket.
async fn connection(stream: UnixStream, service: impl Serve, slot: Slot, mut stop: Stop) {
    let peer = match Peer::from_unix_stream(&stream) {
        Ok(peer) => Arc::new(Workload::new(Arc::new(peer))),
        Err(error) => {
            tracing::warn!(%error, "caller not identified");
            return;
        }
    };
    let spoke = tokio::select! {
        () = stop.stopped() => false,
        () = slot.evicted() => false,
        readable = tokio::time::timeout(FIRST_BYTES, stream.readable()) => matches!(readable, Ok(Ok(()))),
    };
    if spoke {
        Box::pin(converse(stream, peer, service, Arc::new(slot), stop)).await;
    }
}

/// A connection whose client has spoken, to its end.
async fn converse(
    stream: UnixStream,
    peer: Arc<Workload>,
    service: impl Serve,
    slot: Arc<Slot>,
    mut stop: Stop,
) {
    let own_slot = Arc::clone(&slot);
    let answer = hyper::service::service_fn(move |request| {
        let (service, peer, busy) = (service.clone(), Arc::clone(&peer), own_slot.busy());
        async move {
            let response = in_time(service.serve(peer, request)).await;
            Ok::<_, Infallible>(response.map(|body| connections::Busy::hold(busy, body)))
        }
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
    loop {
        let mut patience = slot.patience();
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = stop.stopped(), if !leaving => leaving = true,
            () = slot.evicted() => return,
            () = tokio::time::sleep(patience), if !leaving => {
                // Whoever asked for something in the meantime may stay.
                patience = slot.patience();
                leaving = patience.is_zero();
            }
        }
        if leaving {
            serving.as_mut().graceful_shutdown();
        }
    }
}

#[cfg(test)]
mod tests;
