//! A key manager's key as TLS signs with it.
//!
//! rustls signs at once, on the thread of the handshake; a key that lives elsewhere takes a call. That call is waited for
//! here, with a limit, in a way that does not hold up what it needs to come back.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer as TlsSigner, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme as TlsScheme};
use spiffe::key::{KeyType, SignatureScheme, Signer};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};

/// How long one signature of a handshake may take.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);

/// The key for a rustls certificate resolver.
pub fn signing_key(signer: Arc<dyn Signer>) -> Arc<dyn SigningKey> {
    Arc::new(TlsKey(signer))
}

#[derive(Debug)]
struct TlsKey(Arc<dyn Signer>);

impl TlsKey {
    /// What the key can sign with, the best first. TLS 1.3 has RSA as PSS alone.
    fn schemes(&self) -> &'static [(TlsScheme, SignatureScheme)] {
        match self.0.public_key().key_type() {
            Some(KeyType::EcP256) => &[(
                TlsScheme::ECDSA_NISTP256_SHA256,
                SignatureScheme::EcdsaSha256,
            )],
            Some(KeyType::EcP384) => &[(
                TlsScheme::ECDSA_NISTP384_SHA384,
                SignatureScheme::EcdsaSha384,
            )],
            Some(KeyType::Rsa2048 | KeyType::Rsa4096) => &[
                (TlsScheme::RSA_PSS_SHA256, SignatureScheme::RsaPssSha256),
                (TlsScheme::RSA_PKCS1_SHA256, SignatureScheme::RsaPkcs1Sha256),
            ],
            None => &[],
        }
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[TlsScheme]) -> Option<Box<dyn TlsSigner>> {
        let mut schemes = self.schemes().iter();
        let (tls, scheme) = *schemes.find(|(tls, _)| offered.contains(tls))?;
        Some(Box::new(Handshake {
            signer: Arc::clone(&self.0),
            tls,
            scheme,
        }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(
            self.0.public_key().spki_der(),
        ))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0.public_key().key_type() {
            Some(KeyType::Rsa2048 | KeyType::Rsa4096) => SignatureAlgorithm::RSA,
            _ => SignatureAlgorithm::ECDSA,
        }
    }
}

/// The signature of one handshake.
#[derive(Debug)]
struct Handshake {
    signer: Arc<dyn Signer>,
    tls: TlsScheme,
    scheme: SignatureScheme,
}

impl TlsSigner for Handshake {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signed = wait(self.signer.sign(self.scheme, message));
        signed
            .ok_or_else(|| Error::General("the key manager did not sign in time".to_owned()))?
            .map_err(|error| Error::General(error.to_string()))
    }

    fn scheme(&self) -> TlsScheme {
        self.tls
    }
}

/// Waits on this thread; nothing when it took too long. On a runtime of several threads another one takes over what this
/// one was doing. Elsewhere a thread with a runtime of its own does the work.
fn wait<T: Send>(work: impl Future<Output = T> + Send) -> Option<T> {
    let limited = async { tokio::time::timeout(SIGN_TIMEOUT, work).await.ok() };
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(|| handle.block_on(limited))
        }
        _ => std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                let runtime = Builder::new_current_thread().enable_all().build().ok()?;
                runtime.block_on(limited)
            });
            // A signer that panicked has not signed.
            work.join().ok().flatten()
        }),
    }
}
