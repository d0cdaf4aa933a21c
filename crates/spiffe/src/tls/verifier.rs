//! The verifiers rustls calls: each hands the chain to X509-SVID verification and says whether the peer is one
//! we want.

use super::crypto_provider;
use crate::clock::{from_unix, unix_seconds};
use crate::id::SpiffeId;
use crate::svid::x509::{
    BundleSource, Purpose, VerifiedX509Svid, X509SvidError, leaf_id, verify_svid_for,
};
use crate::trust_domain::TrustDomain;
use crate::x509::{Certificate, PathError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Which peers we want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this one.
    Id(SpiffeId),
    /// One of these.
    OneOf(Vec<SpiffeId>),
    /// Anyone of this trust domain.
    MemberOf(TrustDomain),
    /// Anyone whose trust domain we have a bundle of.
    Any,
}

impl Expected {
    /// Whether `id` is wanted.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Id(wanted) => id == wanted,
            Self::OneOf(wanted) => wanted.contains(id),
            Self::MemberOf(trust_domain) => id.is_member_of(trust_domain),
            Self::Any => true,
        }
    }
}

/// The three methods of a rustls verifier that are about signatures of the handshake and the same on both sides: the peer's
/// proof that it holds the key of the certificate. Needs a field `algorithms`.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// A peer that is proved to be somebody else than we wanted.
#[derive(Debug, thiserror::Error)]
#[error("unexpected peer {0}")]
struct Unexpected(SpiffeId);

/// Verifies servers, on the connecting side: accepts those expected whose SVID verifies.
#[derive(Debug)]
pub struct SpiffeServerVerifier {
    expected: Expected,
    bundles: Arc<dyn BundleSource>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeServerVerifier {
    /// Accepts `expected` servers whose SVID verifies against the bundle of its trust domain.
    #[must_use]
    pub fn new(expected: Expected, bundles: Arc<dyn BundleSource>) -> Self {
        Self {
            expected,
            bundles,
            algorithms: algorithms(),
        }
    }
}

impl ServerCertVerifier for SpiffeServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let bundles = self.bundles.as_ref();
        verify_chain(Purpose::Server, end_entity, intermediates, bundles, now)
            .map_err(|fault| refusal(fault, end_entity, now))
            .and_then(|peer| wanted(&self.expected, peer.id()))?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

/// Accepts servers without asking who issued their certificate: trust on first use, or a look at who answers. What it
/// accepts is proved by nothing but the peer's own word, so it is a type of its own that gives no identity, and
/// [`insecure_client_config`](super::insecure_client_config) shows such a server no certificate.
///
/// ```compile_fail,E0308
/// use plastron_spiffe::tls::{client_config, Expected, InsecureServerVerifier, KeyExchange};
/// # use std::sync::Arc;
/// # fn mistake(clock: Arc<dyn plastron_spiffe::Clock>) {
/// let anybody = Arc::new(InsecureServerVerifier::new(Expected::Any));
/// client_config(anybody, None, clock, KeyExchange::default());
/// # }
/// ```
#[derive(Debug)]
pub struct InsecureServerVerifier {
    expected: Expected,
    algorithms: WebPkiSupportedAlgorithms,
}

impl InsecureServerVerifier {
    /// Accepts any peer with a certificate that names an `expected` server.
    #[must_use]
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            algorithms: algorithms(),
        }
    }
}

impl ServerCertVerifier for InsecureServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        claimed_id(end_entity)
            .map_err(|fault| refusal(fault, end_entity, now))
            .and_then(|claimed| wanted(&self.expected, &claimed))?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

/// Verifies clients, on the accepting side: of any trust domain there is a bundle of. Whether a client must
/// show a certificate at all is chosen on construction; one that is shown must verify.
#[derive(Debug)]
pub struct SpiffeClientVerifier {
    expected: Expected,
    bundles: Arc<dyn BundleSource>,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeClientVerifier {
    /// A client may come without a certificate.
    #[must_use]
    pub fn optional(bundles: Arc<dyn BundleSource>) -> Self {
        Self {
            expected: Expected::Any,
            bundles,
            mandatory: false,
            algorithms: algorithms(),
        }
    }

    /// A client must be `expected`.
    #[must_use]
    pub fn required(expected: Expected, bundles: Arc<dyn BundleSource>) -> Self {
        Self {
            expected,
            bundles,
            mandatory: true,
            algorithms: algorithms(),
        }
    }

    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedX509Svid, Error> {
        let bundles = self.bundles.as_ref();
        let peer = verify_chain(Purpose::Client, end_entity, intermediates, bundles, now)
            .map_err(|fault| refusal(fault, end_entity, now))?;
        wanted(&self.expected, peer.id())?;
        Ok(peer)
    }
}

impl ClientCertVerifier for SpiffeClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!();
}

fn wanted(expected: &Expected, id: &SpiffeId) -> Result<(), Error> {
    if expected.accepts(id) {
        Ok(())
    } else {
        Err(other(Unexpected(id.clone())))
    }
}

/// The name that a certificate gives itself.
fn claimed_id(end_entity: &CertificateDer<'_>) -> Result<SpiffeId, X509SvidError> {
    let leaf = Certificate::from_der(end_entity)
        .map_err(|reason| X509SvidError::Certificate { at: 0, reason })?;
    leaf_id(&leaf)
}

fn verify_chain(
    purpose: Purpose,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundles: &dyn BundleSource,
    now: UnixTime,
) -> Result<VerifiedX509Svid, X509SvidError> {
    let chain: Vec<&[u8]> = std::iter::once(end_entity)
        .chain(intermediates)
        .map(|certificate| certificate.as_ref())
        .collect();
    verify_svid_for(purpose, &chain, bundles, moment(now))
}

fn moment(now: UnixTime) -> SystemTime {
    from_unix(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    crypto_provider(super::KeyExchange::default()).signature_verification_algorithms
}

/// The refusal as rustls reports it, so that the peer gets the alert that says why.
fn refusal(fault: X509SvidError, end_entity: &CertificateDer<'_>, now: UnixTime) -> Error {
    let known = match &fault {
        X509SvidError::Path(PathError::Expired) => out_of_date(end_entity, now)
            .filter(|error| matches!(error, CertificateError::ExpiredContext { .. }))
            .unwrap_or(CertificateError::Expired),
        X509SvidError::Path(PathError::NotYetValid) => out_of_date(end_entity, now)
            .filter(|error| matches!(error, CertificateError::NotValidYetContext { .. }))
            .unwrap_or(CertificateError::NotValidYet),
        X509SvidError::Path(PathError::UnknownIssuer)
        | X509SvidError::NoBundle(_)
        | X509SvidError::EmptyBundle(_) => CertificateError::UnknownIssuer,
        X509SvidError::Path(PathError::BadSignature) => CertificateError::BadSignature,
        X509SvidError::Purpose(_) => CertificateError::InvalidPurpose,
        _ => return other(fault),
    };
    Error::InvalidCertificate(known)
}

/// The peer's own certificate with the date that it fails by: who reports it can say how far the clocks are apart.
/// Nothing when another certificate of the path is the one out of date.
fn out_of_date(end_entity: &CertificateDer<'_>, now: UnixTime) -> Option<CertificateError> {
    let leaf = Certificate::from_der(end_entity).ok()?;
    let unix = |time| {
        let seconds = u64::try_from(unix_seconds(time)).unwrap_or(0);
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    };
    let (not_before, not_after) = (unix(leaf.not_before()), unix(leaf.not_after()));
    if now < not_before {
        Some(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        })
    } else if now > not_after {
        Some(CertificateError::ExpiredContext {
            time: now,
            not_after,
        })
    } else {
        None
    }
}

fn other(fault: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}
