//! TLS between SPIFFE identities, on rustls: a peer is who its X509-SVID says, verified against the bundle of
//! its own trust domain as it is at that moment. Host names play no part. Connections are never resumed, since
//! a resumed one would skip verification.

mod resolver;
#[cfg(test)]
mod tests;
mod verifier;

pub use resolver::{CertResolver, ResolverError};
pub use verifier::{Expected, SpiffeClientVerifier, SpiffeServerVerifier};

use crate::clock::{Clock, unix_seconds};
use crate::svid::x509::{VerifiedX509Svid, X509SvidError};
use crate::x509::{Certificate, CertificateError};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
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
    let builder = ServerConfig::builder_with_details(
        crypto_provider(key_exchange),
        Arc::new(ClockTime(clock)),
    )
    .with_protocol_versions(versions(key_exchange))?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
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

/// The identity of a peer whose handshake has been completed with one of our verifiers. Reads it again from the
/// certificates; does not verify them again.
///
/// # Errors
/// [`X509SvidError`] when there is none, which a completed handshake excludes unless the peer showed nothing.
pub fn peer_svid(certificates: &[CertificateDer<'_>]) -> Result<VerifiedX509Svid, X509SvidError> {
    let leaf = certificates.first().ok_or(X509SvidError::EmptyChain)?;
    let leaf = Certificate::from_der(leaf)
        .map_err(|reason: CertificateError| X509SvidError::Certificate { at: 0, reason })?;
    let id = crate::svid::x509::leaf_id(&leaf)?;
    Ok(VerifiedX509Svid { id, leaf })
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
