//! Endpoint addresses (Workload Endpoint §4): `unix:` with an absolute path, or `tcp:` with a literal IP address
//! and a port. Nothing else, and nothing more.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

#[cfg(test)]
mod tests;

/// Longest address read, in bytes.
const MAX_LEN: usize = 4096;

/// Where a Workload API or Broker API is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The absolute path of a Unix domain socket.
    Unix(PathBuf),
    /// An address and port.
    Tcp(SocketAddr),
    /// A host name and port; only where names are allowed.
    TcpName(String, u16),
}

/// Why a text is not an endpoint address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("workload endpoint socket is not a valid URI")]
    NotUri,
    #[error("workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme")]
    Scheme,
    #[error("workload endpoint unix socket URI must not include an authority component")]
    UnixAuthority,
    #[error("workload endpoint unix socket URI must name an absolute path")]
    UnixPath,
    #[error("workload endpoint socket URI must not include query, fragment or user info")]
    Extra,
    #[error("workload endpoint tcp socket URI must include an authority component")]
    TcpAuthority,
    #[error("workload endpoint tcp socket URI must not include a path component")]
    TcpPath,
    #[error("workload endpoint tcp socket URI host component must be an IP address")]
    TcpHost,
    #[error("workload endpoint tcp socket URI must include a port from 1 to 65535")]
    TcpPort,
}

/// Parses the address of a Workload API endpoint.
///
/// # Errors
/// [`EndpointError`].
pub fn parse_endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    match parse(text)? {
        Endpoint::TcpName(..) => Err(EndpointError::TcpHost),
        endpoint @ (Endpoint::Unix(_) | Endpoint::Tcp(_)) => Ok(endpoint),
    }
}

/// Parses the address of a Broker API endpoint, where a DNS name may stand for the IP address.
///
/// # Errors
/// [`EndpointError`].
pub fn parse_broker_endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    parse(text)
}

fn parse(text: &str) -> Result<Endpoint, EndpointError> {
    if text.len() > MAX_LEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(EndpointError::NotUri);
    }
    let (scheme, rest) = text.split_once(':').ok_or(EndpointError::Scheme)?;
    match scheme {
        "unix" => unix(rest),
        "tcp" => tcp(rest),
        _ => Err(EndpointError::Scheme),
    }
}

fn unix(rest: &str) -> Result<Endpoint, EndpointError> {
    let path = match rest.strip_prefix("//") {
        Some("") => return Err(EndpointError::UnixPath),
        Some(after) if !after.starts_with('/') => return Err(EndpointError::UnixAuthority),
        Some(after) => after,
        None => rest,
    };
    if path.contains(['?', '#']) {
        return Err(EndpointError::Extra);
    }
    if !path.starts_with('/') || path.bytes().all(|b| b == b'/') {
        return Err(EndpointError::UnixPath);
    }
    if path.contains('%') {
        // Percent-encoding could hide any byte; no socket path needs it.
        return Err(EndpointError::NotUri);
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

fn tcp(rest: &str) -> Result<Endpoint, EndpointError> {
    let authority = rest.strip_prefix("//").ok_or(EndpointError::TcpAuthority)?;
    if authority.is_empty() {
        return Err(EndpointError::TcpAuthority);
    }
    if authority.contains(['?', '#', '@']) {
        return Err(EndpointError::Extra);
    }
    if authority.contains('/') {
        return Err(EndpointError::TcpPath);
    }
    let (host, port) = authority.rsplit_once(':').ok_or(EndpointError::TcpPort)?;
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| digits && *port != 0)
        .ok_or(EndpointError::TcpPort)?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address = match bracketed {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    };
    match address {
        Some(address) => Ok(Endpoint::Tcp(SocketAddr::new(address, port))),
        None if is_dns_name(host) => Ok(Endpoint::TcpName(host.to_owned(), port)),
        None => Err(EndpointError::TcpHost),
    }
}

fn is_dns_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // A last label of digits alone is a broken IP address, not a name.
    let last_is_number = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(label) && !last_is_number
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::TcpName(host, port) => write!(f, "tcp://{host}:{port}"),
        }
    }
}
