//! Channels to a server or agent: over a Unix socket, or TCP with mutual TLS. Owns how a connection is made and
//! kept alive; whom to trust is in the `rustls::ClientConfig` that the caller brings.

#[cfg(test)]
mod tests;

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// For the connection and, with TCP, the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// gRPC servers written in Go close connections that ping more often than every five minutes.
const PING_INTERVAL: Duration = Duration::from_secs(310);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How soon a peer that vanished is noticed: idle connections after about a minute, others by unacknowledged data.
const TCP_IDLE_SECONDS: u32 = 30;
const TCP_PROBE_SECONDS: u32 = 10;
const TCP_PROBES: u32 = 3;
const TCP_UNACKNOWLEDGED_MILLISECONDS: u32 = 60_000;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The address is not of the form `host:port`.
    #[error("address {address:?} is not host:port")]
    Address {
        /// As given.
        address: String,
    },
    /// Nobody answers at the address, or the handshake failed. The source is the innermost cause.
    #[error("could not connect to {target}: {cause}")]
    Connect {
        /// A socket path or `host:port`.
        target: String,
        /// What the operating system or the handshake says.
        cause: String,
        /// The kind of the input or output error, where that was the cause.
        kind: Option<io::ErrorKind>,
    },
}

/// Connects to a Unix socket and reconnects when the connection breaks.
///
/// # Errors
/// When the first connection fails.
pub async fn connect_uds(path: impl AsRef<Path>) -> Result<Channel, ChannelError> {
    let path = path.as_ref().to_path_buf();
    let target = path.display().to_string();
    let connected = endpoint()
        .connect_with_connector(service_fn(move |_| uds_stream(path.clone())))
        .await;
    connected.map_err(|error| connect_error(target, &error))
}

/// As [`connect_uds`], but connects with the first request.
#[must_use]
pub fn lazy_uds(path: impl AsRef<Path>) -> Channel {
    let path = path.as_ref().to_path_buf();
    endpoint().connect_with_connector_lazy(service_fn(move |_| uds_stream(path.clone())))
}

/// Connects to `host:port` with TLS and reconnects when the connection breaks; each time with the certificate that
/// `config` resolves to then.
///
/// # Errors
/// When the address is none, or the first connection or handshake fails.
pub async fn connect_tls(
    address: &str,
    config: impl Into<Arc<ClientConfig>>,
) -> Result<Channel, ChannelError> {
    let dialer = TlsDialer::new(address, config.into())?;
    let endpoint = dialer.endpoint();
    let connected = endpoint
        .connect_with_connector(service_fn(move |_| dialer.clone().stream()))
        .await;
    connected.map_err(|error| connect_error(address.to_owned(), &error))
}

/// As [`connect_tls`], but connects with the first request.
///
/// # Errors
/// When the address is none.
pub fn lazy_tls(
    address: &str,
    config: impl Into<Arc<ClientConfig>>,
) -> Result<Channel, ChannelError> {
    let dialer = TlsDialer::new(address, config.into())?;
    Ok(dialer
        .endpoint()
        .connect_with_connector_lazy(service_fn(move |_| dialer.clone().stream())))
}

/// The URI says `http` because the connector brings its own TLS; it is also the `:authority` on Unix sockets.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .http2_adaptive_window(true)
}

async fn uds_stream(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

#[derive(Clone)]
struct TlsDialer {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl TlsDialer {
    fn new(address: &str, mut config: Arc<ClientConfig>) -> Result<Self, ChannelError> {
        let bad_address = || ChannelError::Address {
            address: address.to_owned(),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(bad_address)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if port.parse::<u16>().is_err() {
            return Err(bad_address());
        }
        let Ok(name) = ServerName::try_from(host.to_owned()) else {
            return Err(bad_address());
        };
        if config.alpn_protocols.is_empty() {
            Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(Self {
            address: address.to_owned(),
            name,
            config,
        })
    }

    fn endpoint(&self) -> Endpoint {
        // The peer is told the truth about the scheme and its name.
        match http::Uri::builder()
            .scheme("https")
            .authority(self.address.as_str())
            .path_and_query("/")
            .build()
        {
            Ok(origin) => endpoint().origin(origin),
            Err(_) => endpoint(),
        }
    }

    async fn stream(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connecting = async {
            let tcp = TcpStream::connect(&self.address).await?;
            tcp.set_nodelay(true)?;
            notice_vanished_peer(&tcp)?;
            TlsConnector::from(self.config)
                .connect(self.name, tcp)
                .await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 10 s");
        stream.map_err(timed_out)?.map(TokioIo::new)
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

/// The transport's own text is only "transport error": the innermost source says what happened.
fn connect_error(target: String, error: &tonic::transport::Error) -> ChannelError {
    let (mut innermost, mut kind): (&dyn Error, _) = (error, None);
    while let Some(source) = innermost.source() {
        innermost = source;
        kind = innermost
            .downcast_ref::<io::Error>()
            .map(io::Error::kind)
            .or(kind);
    }
    ChannelError::Connect {
        target,
        cause: innermost.to_string(),
        kind,
    }
}
