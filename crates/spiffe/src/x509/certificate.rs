//! Certificates: parsed once, cheap to clone, with the encoded parts others must match kept as they came.

use super::algorithm;
use super::extensions::{Extensions, context_number, sequence};
use crate::clock::from_unix;
use crate::key::{PublicKey, PublicKeyError, SignatureScheme};
use crate::pem::{self, PemError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag, Tagged};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest certificate read, in bytes.
pub const MAX_CERTIFICATE_LEN: usize = 64 * 1024;
/// Most certificates in one PEM text or one concatenation.
pub const MAX_CERTIFICATES: usize = 4096;
/// Longest serial number read, in bytes. RFC 5280 allows 20; some authorities wrote one more.
const MAX_SERIAL_LEN: usize = 21;

/// Why bytes are not a certificate we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate is not valid DER")]
    Malformed,
    #[error("certificate is longer than 64 KiB")]
    TooLong,
    #[error("certificate is not X.509 version 3")]
    Version,
    #[error("certificate serial number is negative or too long")]
    Serial,
    #[error("certificate signature algorithms differ")]
    AlgorithmMismatch,
    #[error("certificate public key: {0}")]
    PublicKey(#[from] PublicKeyError),
    #[error("too many certificates")]
    TooMany,
}

/// Why a PEM text does not give certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemBundleError {
    #[error("no PEM blocks of type CERTIFICATE")]
    None,
    #[error("no PEM blocks of type CERTIFICATE: {0}")]
    Broken(PemError),
    #[error(
        "PEM block {block} (line {line}) is a private key; keep it out of a file that is handed around"
    )]
    PrivateKey { block: usize, line: usize },
    #[error("PEM block {block} (line {line}) is of type {label:?}, not CERTIFICATE")]
    OtherType {
        block: usize,
        line: usize,
        label: String,
    },
    #[error("PEM block {block} (line {line}): {reason}")]
    Certificate {
        block: usize,
        line: usize,
        reason: CertificateError,
    },
    #[error("more than 4096 certificates")]
    TooMany,
}

impl From<der::Error> for CertificateError {
    fn from(_fault: der::Error) -> Self {
        // The position within the bytes helps nobody who did not write the encoder.
        Self::Malformed
    }
}

/// An X.509 v3 certificate. Equal when the encoded bytes are.
#[derive(Clone)]
pub struct Certificate(Arc<Inner>);

struct Inner {
    der: Box<[u8]>,
    tbs: Range<usize>,
    issuer: Range<usize>,
    subject: Range<usize>,
    signature: Range<usize>,
    scheme: Option<SignatureScheme>,
    serial: Range<usize>,
    not_before: i64,
    not_after: i64,
    public_key: PublicKey,
    extensions: Extensions,
}

impl Certificate {
    /// Parses one DER certificate; nothing may follow it. Says nothing about whether it may be trusted.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(CertificateError::TooLong);
        }
        let mut outer = sequence(der)?;
        let tbs = outer.tlv_bytes()?;
        let algorithm = outer.tlv_bytes()?;
        let signature = BitStringRef::decode(&mut outer)?;
        outer.finish()?;
        let signature = signature.as_bytes().ok_or(CertificateError::Malformed)?;

        let fields = TbsFields::read(tbs)?;
        if fields.algorithm != algorithm {
            return Err(CertificateError::AlgorithmMismatch);
        }
        let public_key = PublicKey::from_spki_der(fields.spki)?;
        let extensions = fields
            .extensions
            .map(Extensions::decode)
            .transpose()?
            .unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            tbs: range_of(der, tbs),
            issuer: range_of(der, fields.issuer),
            subject: range_of(der, fields.subject),
            signature: range_of(der, signature),
            scheme: algorithm::decode(algorithm),
            serial: range_of(der, fields.serial),
            not_before: fields.not_before,
            not_after: fields.not_after,
            public_key,
            extensions,
            der: der.into(),
        })))
    }

    /// Every certificate of a PEM text, in order. Text between blocks is passed over; blocks of other types are refused, as
    /// by SPIRE.
    ///
    /// # Errors
    /// [`PemBundleError`]; never an empty list.
    pub fn parse_pem_bundle(text: &str) -> Result<Vec<Self>, PemBundleError> {
        let blocks = pem::blocks(text).map_err(PemBundleError::Broken)?;
        if blocks.good.len() > MAX_CERTIFICATES {
            return Err(PemBundleError::TooMany);
        }
        let mut found = Vec::with_capacity(blocks.good.len());
        for (at, read) in blocks.good.into_iter().enumerate() {
            let (block, line) = (at + 1, read.line);
            if read.label.ends_with("PRIVATE KEY") {
                return Err(PemBundleError::PrivateKey { block, line });
            }
            if read.label != "CERTIFICATE" {
                return Err(PemBundleError::OtherType {
                    block,
                    line,
                    label: read.label.chars().take(64).collect(),
                });
            }
            let certificate =
                Self::from_der(&read.der).map_err(|reason| PemBundleError::Certificate {
                    block,
                    line,
                    reason,
                })?;
            found.push(certificate);
        }
        if found.is_empty() {
            return Err(blocks
                .broken
                .map_or(PemBundleError::None, PemBundleError::Broken));
        }
        Ok(found)
    }

    /// Every certificate of a concatenation of DER, in order (the Workload API's form). Empty input gives none.
    ///
    /// # Errors
    /// [`CertificateError`] of the first broken one.
    pub fn parse_concatenated(mut bytes: &[u8]) -> Result<Vec<Self>, CertificateError> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            if found.len() == MAX_CERTIFICATES {
                return Err(CertificateError::TooMany);
            }
            let one = SliceReader::new(bytes)?.tlv_bytes()?;
            found.push(Self::from_der(one)?);
            bytes = bytes.get(one.len()..).unwrap_or_default();
        }
        Ok(found)
    }

    /// One PEM block.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut out = String::new();
        pem::write_block(&mut out, "CERTIFICATE", self.der());
        out
    }

    /// The whole encoded certificate.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The encoded subject name.
    #[must_use]
    pub fn subject_der(&self) -> &[u8] {
        self.part(&self.0.subject)
    }

    /// The encoded issuer name.
    #[must_use]
    pub fn issuer_der(&self) -> &[u8] {
        self.part(&self.0.issuer)
    }

    /// The subject's public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    /// The serial number in decimal, the form SPIRE stores and prints.
    #[must_use]
    pub fn serial(&self) -> String {
        serial_to_decimal(self.serial_bytes())
    }

    /// The serial number, big-endian.
    #[must_use]
    pub fn serial_bytes(&self) -> &[u8] {
        self.part(&self.0.serial)
    }

    /// The first moment of validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        from_unix(self.0.not_before)
    }

    /// The last moment of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        from_unix(self.0.not_after)
    }

    /// The validity period in unix seconds, both ends included.
    #[must_use]
    pub fn validity_unix(&self) -> (i64, i64) {
        (self.0.not_before, self.0.not_after)
    }

    /// The URI alternative names, of any scheme.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.0.extensions.uris
    }

    /// The DNS alternative names.
    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        &self.0.extensions.dns_names
    }

    /// Whether basic constraints say this is a certificate authority.
    #[must_use]
    pub fn is_ca(&self) -> bool {
        self.0.extensions.is_ca
    }

    /// The subject key identifier, if the certificate states one.
    #[must_use]
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.0.extensions.subject_key_id.as_deref()
    }

    /// The authority key identifier, if the certificate states one.
    #[must_use]
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.0.extensions.authority_key_id.as_deref()
    }

    /// The subject, as far as its attributes are known; empty when it cannot be read.
    #[must_use]
    pub fn subject(&self) -> super::Subject {
        super::Subject::from_der(self.subject_der()).unwrap_or_default()
    }

    /// The subject's common name, if it has one.
    #[must_use]
    pub fn subject_common_name(&self) -> Option<String> {
        self.subject().common_name
    }

    /// Whether issuer and subject are the same name.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.issuer_der() == self.subject_der()
    }

    /// Whether `issuer` is the certificate's issuer by name and its key made the signature. Looks at nothing
    /// else: no validity, no right to sign.
    #[must_use]
    pub fn is_signed_by(&self, issuer: &Self) -> bool {
        self.issuer_der() == issuer.subject_der()
            && self.0.scheme.is_some_and(|scheme| {
                let (message, signature) = (self.part(&self.0.tbs), self.part(&self.0.signature));
                issuer
                    .public_key()
                    .verify_x509(scheme, message, signature)
                    .is_ok()
            })
    }

    /// How the certificate is signed; `None` when it is a way we do not sign in.
    #[must_use]
    pub fn signature_scheme(&self) -> Option<SignatureScheme> {
        self.0.scheme
    }

    pub(crate) fn extensions(&self) -> &Extensions {
        &self.0.extensions
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.0.der.get(range.clone()).unwrap_or_default()
    }
}

/// The fields of a `TBSCertificate`, each the bytes it occupies.
struct TbsFields<'a> {
    serial: &'a [u8],
    algorithm: &'a [u8],
    issuer: &'a [u8],
    not_before: i64,
    not_after: i64,
    subject: &'a [u8],
    spki: &'a [u8],
    extensions: Option<&'a [u8]>,
}

impl<'a> TbsFields<'a> {
    fn read(tbs: &'a [u8]) -> Result<Self, CertificateError> {
        let mut reader = sequence(tbs)?;
        let version = AnyRef::decode(&mut reader)?;
        // [0] EXPLICIT INTEGER 2: version 3.
        if context_number(version.tag()) != Some(0) || version.value() != [2, 1, 2] {
            return Err(CertificateError::Version);
        }
        let serial = AnyRef::decode(&mut reader)?;
        serial.tag().assert_eq(Tag::Integer)?;
        let serial = serial.value();
        if serial.len() > MAX_SERIAL_LEN || serial.first().is_none_or(|top| *top >= 0x80) {
            return Err(CertificateError::Serial);
        }
        let algorithm = reader.tlv_bytes()?;
        let issuer = name(&mut reader)?;
        let (not_before, not_after) =
            reader.sequence(|inner| Ok::<_, der::Error>((time(inner)?, time(inner)?)))?;
        let subject = name(&mut reader)?;
        let spki = reader.tlv_bytes()?;
        let mut extensions = None;
        while !reader.is_finished() {
            let field = AnyRef::decode(&mut reader)?;
            match context_number(field.tag()) {
                // Unique identifiers of version 2: allowed, of no meaning.
                Some(1 | 2) if extensions.is_none() => {}
                Some(3) if extensions.is_none() => {
                    let list = AnyRef::from_der(field.value())?;
                    list.tag().assert_eq(Tag::Sequence)?;
                    extensions = Some(list.value());
                }
                _ => return Err(CertificateError::Malformed),
            }
        }
        Ok(Self {
            serial,
            algorithm,
            issuer,
            not_before,
            not_after,
            subject,
            spki,
            extensions,
        })
    }
}

fn name<'a>(reader: &mut SliceReader<'a>) -> Result<&'a [u8], CertificateError> {
    let raw = reader.tlv_bytes()?;
    if raw.first() == Some(&0x30) {
        Ok(raw)
    } else {
        Err(CertificateError::Malformed)
    }
}

/// RFC 5280 §4.1.2.5: one of the two forms, in unix seconds.
fn time(reader: &mut SliceReader<'_>) -> Result<i64, der::Error> {
    let any = AnyRef::decode(reader)?;
    let since_epoch = if any.tag() == Tag::UtcTime {
        any.decode_as::<UtcTime>()?.to_unix_duration()
    } else {
        any.decode_as::<GeneralizedTime>()?.to_unix_duration()
    };
    i64::try_from(since_epoch.as_secs()).map_err(|_too_late| any.tag().value_error().into())
}

/// Where `part`, a slice of `whole`, lies in it.
fn range_of(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    start..start.saturating_add(part.len())
}

/// A big-endian unsigned number in decimal.
#[must_use]
pub fn serial_to_decimal(serial: &[u8]) -> String {
    // Base 1e9 limbs, least significant first.
    let mut limbs: Vec<u64> = vec![0];
    for octet in serial {
        let mut carry = u64::from(*octet);
        for limb in &mut limbs {
            let sum = *limb * 256 + carry;
            *limb = sum % 1_000_000_000;
            carry = sum / 1_000_000_000;
        }
        if carry > 0 {
            limbs.push(carry);
        }
    }
    let mut text = limbs.pop().unwrap_or_default().to_string();
    for limb in limbs.iter().rev() {
        text.push_str(&format!("{limb:09}"));
    }
    text
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl std::hash::Hash for Certificate {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.der.hash(state);
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Certificate(serial {}, uris {:?})",
            self.serial(),
            self.uris()
        )
    }
}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.der()))
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let der = STANDARD
            .decode(text.as_bytes())
            .map_err(serde::de::Error::custom)?;
        Self::from_der(&der).map_err(serde::de::Error::custom)
    }
}
