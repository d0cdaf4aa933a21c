//! Public keys: parsing, identifying, verifying.

use super::spki::{self, Curve, Kind};
use super::{Jwk, JwkError, JwsAlgorithm, KeyType, SignatureScheme, VerifyError};
use aws_lc_rs::digest;
use aws_lc_rs::signature::{self, ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Smallest and largest RSA modulus accepted, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why bytes are not a usable public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("public key is not a valid SubjectPublicKeyInfo")]
    Malformed,
    #[error("public key is neither EC P-256, P-384, P-521 nor RSA")]
    UnsupportedKind,
    #[error("RSA public key must have 2048 to 8192 bits")]
    RsaSize,
    #[error("public key is not valid for its algorithm")]
    Invalid,
}

impl PublicKeyError {
    /// Whether the key may be good, but is of a kind or size that we do not support.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::UnsupportedKind | Self::RsaSize)
    }
}

/// A public key: EC on P-256, P-384 or P-521, or RSA of 2048 to 8192 bits. Cheap to clone; equal when the
/// encoded bytes are.
#[derive(Clone)]
pub struct PublicKey(Arc<Inner>);

struct Inner {
    spki: Box<[u8]>,
    kind: Kind,
    rsa_bits: usize,
    /// Where in `spki` the key's own bytes start; they run to its end.
    key_at: usize,
    /// Ready for the scheme that goes with the key, so the usual verification does not parse again.
    parsed: ParsedPublicKey,
}

impl PublicKey {
    /// Parses a DER `SubjectPublicKeyInfo`; nothing may follow it.
    ///
    /// # Errors
    /// [`PublicKeyError`].
    pub fn from_spki_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        let parsed = spki::parse(der)
            .map_err(|_malformed| PublicKeyError::Malformed)?
            .ok_or(PublicKeyError::UnsupportedKind)?;
        let (usual, rsa_bits): (&'static dyn VerificationAlgorithm, usize) = match parsed.kind {
            Kind::Ec(curve) => {
                if parsed.key.len() != 2 * curve.coordinate_len() + 1
                    || parsed.key.first() != Some(&4)
                {
                    return Err(PublicKeyError::Invalid);
                }
                (usual_algorithm(curve), 0)
            }
            Kind::Rsa => (
                &signature::RSA_PKCS1_2048_8192_SHA256,
                rsa_bits(parsed.key)?,
            ),
        };
        let ready =
            ParsedPublicKey::new(usual, parsed.key).map_err(|_rejected| PublicKeyError::Invalid)?;
        let (kind, key_at) = (parsed.kind, der.len() - parsed.key.len());
        Ok(Self(Arc::new(Inner {
            spki: der.into(),
            kind,
            rsa_bits,
            key_at,
            parsed: ready,
        })))
    }

    /// The DER `SubjectPublicKeyInfo`, as it came.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.0.spki
    }

    /// The key type, when it is one we also generate.
    #[must_use]
    pub fn key_type(&self) -> Option<KeyType> {
        match (self.0.kind, self.0.rsa_bits) {
            (Kind::Ec(Curve::P256), _) => Some(KeyType::EcP256),
            (Kind::Ec(Curve::P384), _) => Some(KeyType::EcP384),
            (Kind::Rsa, 2048) => Some(KeyType::Rsa2048),
            (Kind::Rsa, 4096) => Some(KeyType::Rsa4096),
            _ => None,
        }
    }

    /// The key type that says how this key signs: like [`key_type`](Self::key_type), but any RSA size counts.
    pub(crate) fn signing_type(&self) -> Option<KeyType> {
        if self.0.kind == Kind::Rsa {
            Some(KeyType::Rsa2048)
        } else {
            self.key_type()
        }
    }

    /// SHA-1 of the key's bit string: the subject key identifier of RFC 5280 §4.2.1.2 (1).
    #[must_use]
    pub fn subject_key_id(&self) -> [u8; 20] {
        let mut id = [0u8; 20];
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.key_bytes());
        for (to, from) in id.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        id
    }

    /// Verifies a signature in X.509 form (ECDSA in DER).
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify_x509(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        sig: &[u8],
    ) -> Result<(), VerifyError> {
        if self.usual_scheme() == scheme {
            return self
                .0
                .parsed
                .verify_sig(message, sig)
                .map_err(|_bad| VerifyError::BadSignature);
        }
        self.verify_by(self.x509_algorithm(scheme)?, message, sig)
    }

    /// Verifies a signature in JOSE form (ECDSA as `r || s`). The algorithm must be the one of the key's curve.
    ///
    /// # Errors
    /// [`VerifyError`]; `WrongAlgorithm` when the key's family or curve does not fit `alg`.
    pub fn verify_jws(
        &self,
        alg: JwsAlgorithm,
        message: &[u8],
        sig: &[u8],
    ) -> Result<(), VerifyError> {
        let algorithm: &'static dyn VerificationAlgorithm = match (self.0.kind, alg) {
            (Kind::Ec(Curve::P256), JwsAlgorithm::ES256) => &signature::ECDSA_P256_SHA256_FIXED,
            (Kind::Ec(Curve::P384), JwsAlgorithm::ES384) => &signature::ECDSA_P384_SHA384_FIXED,
            (Kind::Ec(Curve::P521), JwsAlgorithm::ES512) => &signature::ECDSA_P521_SHA512_FIXED,
            (Kind::Rsa, JwsAlgorithm::ES256 | JwsAlgorithm::ES384 | JwsAlgorithm::ES512)
            | (Kind::Ec(_), _) => {
                return Err(VerifyError::WrongAlgorithm);
            }
            (Kind::Rsa, rsa) => self.x509_algorithm(rsa.scheme())?,
        };
        self.verify_by(algorithm, message, sig)
    }

    /// Whether a token signed by this key may claim `alg`.
    #[must_use]
    pub fn fits(&self, alg: JwsAlgorithm) -> bool {
        use JwsAlgorithm::{ES256, ES384, ES512};
        match self.0.kind {
            Kind::Ec(Curve::P256) => alg == ES256,
            Kind::Ec(Curve::P384) => alg == ES384,
            Kind::Ec(Curve::P521) => alg == ES512,
            Kind::Rsa => !matches!(alg, ES256 | ES384 | ES512),
        }
    }

    /// The key as JWK members, without `use`, `kid` or `alg`.
    #[must_use]
    pub fn to_jwk(&self) -> Jwk {
        Jwk::of_key(self.0.kind, self.key_bytes())
    }

    /// Builds a key from JWK members; others are ignored.
    ///
    /// # Errors
    /// [`JwkError`]: whether the entry is of an unknown kind (skip it) or broken.
    pub fn from_jwk(jwk: &Jwk) -> Result<Self, JwkError> {
        Self::from_spki_der(&jwk.to_spki()?).map_err(|_invalid| JwkError::Malformed)
    }

    fn key_bytes(&self) -> &[u8] {
        self.0.spki.get(self.0.key_at..).unwrap_or_default()
    }

    fn usual_scheme(&self) -> SignatureScheme {
        match self.0.kind {
            Kind::Ec(Curve::P256) => SignatureScheme::EcdsaSha256,
            Kind::Ec(Curve::P384) => SignatureScheme::EcdsaSha384,
            Kind::Ec(Curve::P521) => SignatureScheme::EcdsaSha512,
            Kind::Rsa => SignatureScheme::RsaPkcs1Sha256,
        }
    }

    fn verify_by(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        message: &[u8],
        sig: &[u8],
    ) -> Result<(), VerifyError> {
        UnparsedPublicKey::new(algorithm, self.key_bytes())
            .verify(message, sig)
            .map_err(|_bad| VerifyError::BadSignature)
    }

    fn x509_algorithm(
        &self,
        scheme: SignatureScheme,
    ) -> Result<&'static dyn VerificationAlgorithm, VerifyError> {
        use SignatureScheme as S;
        Ok(match (self.0.kind, scheme) {
            (Kind::Ec(Curve::P256), S::EcdsaSha256) => &signature::ECDSA_P256_SHA256_ASN1,
            (Kind::Ec(Curve::P256), S::EcdsaSha384) => &signature::ECDSA_P256_SHA384_ASN1,
            (Kind::Ec(Curve::P256), S::EcdsaSha512) => &signature::ECDSA_P256_SHA512_ASN1,
            (Kind::Ec(Curve::P384), S::EcdsaSha256) => &signature::ECDSA_P384_SHA256_ASN1,
            (Kind::Ec(Curve::P384), S::EcdsaSha384) => &signature::ECDSA_P384_SHA384_ASN1,
            (Kind::Ec(Curve::P384), S::EcdsaSha512) => &signature::ECDSA_P384_SHA512_ASN1,
            (Kind::Ec(Curve::P521), S::EcdsaSha256) => &signature::ECDSA_P521_SHA256_ASN1,
            (Kind::Ec(Curve::P521), S::EcdsaSha384) => &signature::ECDSA_P521_SHA384_ASN1,
            (Kind::Ec(Curve::P521), S::EcdsaSha512) => &signature::ECDSA_P521_SHA512_ASN1,
            (Kind::Rsa, S::RsaPkcs1Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (Kind::Rsa, S::RsaPkcs1Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (Kind::Rsa, S::RsaPkcs1Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
            (Kind::Rsa, S::RsaPssSha256) => &signature::RSA_PSS_2048_8192_SHA256,
            (Kind::Rsa, S::RsaPssSha384) => &signature::RSA_PSS_2048_8192_SHA384,
            (Kind::Rsa, S::RsaPssSha512) => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return Err(VerifyError::WrongAlgorithm),
        })
    }
}

fn usual_algorithm(curve: Curve) -> &'static dyn VerificationAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1,
        Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1,
        Curve::P521 => &signature::ECDSA_P521_SHA512_ASN1,
    }
}

fn rsa_bits(key: &[u8]) -> Result<usize, PublicKeyError> {
    let (modulus, _) = spki::parse_rsa(key).map_err(|_malformed| PublicKeyError::Malformed)?;
    let unused = modulus
        .first()
        .map_or(0, |top| top.leading_zeros() as usize);
    let bits = modulus.len().saturating_mul(8).saturating_sub(unused);
    if RSA_BITS.contains(&bits) {
        Ok(bits)
    } else {
        Err(PublicKeyError::RsaSize)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.spki.hash(state);
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} ", self.0.kind)?;
        for byte in self.subject_key_id().iter().take(4) {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}
