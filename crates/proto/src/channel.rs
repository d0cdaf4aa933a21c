//! Channels to a server or agent: over a Unix socket, or TCP with mutual TLS. Owns how a connection is made and
//! kept alive; whom to trust is in the `rustls::ClientConfig` that the caller brings.

mod dial;
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
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Between two of our processes on one machine: gRPC servers written in Go close connections that ping more often than
/// every five minutes while a stream without news is open.
const LOCAL_PING_INTERVAL: Duration = Duration::from_secs(310);
const LOCAL_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// To a server: together 30 s until one that hangs is noticed, as long as a call or a stream is open. A SPIRE server
/// (gRPC-Go, at most one ping in five minutes unless it sent data since) counts no strikes: with it no stream is open
/// longer than one call may take, and each call's answer is data.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

pub use dial::connect_tcp;
use dial::{CONNECT_TIMEOUT, Dialer};

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
    let connected = endpoint(LOCAL)
        .connect_with_connector(service_fn(move |_| uds_stream(path.clone())))
        .await;
    connected.map_err(|error| connect_error(target, &error))
}

/// As [`connect_uds`], but connects with the first request.
#[must_use]
pub fn lazy_uds(path: impl AsRef<Path>) -> Channel {
    let path = path.as_ref().to_path_buf();
    endpoint(LOCAL).connect_with_connector_lazy(service_fn(move |_| uds_stream(path.clone())))
}

/// Connects to `host:port` with TLS and reconnects when the connection breaks; each time with the certificate that
/// `config` resolves to then.
///
/// # Errors
/// When the address is invalid, or the first connection or handshake fails.
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
/// When the address is invalid.
pub fn lazy_tls(
    address: &str,
    config: impl Into<Arc<ClientConfig>>,
) -> Result<Channel, ChannelError> {
    Ok(TlsDialer::new(address, config.into())?.lazy())
}

/// How soon a peer that hangs is noticed. Pings are sent only while a call or a stream is open.
#[derive(Debug, Clone, Copy)]
struct Keepalive {
    interval: Duration,
    timeout: Duration,
}

const LOCAL: Keepalive = Keepalive {
    interval: LOCAL_PING_INTERVAL,
    timeout: LOCAL_PING_TIMEOUT,
};
const REMOTE: Keepalive = Keepalive {
    interval: PING_INTERVAL,
    timeout: PING_TIMEOUT,
};

/// The URI says `http` because the connector brings its own TLS; it is also the `:authority` on Unix sockets.
fn endpoint(keepalive: Keepalive) -> Endpoint {
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout)
        .keep_alive_while_idle(false)
        .http2_adaptive_window(true)
}

async fn uds_stream(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

#[derive(Clone)]
struct TlsDialer {
    address: String,
    dialer: Dialer,
    keepalive: Keepalive,
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
            dialer: Dialer::new(address),
            keepalive: REMOTE,
            name,
            config,
        })
    }

    fn lazy(self) -> Channel {
        self.endpoint()
            .connect_with_connector_lazy(service_fn(move |_| self.clone().stream()))
    }

    fn endpoint(&self) -> Endpoint {
        // The peer gets the true scheme and its own name.
        match http::Uri::builder()
            .scheme("https")
            .authority(self.address.as_str())
            .path_and_query("/")
            .build()
        {
            Ok(origin) => endpoint(self.keepalive).origin(origin),
            Err(_) => endpoint(self.keepalive),
        }
    }

    async fn stream(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        self.dialer
            .tls(self.name, self.config)
            .await
            .map(TokioIo::new)
    }
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
