//! PKCS#10 signing requests. Of a request only what its signature covers counts, and mostly only the key.

use crate::key::{KeyPair, PublicKey, PublicKeyError, Signer, sign_with};
use crate::x509::{
    BuildError, Subject, build, decode_algorithm, read_extension_list, tlv, write_san_extension,
};
use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Reader, SliceReader, Tag, Tagged};

#[cfg(test)]
mod tests;

/// Largest signing request read, in bytes.
pub const MAX_CSR_LEN: usize = 64 * 1024;

/// `pkcs-9-at-extensionRequest`.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
/// `id-ce-subjectAltName`.
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Why a signing request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("signing request is not valid DER")]
    Malformed,
    #[error("signing request is longer than 64 KiB")]
    TooLong,
    #[error("signing request public key: {0}")]
    PublicKey(#[from] PublicKeyError),
    #[error("signing request is signed with an unsupported algorithm")]
    Algorithm,
    #[error("signing request signature does not verify")]
    Signature,
}

impl From<der::Error> for CsrError {
    fn from(_fault: der::Error) -> Self {
        // As for certificates: positions within the bytes help nobody.
        Self::Malformed
    }
}

/// Reading signing requests.
#[derive(Debug, Clone, Copy)]
pub struct Csr;

/// What a signing request asks for, its signature checked. Only the check makes one:
///
/// ```compile_fail,E0451
/// # fn forge(public_key: plastron_spiffe::PublicKey) {
/// let forged = plastron_spiffe::VerifiedCsr {
///     public_key,
///     subject_der: vec![],
///     uris: vec![],
///     dns_names: vec![],
/// };
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCsr {
    public_key: PublicKey,
    subject_der: Vec<u8>,
    uris: Vec<String>,
    dns_names: Vec<String>,
}

impl VerifiedCsr {
    /// The key, which the asker holds.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The encoded subject name.
    #[must_use]
    pub fn subject_der(&self) -> &[u8] {
        &self.subject_der
    }

    /// The URI names asked for.
    #[must_use]
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The DNS names asked for.
    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// The subject, as far as its attributes are known; empty when it cannot be read.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject::from_der(&self.subject_der).unwrap_or_default()
    }
}

impl Csr {
    /// Parses a request and checks its signature, that is, that the asker holds the key.
    ///
    /// # Errors
    /// [`CsrError`].
    pub fn parse_and_verify(der: &[u8]) -> Result<VerifiedCsr, CsrError> {
        let request = Request::read(der)?;
        let public_key = PublicKey::from_spki_der(request.spki)?;
        let scheme = decode_algorithm(request.algorithm).ok_or(CsrError::Algorithm)?;
        public_key
            .verify_x509(scheme, request.info, request.signature)
            .map_err(|_bad| CsrError::Signature)?;
        let (dns_names, uris) = requested_names(request.attributes)?;
        Ok(VerifiedCsr {
            public_key,
            subject_der: request.subject.to_vec(),
            uris,
            dns_names,
        })
    }

    /// The key of a request whose signature is not looked at: agents' requests arrive over a channel that has
    /// authenticated them, and nothing but the key is used.
    ///
    /// # Errors
    /// [`CsrError`].
    pub fn public_key_unverified(der: &[u8]) -> Result<PublicKey, CsrError> {
        Ok(PublicKey::from_spki_der(Request::read(der)?.spki)?)
    }
}

struct Request<'a> {
    info: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    subject: &'a [u8],
    spki: &'a [u8],
    /// The content of `[0]`: a set of attributes.
    attributes: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(der: &'a [u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_LEN {
            return Err(CsrError::TooLong);
        }
        let mut outer = sequence(der)?;
        let info = outer.tlv_bytes()?;
        let algorithm = outer.tlv_bytes()?;
        let signature = BitStringRef::decode(&mut outer)?;
        outer.finish()?;
        let signature = signature.as_bytes().ok_or(CsrError::Malformed)?;

        let mut reader = sequence(info)?;
        if u8::decode(&mut reader)? != 0 {
            return Err(CsrError::Malformed);
        }
        let subject = reader.tlv_bytes()?;
        let spki = reader.tlv_bytes()?;
        let attributes = if reader.is_finished() {
            None
        } else {
            Some(AnyRef::decode(&mut reader)?)
        };
        reader.finish()?;
        let attributes = match attributes {
            Some(field)
                if field.tag().is_context_specific() && field.tag().number().value() == 0 =>
            {
                field.value()
            }
            Some(_) => return Err(CsrError::Malformed),
            None => &[],
        };
        if subject.first() != Some(&0x30) {
            return Err(CsrError::Malformed);
        }
        Ok(Self {
            info,
            algorithm,
            signature,
            subject,
            spki,
            attributes,
        })
    }
}

fn sequence(der: &[u8]) -> Result<SliceReader<'_>, CsrError> {
    let any = AnyRef::from_der(der)?;
    any.tag().assert_eq(Tag::Sequence)?;
    Ok(SliceReader::new(any.value())?)
}

/// The DNS names and URIs the request asks for.
fn requested_names(attributes: &[u8]) -> Result<(Vec<String>, Vec<String>), CsrError> {
    let mut reader = SliceReader::new(attributes)?;
    let mut names = None;
    while !reader.is_finished() {
        let (kind, values) = reader.sequence(|inner| {
            let kind = crate::x509::oid(inner)?;
            let values = AnyRef::decode(inner)?;
            Ok::<_, der::Error>((kind, values))
        })?;
        if kind != EXTENSION_REQUEST {
            continue;
        }
        if names.is_some() {
            return Err(CsrError::Malformed);
        }
        values.tag().assert_eq(Tag::Set)?;
        let list = AnyRef::from_der(values.value())?;
        list.tag().assert_eq(Tag::Sequence)?;
        let extensions = read_extension_list(list.value())?;
        let san = extensions
            .iter()
            .find(|extension| extension.oid == ALTERNATIVE_NAME);
        names = Some(
            san.map(|san| crate::x509::alternative_names(san.value))
                .transpose()?
                .unwrap_or_default(),
        );
    }
    Ok(names.unwrap_or_default())
}

/// Writes a request signed by `key`.
///
/// # Errors
/// [`BuildError`] when the key does not sign requests.
pub fn build_csr(
    key: &KeyPair,
    subject: &Subject,
    uris: &[&str],
    dns: &[String],
) -> Result<Vec<u8>, BuildError> {
    let scheme = key
        .public_key()
        .x509_scheme()
        .ok_or(BuildError::SigningKey)?;
    let info = request_info(&subject.to_der(), key.public_key(), uris, dns);
    let signature = key.sign_now(scheme, &info)?;
    build::wrap_signed(&info, scheme, &signature)
}

/// The same with a key that may be elsewhere.
///
/// # Errors
/// [`BuildError`] when the key does not sign requests, or cannot be reached.
pub async fn build_csr_with(
    signer: &dyn Signer,
    subject: &Subject,
    uris: &[&str],
    dns: &[String],
) -> Result<Vec<u8>, BuildError> {
    let scheme = signer
        .public_key()
        .x509_scheme()
        .ok_or(BuildError::SigningKey)?;
    let info = request_info(&subject.to_der(), signer.public_key(), uris, dns);
    let signature = sign_with(signer, scheme, &info).await?;
    build::wrap_signed(&info, scheme, &signature)
}

/// The part of a request that is signed.
pub(crate) fn request_info(
    subject: &[u8],
    key: &PublicKey,
    uris: &[&str],
    dns: &[String],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    tlv(&mut out, 0x30, |out| {
        out.extend_from_slice(&[0x02, 1, 0]);
        out.extend_from_slice(subject);
        out.extend_from_slice(key.spki_der());
        tlv(out, 0xa0, |out| {
            if !uris.is_empty() || !dns.is_empty() {
                write_extension_request(out, subject == [0x30, 0], uris, dns);
            }
        });
    });
    out
}

fn write_extension_request(out: &mut Vec<u8>, critical: bool, uris: &[&str], dns: &[String]) {
    let mut extensions = Vec::with_capacity(128);
    tlv(&mut extensions, 0x30, |out| {
        write_san_extension(out, critical, dns, uris);
    });
    tlv(out, 0x30, |out| {
        tlv(out, 0x06, |out| out.extend_from_slice(EXTENSION_REQUEST));
        tlv(out, 0x31, |out| out.extend_from_slice(&extensions));
    });
}
