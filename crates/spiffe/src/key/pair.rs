//! Key pairs in memory: generated, loaded, stored as PKCS#8, and signing without delay.

use super::spki::{self, Curve};
use super::{KeyType, PublicKey, SignError, SignatureScheme, Signer};
use crate::secret::Secret;
use async_trait::async_trait;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaEncoding};
use std::fmt;
use std::sync::Arc;

/// Why a private key could not be made or loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("key generation failed")]
    Generate,
    #[error("private key is neither EC P-256, EC P-384 nor RSA of 2048 to 8192 bits")]
    Unsupported,
    #[error("private key cannot be encoded")]
    Encode,
    #[error("no private key found in PEM")]
    NoPem,
}

/// A private key and its public half, in memory. Cheap to clone.
#[derive(Clone)]
pub struct KeyPair(Arc<Inner>);

struct Inner {
    private: Private,
    public: PublicKey,
}

enum Private {
    Ec(EcdsaKeyPair, Curve),
    Rsa(RsaKeyPair),
}

impl KeyPair {
    /// Generates a key. RSA takes tens to hundreds of milliseconds: keep it off an async worker.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate(key_type: KeyType) -> Result<Self, KeyError> {
        let rsa = |size| RsaKeyPair::generate(size).map(Private::Rsa);
        let ec = |curve, algorithm| {
            EcdsaKeyPair::generate(algorithm).map(|pair| Private::Ec(pair, curve))
        };
        let private = match key_type {
            KeyType::EcP256 => ec(Curve::P256, &signature::ECDSA_P256_SHA256_ASN1_SIGNING),
            KeyType::EcP384 => ec(Curve::P384, &signature::ECDSA_P384_SHA384_ASN1_SIGNING),
            KeyType::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyType::Rsa4096 => rsa(KeySize::Rsa4096),
        };
        Self::from_private(private.map_err(|_unspecified| KeyError::Generate)?)
    }

    /// Loads an unencrypted PKCS#8 key.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] for anything else.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let private = ec_by(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).ok())
            .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Private::Rsa));
        Self::from_private(private.ok_or(KeyError::Unsupported)?)
    }

    /// Loads the first private key of a PEM text: PKCS#8, SEC 1 or PKCS#1, unencrypted.
    ///
    /// # Errors
    /// [`KeyError::NoPem`] when there is none, [`KeyError::Unsupported`] when it is of another kind.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let blocks = crate::pem::blocks(text).map_err(|_too_long| KeyError::NoPem)?;
        for block in blocks.good {
            let der = Secret::new(block.der);
            match block.label {
                "PRIVATE KEY" => return Self::from_pkcs8_der(der.expose()),
                "EC PRIVATE KEY" => {
                    let private =
                        ec_by(|alg| EcdsaKeyPair::from_private_key_der(alg, der.expose()).ok());
                    return Self::from_private(private.ok_or(KeyError::Unsupported)?);
                }
                "RSA PRIVATE KEY" => {
                    let private = RsaKeyPair::from_der(der.expose()).map(Private::Rsa);
                    return Self::from_private(private.map_err(|_rejected| KeyError::Unsupported)?);
                }
                _ => {}
            }
        }
        Err(KeyError::NoPem)
    }

    fn from_private(private: Private) -> Result<Self, KeyError> {
        let spki = match &private {
            Private::Ec(pair, curve) => spki::encode_ec(*curve, pair.public_key().as_ref())
                .map_err(|_unencodable| KeyError::Encode)?,
            Private::Rsa(pair) => {
                let der: PublicKeyX509Der<'_> = pair
                    .public_key()
                    .as_der()
                    .map_err(|_unencodable| KeyError::Encode)?;
                der.as_ref().to_vec()
            }
        };
        let public =
            PublicKey::from_spki_der(&spki).map_err(|_out_of_range| KeyError::Unsupported)?;
        Ok(Self(Arc::new(Inner { private, public })))
    }

    /// The key as unencrypted PKCS#8, version 1.
    ///
    /// # Errors
    /// [`KeyError::Encode`], which a key that loaded does not give.
    pub fn to_pkcs8_der(&self) -> Result<Secret<Vec<u8>>, KeyError> {
        match &self.0.private {
            Private::Ec(pair, _) => {
                let document = pair.to_pkcs8v1().map_err(|_unencodable| KeyError::Encode)?;
                Ok(Secret::new(document.as_ref().to_vec()))
            }
            Private::Rsa(pair) => {
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_unencodable| KeyError::Encode)?;
                Ok(Secret::new(der.as_ref().to_vec()))
            }
        }
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public
    }

    /// Signs `message` at once. ECDSA keys sign with the digest of their curve only.
    ///
    /// # Errors
    /// [`SignError::Unsupported`] for a scheme the key does not have.
    pub fn sign_now(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let random = SystemRandom::new();
        match &self.0.private {
            Private::Ec(pair, curve) => {
                let fits = match curve {
                    Curve::P256 => scheme == SignatureScheme::EcdsaSha256,
                    Curve::P384 => scheme == SignatureScheme::EcdsaSha384,
                    Curve::P521 => false,
                };
                if !fits {
                    return Err(SignError::Unsupported(scheme));
                }
                let signed = pair
                    .sign(&random, message)
                    .map_err(|_unspecified| SignError::Failed)?;
                Ok(signed.as_ref().to_vec())
            }
            Private::Rsa(pair) => {
                let padding = rsa_padding(scheme).ok_or(SignError::Unsupported(scheme))?;
                let mut signed = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signed)
                    .map_err(|_unspecified| SignError::Failed)?;
                Ok(signed)
            }
        }
    }
}

fn ec_by(load: impl Fn(&'static EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>) -> Option<Private> {
    let p256 =
        load(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).map(|pair| Private::Ec(pair, Curve::P256));
    p256.or_else(|| {
        load(&signature::ECDSA_P384_SHA384_ASN1_SIGNING).map(|pair| Private::Ec(pair, Curve::P384))
    })
}

fn rsa_padding(scheme: SignatureScheme) -> Option<&'static dyn RsaEncoding> {
    Some(match scheme {
        SignatureScheme::RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
        SignatureScheme::RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
        SignatureScheme::RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
        SignatureScheme::RsaPssSha256 => &signature::RSA_PSS_SHA256,
        SignatureScheme::RsaPssSha384 => &signature::RSA_PSS_SHA384,
        SignatureScheme::RsaPssSha512 => &signature::RSA_PSS_SHA512,
        SignatureScheme::EcdsaSha256
        | SignatureScheme::EcdsaSha384
        | SignatureScheme::EcdsaSha512 => return None,
    })
}

#[async_trait]
impl Signer for KeyPair {
    fn public_key(&self) -> &PublicKey {
        &self.0.public
    }

    async fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.sign_now(scheme, message)
    }

    fn local(&self) -> Option<&KeyPair> {
        Some(self)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({:?}, private [redacted])", self.0.public)
    }
}
