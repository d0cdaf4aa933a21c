//! Accepting peers, and the proof of who each one is.
//!
//! rustls calls a verifier and keeps only its yes. Here each handshake gets a verifier of its own that remembers what it
//! verified, so that the identity of a peer is what the check returned and not what is read again from its certificates.

use super::verifier::SpiffeClientVerifier;
use super::{Accepting, CertResolver, KeyExchange, TlsError};
use crate::clock::Clock;
use crate::svid::x509::VerifiedX509Svid;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ServerConfig, ServerConnection,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A peer's identity: its chain verified, and it holds the key. Only [`PendingPeer::identity`] makes one; a verified chain
/// alone is no peer, since certificates are public.
///
/// ```compile_fail,E0423
/// # fn forge(chain: plastron_spiffe::VerifiedX509Svid) {
/// let forged = plastron_spiffe::tls::PeerIdentity(chain);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PeerIdentity(VerifiedX509Svid);

impl Deref for PeerIdentity {
    type Target = VerifiedX509Svid;

    fn deref(&self) -> &VerifiedX509Svid {
        &self.0
    }
}

/// Why a connection does not say who its peer is. Our own mistakes: a peer cannot cause them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the TLS handshake is not complete")]
    Unfinished,
    #[error("the connection is not the one whose peer was verified")]
    OtherConnection,
}

/// The accepting side: shows the resolver's SVID and verifies a client that presents one.
#[derive(Debug)]
pub struct SpiffeAcceptor {
    accepting: Accepting,
    clients: Arc<SpiffeClientVerifier>,
}

impl SpiffeAcceptor {
    /// An acceptor of those whom `clients` accepts.
    #[must_use]
    pub fn new(
        resolver: Arc<CertResolver>,
        clients: Arc<SpiffeClientVerifier>,
        clock: Arc<dyn Clock>,
        key_exchange: KeyExchange,
    ) -> Self {
        Self {
            accepting: Accepting::new(resolver, clock, key_exchange),
            clients,
        }
    }

    /// What one connection is to be accepted with, and what will then say who its peer is. The configuration is for this
    /// connection only.
    ///
    /// # Errors
    /// [`TlsError`], which the arguments of [`new`](Self::new) cannot cause.
    pub fn begin(&self) -> Result<(Arc<ServerConfig>, PendingPeer), TlsError> {
        let seen = Arc::new(Seen::default());
        let verifier = SeeingVerifier {
            clients: Arc::clone(&self.clients),
            seen: Arc::clone(&seen),
        };
        let config = self.accepting.config(Arc::new(verifier))?;
        Ok((Arc::new(config), PendingPeer(seen)))
    }
}

/// The peer of one connection, to be known when the handshake is complete.
#[derive(Debug)]
pub struct PendingPeer(Arc<Seen>);

impl PendingPeer {
    /// Who the peer of the connection is; `None` when it showed no certificate.
    ///
    /// # Errors
    /// [`PeerError`] when this is another connection, or one whose handshake is under way.
    pub fn identity(
        self,
        connection: &ServerConnection,
    ) -> Result<Option<PeerIdentity>, PeerError> {
        if connection.is_handshaking() {
            return Err(PeerError::Unfinished);
        }
        let shown = connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        match (self.0.chain.get(), shown) {
            (None, None) => Ok(None),
            (Some(svid), Some(shown))
                if self.0.holds_key.load(Ordering::Acquire)
                    && svid.leaf().der() == shown.as_ref() =>
            {
                Ok(Some(PeerIdentity(svid.clone())))
            }
            _ => Err(PeerError::OtherConnection),
        }
    }
}

/// What the verifier of one handshake has verified.
#[derive(Debug, Default)]
struct Seen {
    chain: OnceLock<VerifiedX509Svid>,
    /// The peer has signed the handshake with the key of that chain's leaf.
    holds_key: AtomicBool,
}

/// A [`SpiffeClientVerifier`] for one handshake.
#[derive(Debug)]
struct SeeingVerifier {
    clients: Arc<SpiffeClientVerifier>,
    seen: Arc<Seen>,
}

impl SeeingVerifier {
    fn signed_with(&self, certificate: &CertificateDer<'_>) {
        let leaf = self.seen.chain.get().map(VerifiedX509Svid::leaf);
        if leaf.is_some_and(|leaf| leaf.der() == certificate.as_ref()) {
            self.seen.holds_key.store(true, Ordering::Release);
        }
    }
}

impl ClientCertVerifier for SeeingVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.clients.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = self.clients.verify(end_entity, intermediates, now)?;
        self.seen.chain.set(peer).map_err(|_second| {
            Error::General("a second certificate chain within one handshake".to_owned())
        })?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = self
            .clients
            .verify_tls12_signature(message, certificate, signature)?;
        self.signed_with(certificate);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = self
            .clients
            .verify_tls13_signature(message, certificate, signature)?;
        self.signed_with(certificate);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}
