//! The certificate we show, replaceable while connections come and go.

use crate::key::{KeyError, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::{Arc, PoisonError, RwLock};

/// Why a certificate and key cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    #[error("certificate chain is empty")]
    EmptyChain,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] Error),
}

/// Our certificate chain and key, on either side of a connection. Handshakes that begin after
/// [`set`](Self::set) show the new one.
#[derive(Debug, Default)]
pub struct CertResolver(RwLock<Option<Arc<CertifiedKey>>>);

impl CertResolver {
    /// Shows nothing yet: a server with it refuses handshakes, a client shows no certificate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows `chain` (DER, leaf first) from now on.
    ///
    /// # Errors
    /// [`ResolverError`], also when the key is not the leaf's; the old certificate then stays.
    pub fn set<'a>(
        &self,
        chain: impl IntoIterator<Item = &'a [u8]>,
        key: &KeyPair,
    ) -> Result<(), ResolverError> {
        let pkcs8 = key.to_pkcs8_der()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.expose().as_slice()));
        self.set_signing(chain, any_supported_type(&der)?)
    }

    /// The same with a key that need not be in memory.
    ///
    /// # Errors
    /// As for [`set`](Self::set).
    pub fn set_signing<'a>(
        &self,
        chain: impl IntoIterator<Item = &'a [u8]>,
        key: Arc<dyn SigningKey>,
    ) -> Result<(), ResolverError> {
        let chain: Vec<_> = chain
            .into_iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect();
        if chain.is_empty() {
            return Err(ResolverError::EmptyChain);
        }
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match()?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    /// Shows nothing from now on.
    pub fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for CertResolver {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.current().is_some()
    }
}
