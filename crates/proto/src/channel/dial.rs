//! Which address of a server a connection goes to. A name may stand for several servers, some of them down, and for
//! both families of addresses, one of them without a route: all are tried, as RFC 8305 ("happy eyeballs") says.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// For everything: name, connection and handshake, over all addresses.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the addresses that a name stands for, the first ones.
const MAX_ADDRESSES: usize = 16;
/// How soon a peer that vanished is noticed: an idle connection after 15 + 3 × 5 s, others by unacknowledged data.
const TCP_IDLE_SECONDS: u32 = 15;
const TCP_PROBE_SECONDS: u32 = 5;
const TCP_PROBES: u32 = 3;
const TCP_UNACKNOWLEDGED_MILLISECONDS: u32 = 30_000;

/// When the next address gets its turn though the one before may still answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptDelays {
    /// RFC 8305: Connection Attempt Delay.
    pub(super) connection: Duration,
    /// A server that accepts connections and shakes no hands hangs.
    pub(super) handshake: Duration,
}

impl Default for AttemptDelays {
    fn default() -> Self {
        Self {
            connection: Duration::from_millis(250),
            handshake: Duration::from_secs(3),
        }
    }
}

/// Connects to a server by its name, each time to the first address that answers.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    address: String,
    turns: AttemptDelays,
    /// The address of the last connection. It comes last the next time: if it broke, another server may do better.
    last: Arc<Mutex<Option<SocketAddr>>>,
}

impl Dialer {
    pub(super) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            turns: AttemptDelays::default(),
            last: Arc::default(),
        }
    }

    /// A connection whose TLS handshake is done.
    pub(super) async fn tls(
        &self,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let connecting = async {
            let addresses = self.in_turn(resolve(&self.address).await?);
            let (stream, address) = shake_hands(addresses, self.turns, name, config).await?;
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
            Ok(stream)
        };
        in_time(connecting).await
    }

    fn in_turn(&self, mut addresses: VecDeque<SocketAddr>) -> VecDeque<SocketAddr> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = addresses.iter().position(|address| Some(*address) == last)
            && let Some(used) = addresses.remove(at)
        {
            addresses.push_back(used);
        }
        addresses
    }
}

/// A connection to the first address of `host:port` that answers.
///
/// # Errors
/// When none answers within ten seconds, with the reason of the first.
pub async fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    in_time(async {
        let mut addresses = resolve(address).await?;
        let (stream, _) = race(&mut addresses, AttemptDelays::default().connection).await?;
        Ok(stream)
    })
    .await
}

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_elapsed| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no connection within 10 s",
            ))
        })
}

/// The addresses in the resolver's order, the families in turn.
async fn resolve(address: &str) -> io::Result<VecDeque<SocketAddr>> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await?
        .take(MAX_ADDRESSES)
        .collect();
    if found.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{address} has no address"),
        ));
    }
    Ok(families_in_turn(&found))
}

fn families_in_turn(found: &[SocketAddr]) -> VecDeque<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut other): (VecDeque<SocketAddr>, VecDeque<SocketAddr>) = found
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut in_turn = VecDeque::with_capacity(found.len());
    while let Some(address) = first.pop_front().or_else(|| other.pop_front()) {
        in_turn.push_back(address);
        in_turn.extend(other.pop_front());
    }
    in_turn
}

/// Goes on to the next address when one does not shake hands or shows a certificate that is not trusted. The error is
/// that of the first handshake that failed, since it says more than a refused connection.
async fn shake_hands(
    mut addresses: VecDeque<SocketAddr>,
    turns: AttemptDelays,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<(TlsStream<TcpStream>, SocketAddr)> {
    let connector = TlsConnector::from(config);
    let mut failed: Option<io::Error> = None;
    loop {
        let (tcp, address) = match race(&mut addresses, turns.connection).await {
            Ok(connected) => connected,
            Err(error) => return Err(failed.unwrap_or(error)),
        };
        let shaking = async {
            tcp.set_nodelay(true)?;
            notice_vanished_peer(&tcp)?;
            connector.connect(name.clone(), tcp).await
        };
        let error = if addresses.is_empty() {
            // Nobody else is left: it may take all of the time there is.
            match shaking.await {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => error,
            }
        } else {
            match tokio::time::timeout(turns.handshake, shaking).await {
                Ok(Ok(stream)) => return Ok((stream, address)),
                Ok(Err(error)) => error,
                Err(_elapsed) => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{address} accepts connections but does not answer"),
                ),
            }
        };
        failed.get_or_insert(error);
        if addresses.is_empty() {
            return Err(failed.unwrap_or_else(|| io::ErrorKind::NotConnected.into()));
        }
    }
}

/// The first connection that comes about; the address is taken out of `addresses`, and so are those that failed.
/// Those that were still trying stay in.
async fn race(
    addresses: &mut VecDeque<SocketAddr>,
    stagger: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut waiting = addresses.clone();
    let mut trying = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    loop {
        if let Some(address) = waiting.pop_front() {
            trying.push(async move { (address, TcpStream::connect(address).await) });
        }
        if trying.is_empty() {
            return Err(failed.unwrap_or_else(|| io::ErrorKind::NotConnected.into()));
        }
        let next_turn = async {
            if waiting.is_empty() {
                std::future::pending::<()>().await;
            } else {
                tokio::time::sleep(stagger).await;
            }
        };
        tokio::select! {
            Some((address, outcome)) = trying.next() => {
                addresses.retain(|tried| *tried != address);
                match outcome {
                    Ok(stream) => return Ok((stream, address)),
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                }
            }
            () = next_turn => {}
        }
    }
}

fn notice_vanished_peer(tcp: &TcpStream) -> io::Result<()> {
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &TCP_IDLE_SECONDS)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &TCP_PROBE_SECONDS)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &TCP_PROBES)?;
    setsockopt(
        tcp,
        sockopt::TcpUserTimeout,
        &TCP_UNACKNOWLEDGED_MILLISECONDS,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
