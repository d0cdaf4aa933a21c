//! Keys: what kinds there are, who can sign, and what a signature is called in X.509 and in JOSE. All
//! cryptography is aws-lc's.

mod jose;
mod jwk;
mod pair;
mod public;
mod spki;
#[cfg(test)]
mod tests;

pub(crate) use jose::jws_signature;
pub use jwk::{Jwk, JwkError};
pub use pair::{KeyError, KeyPair};
pub use public::{PublicKey, PublicKeyError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The kinds of key we generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyType {
    #[serde(rename = "ec-p256")]
    EcP256,
    #[serde(rename = "ec-p384")]
    EcP384,
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

/// A key type's name that is none of `ec-p256`, `ec-p384`, `rsa-2048`, `rsa-4096`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key type {0:?} is unknown; must be one of [rsa-2048, rsa-4096, ec-p256, ec-p384]")]
pub struct UnknownKeyType(pub String);

impl KeyType {
    /// Every key type.
    pub const ALL: [Self; 4] = [Self::EcP256, Self::EcP384, Self::Rsa2048, Self::Rsa4096];

    /// Parses the configuration's name for a key type.
    ///
    /// # Errors
    /// [`UnknownKeyType`].
    pub fn parse(text: &str) -> Result<Self, UnknownKeyType> {
        Self::ALL
            .into_iter()
            .find(|ty| ty.as_str() == text)
            .ok_or_else(|| UnknownKeyType(text.to_owned()))
    }

    /// The configuration's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// The scheme a key of this type signs certificates with.
    #[must_use]
    pub fn x509_scheme(self) -> SignatureScheme {
        match self {
            Self::EcP256 => SignatureScheme::EcdsaSha256,
            Self::EcP384 => SignatureScheme::EcdsaSha384,
            Self::Rsa2048 | Self::Rsa4096 => SignatureScheme::RsaPkcs1Sha256,
        }
    }

    /// The algorithm a key of this type signs tokens with.
    #[must_use]
    pub fn jws_algorithm(self) -> JwsAlgorithm {
        match self {
            Self::EcP256 => JwsAlgorithm::ES256,
            Self::EcP384 => JwsAlgorithm::ES384,
            Self::Rsa2048 | Self::Rsa4096 => JwsAlgorithm::RS256,
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyType {
    type Err = UnknownKeyType;

    fn from_str(text: &str) -> Result<Self, UnknownKeyType> {
        Self::parse(text)
    }
}

/// How a message is signed. X.509 form: ECDSA signatures are DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureScheme {
    EcdsaSha256,
    EcdsaSha384,
    EcdsaSha512,
    RsaPkcs1Sha256,
    RsaPkcs1Sha384,
    RsaPkcs1Sha512,
    RsaPssSha256,
    RsaPssSha384,
    RsaPssSha512,
}

/// The nine JWS algorithms a SPIFFE token may use (JWT-SVID §2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JwsAlgorithm {
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    ES512,
    PS256,
    PS384,
    PS512,
}

impl JwsAlgorithm {
    /// Every allowed algorithm.
    pub const ALL: [Self; 9] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
    ];

    /// Parses an `alg` header, case-sensitively; `None` for any other algorithm.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.as_str() == text)
    }

    /// The `alg` header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
        }
    }

    /// The same algorithm under its X.509 name.
    #[must_use]
    pub fn scheme(self) -> SignatureScheme {
        match self {
            Self::RS256 => SignatureScheme::RsaPkcs1Sha256,
            Self::RS384 => SignatureScheme::RsaPkcs1Sha384,
            Self::RS512 => SignatureScheme::RsaPkcs1Sha512,
            Self::ES256 => SignatureScheme::EcdsaSha256,
            Self::ES384 => SignatureScheme::EcdsaSha384,
            Self::ES512 => SignatureScheme::EcdsaSha512,
            Self::PS256 => SignatureScheme::RsaPssSha256,
            Self::PS384 => SignatureScheme::RsaPssSha384,
            Self::PS512 => SignatureScheme::RsaPssSha512,
        }
    }
}

impl fmt::Display for JwsAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a message was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("key does not sign with {0:?}")]
    Unsupported(SignatureScheme),
    #[error("signing failed")]
    Failed,
    /// A key held elsewhere (key management service, hardware) did not answer.
    #[error("remote signer: {0}")]
    Remote(String),
}

/// Why a signature was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("signature algorithm does not fit the key")]
    WrongAlgorithm,
    #[error("signature does not verify")]
    BadSignature,
}

/// Something that signs: a key in memory or one that never leaves its service.
#[async_trait]
pub trait Signer: Send + Sync + fmt::Debug {
    /// The public half.
    fn public_key(&self) -> &PublicKey;

    /// Signs `message` (not its digest).
    async fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignError>;

    /// The key itself when it is in memory: the direct path, which never suspends.
    fn local(&self) -> Option<&KeyPair> {
        None
    }
}

/// Signs by the direct path when there is one, and only else awaits.
pub(crate) async fn sign_with(
    signer: &dyn Signer,
    scheme: SignatureScheme,
    message: &[u8],
) -> Result<Vec<u8>, SignError> {
    match signer.local() {
        Some(pair) => pair.sign_now(scheme, message),
        None => signer.sign(scheme, message).await,
    }
}
