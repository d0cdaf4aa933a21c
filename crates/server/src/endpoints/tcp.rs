//! The mTLS endpoint for agents, downstream servers and remote administrators.
//!
//! A client certificate is optional, since an agent has none before it is attested. One that is shown must verify against
//! the bundle of its own trust domain and belong to this trust domain or to a configured administrator.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use config::fault::{Code, Fault};
use daemon::log_limit::LogLimit;
use spiffe::tls::{PeerIdentity, SpiffeAcceptor};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::{Admission, Capacity, Slot};
use super::trust::PeerBundles;
use super::{FailedAccepts, Serving, serve_connection};
use crate::caller::Connection;
use crate::principal::{Account, Class, PeerSvid, Principal};
use crate::source::Source;

/// Whatever the limit of open files would allow.
const MAX_CONNECTIONS: usize = 65_536;
/// Connections of unauthenticated peers and of workloads: each unfinished handshake may cost 64 KiB.
const MAX_SHED_FIRST: usize = 8_192;
/// Of which one source address may hold this part; not a small one, since all agents may come through one load balancer.
const SOURCES_PART: usize = 4;
/// A peer that takes longer keeps its place from nobody: at the cap the oldest handshakes go first.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The bound endpoint.
#[derive(Debug)]
pub(crate) struct TcpEndpoint {
    listener: TcpListener,
    address: SocketAddr,
}

/// Binds the port. Port 0 takes a free one.
///
/// # Errors
/// When the address is taken or not ours, naming both.
pub(crate) async fn bind(address: &str, port: u16) -> Result<TcpEndpoint, Fault> {
    let (listener, address) = listen(address, port, "").await?;
    Ok(TcpEndpoint { listener, address })
}

/// Listens on a name or IP address. `keys` is what bind_address and bind_port are prefixed with in the configuration.
pub(super) async fn listen(
    host: &str,
    port: u16,
    keys: &str,
) -> Result<(TcpListener, SocketAddr), Fault> {
    let fault = |error: std::io::Error| {
        let (code, what, hint) = match error.kind() {
            ErrorKind::AddrInUse => (
                Code::AddressInUse,
                format!("port {port} on {host} is in use"),
                format!(
                    "find its holder with: ss -ltnp 'sport = :{port}'; or set {keys}bind_port to another port"
                ),
            ),
            ErrorKind::PermissionDenied => (
                Code::BindFailed,
                format!("port {port} on {host} may not be used"),
                format!("set {keys}bind_port to a port above 1023, or grant CAP_NET_BIND_SERVICE"),
            ),
            _ => (
                Code::BindFailed,
                format!("cannot listen on {host} port {port}"),
                format!("set {keys}bind_address to an address of this machine"),
            ),
        };
        Fault::new(code, what).because(error).hint(hint)
    };
    let listener = TcpListener::bind((host, port)).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    Ok((listener, address))
}

impl TcpEndpoint {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until the server stops, then waits for the connections to end.
    pub(crate) async fn run(self, peers: Peers, room: usize, serving: Serving) {
        let most = room.min(MAX_CONNECTIONS);
        let shed_first = (most / 2).clamp(1, MAX_SHED_FIRST);
        let mut connections = Admission::new(Capacity {
            most,
            shed_first,
            per_source: (shed_first / SOURCES_PART).max(1),
        });
        let (peers, failed_accepts) = (Arc::new(peers), FailedAccepts::default());
        let mut shutdown = serving.shutdown.clone();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                accepted = async {
                    connections.settled().await;
                    self.listener.accept().await
                } => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let (of_this_one, of_connection) = (Arc::clone(&peers), serving.clone());
                    let serve = |slot| serve(stream, address, of_this_one, slot, of_connection);
                    let from = Account::Source(Source::of(address.ip()));
                    let admitted = connections.spawn(from, Class::Unauthenticated, serve);
                    if !admitted {
                        serving.count("mtls", "refused");
                    }
                    if !admitted && let Some(left_out) = peers.may_log(address) {
                        tracing::warn!(most, %address, left_out, "refusing a connection: too many");
                    }
                }
                Err(error) => failed_accepts.pause_after(&error, &mut shutdown).await,
            }
        }
        drop(self.listener);
        connections.all_ended().await;
    }
}

/// Whom the endpoint accepts, and until when.
#[derive(Debug)]
pub(crate) struct Peers {
    tls: SpiffeAcceptor,
    bundles: Arc<PeerBundles>,
    log_limit: LogLimit<Source>,
}

impl Peers {
    /// `tls` verifies against `bundles`.
    pub(crate) fn new(tls: SpiffeAcceptor, bundles: Arc<PeerBundles>) -> Self {
        Self {
            tls,
            bundles,
            log_limit: LogLimit::default(),
        }
    }

    /// Whether a line that this address causes may be written: then how many were not.
    fn may_log(&self, address: SocketAddr) -> Option<u64> {
        self.log_limit.admit(&Source::of(address.ip()))
    }
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    peers: Arc<Peers>,
    slot: Arc<Slot>,
    serving: Serving,
) {
    let mut shutdown = serving.shutdown.clone();
    let accepted = tokio::select! {
        () = shutdown.requested() => return,
        () = slot.evicted() => return,
        // On the heap: the task of each connection has room for all that it ever holds across an await, and ten thousand
        // agents have ten thousand of them.
        accepted = Box::pin(accept(stream, address, &peers.tls)) => accepted,
    };
    let Some((stream, peer)) = accepted else {
        serving.count("mtls", "handshake_failed");
        return;
    };
    let svid = peer.as_ref().map(PeerSvid::from);
    // On the heap, since it is handed on: here it would have room for each of the hands.
    let withdrawn: Pin<Box<dyn Future<Output = ()> + Send>> = match &peer {
        Some(peer) => Box::pin(peers.bundles.withdrawn(peer)),
        // Nobody vouched for it.
        None => Box::pin(std::future::pending()),
    };
    let authorizer = &serving.api.authorizer;
    if let Some(svid) = &svid
        && !authorizer.may_connect(svid.id())
    {
        if let Some(left_out) = peers.may_log(address) {
            tracing::warn!(%address, id = %svid.id(), left_out, "closing a connection: the client is neither in this trust domain nor an administrator");
        }
        return;
    }
    let principal = match svid {
        None => Principal::Unauthenticated,
        Some(svid) => {
            // An agent that attested at another server a moment ago is one here as well, and stays it for the connection.
            if svid.id().is_agent() {
                authorizer.wait_for_others(&svid).await;
            }
            authorizer.principal(svid)
        }
    };
    serving.count("mtls", "accepted");
    let class = principal.class();
    let account = match principal.svid() {
        Some(svid) => Account::Identity(svid.id().clone(), class),
        None => Account::Source(Source::of(address.ip())),
    };
    let budget = slot.enter(account, class);
    let connection = Connection::new(principal, Some(address), budget, slot.closing());
    serve_connection(stream, connection, slot, serving, withdrawn).await;
}

/// A TLS connection, and who showed an SVID on it.
type Accepted = (Box<TlsStream<TcpStream>>, Option<PeerIdentity>);

/// Completes the handshake. `None` when the peer does not.
async fn accept(stream: TcpStream, address: SocketAddr, tls: &SpiffeAcceptor) -> Option<Accepted> {
    // Only latency is lost without it.
    drop(stream.set_nodelay(true));
    let (config, peer) = match tls.begin() {
        Ok(begun) => begun,
        Err(error) => {
            tracing::error!(%error, "cannot accept a connection");
            return None;
        }
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake refused");
            return None;
        }
        Err(_elapsed) => {
            tracing::debug!(%address, seconds = HANDSHAKE_TIMEOUT.as_secs(), "TLS handshake took too long");
            return None;
        }
    };
    match peer.identity(stream.get_ref().1) {
        Ok(peer) => Some((stream, peer)),
        Err(error) => {
            tracing::error!(%address, %error, "closing a connection: it does not say who its peer is");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_idle_needs_little_room() {
        fn room<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
            size_of::<F>()
        }
        let needed = room(serve);
        assert!(needed <= 3 << 10, "{needed} bytes, of ten thousand agents");
    }
}
