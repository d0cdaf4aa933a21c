//! TLS between SPIFFE identities, on rustls: a peer is who its X509-SVID says, verified against the bundle of
//! its own trust domain as it is at that moment. Host names play no part. Connections are never resumed, since
//! a resumed one would skip verification.

mod acceptor;
mod resolver;
#[cfg(test)]
mod tests;
mod verifier;

pub use acceptor::{PeerError, PeerIdentity, PendingPeer, SpiffeAcceptor};
pub use resolver::{CertResolver, ResolverError};
pub use verifier::{Expected, InsecureServerVerifier, SpiffeClientVerifier, SpiffeServerVerifier};

use crate::clock::{Clock, unix_seconds};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::UnixTime;
use std::sync::Arc;
use std::time::Duration;

/// The protocol name of HTTP/2, which all our listeners and clients speak.
pub const ALPN_H2: &[u8] = b"h2";

/// Which key exchanges are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyExchange {
    /// X25519 with ML-KEM-768 first, the classical ones after it.
    #[default]
    PreferPostQuantum,
    /// Only those with ML-KEM; peers without are refused, and so is TLS 1.2.
    RequirePostQuantum,
}

/// The cryptography of all our TLS: aws-lc.
#[must_use]
pub fn crypto_provider(key_exchange: KeyExchange) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if key_exchange == KeyExchange::RequirePostQuantum {
        provider.kx_groups = vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::SECP256R1MLKEM768,
        ];
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some());
    }
    Arc::new(provider)
}

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS configuration: {0}")]
pub struct TlsError(#[from] rustls::Error);

/// The accepting side: shows the resolver's SVID, and asks for the client's when `clients` is given.
///
/// # Errors
/// [`TlsError`], which the arguments cannot cause.
pub fn server_config(
    resolver: Arc<CertResolver>,
    clients: Option<Arc<SpiffeClientVerifier>>,
    clock: Arc<dyn Clock>,
    key_exchange: KeyExchange,
) -> Result<ServerConfig, TlsError> {
    let clients: Arc<dyn ClientCertVerifier> = match clients {
        Some(clients) => clients,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    Accepting::new(resolver, clock, key_exchange).config(clients)
}

/// All that configurations of the accepting side share, whoever verifies the clients.
#[derive(Debug)]
struct Accepting {
    provider: Arc<CryptoProvider>,
    time: Arc<ClockTime>,
    resolver: Arc<CertResolver>,
    key_exchange: KeyExchange,
    session_storage: Arc<NoServerSessionStorage>,
}

impl Accepting {
    fn new(resolver: Arc<CertResolver>, clock: Arc<dyn Clock>, key_exchange: KeyExchange) -> Self {
        Self {
            provider: crypto_provider(key_exchange),
            time: Arc::new(ClockTime(clock)),
            resolver,
            key_exchange,
            session_storage: Arc::new(NoServerSessionStorage {}),
        }
    }

    fn config(&self, clients: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, TlsError> {
        let (provider, time) = (
            Arc::clone(&self.provider),
            Arc::<ClockTime>::clone(&self.time),
        );
        let mut config = ServerConfig::builder_with_details(provider, time)
            .with_protocol_versions(versions(self.key_exchange))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::<CertResolver>::clone(&self.resolver));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::<NoServerSessionStorage>::clone(&self.session_storage);
        Ok(config)
    }
}

/// The connecting side: verifies the server, and shows the resolver's SVID when there is one.
///
/// # Errors
/// [`TlsError`], which the arguments cannot cause.
pub fn client_config(
    servers: Arc<SpiffeServerVerifier>,
    resolver: Option<Arc<CertResolver>>,
    clock: Arc<dyn Clock>,
    key_exchange: KeyExchange,
) -> Result<ClientConfig, TlsError> {
    connecting(servers, resolver, clock, key_exchange)
}

/// The connecting side of a first contact that the operator has declared insecure: the peer is not authenticated, and is
/// shown no certificate of ours.
///
/// # Errors
/// [`TlsError`], which the arguments cannot cause.
pub fn insecure_client_config(
    servers: Arc<InsecureServerVerifier>,
    clock: Arc<dyn Clock>,
    key_exchange: KeyExchange,
) -> Result<ClientConfig, TlsError> {
    connecting(servers, None, clock, key_exchange)
}

fn connecting(
    servers: Arc<dyn ServerCertVerifier>,
    resolver: Option<Arc<CertResolver>>,
    clock: Arc<dyn Clock>,
    key_exchange: KeyExchange,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_details(
        crypto_provider(key_exchange),
        Arc::new(ClockTime(clock)),
    )
    .with_protocol_versions(versions(key_exchange))?
    .dangerous()
    .with_custom_certificate_verifier(servers);
    let mut config = match resolver {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    // No name is sent: SPIFFE peers have none.
    config.enable_sni = false;
    Ok(config)
}

static ONLY_TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn versions(key_exchange: KeyExchange) -> &'static [&'static rustls::SupportedProtocolVersion] {
    match key_exchange {
        KeyExchange::PreferPostQuantum => rustls::DEFAULT_VERSIONS,
        KeyExchange::RequirePostQuantum => ONLY_TLS13,
    }
}

/// Our clock, for rustls.
#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(unix_seconds(self.0.now())).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
