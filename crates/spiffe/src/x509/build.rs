//! Writing certificates: a template becomes the bytes to be signed, a signer signs them, the three parts become
//! the certificate. Refuses to write what the X509-SVID standard forbids to issue. Field order and choices:
//! `SPIRE: pkg/server/credtemplate`.

use super::encode::{self, BIT_STRING, INTEGER, OID, SEQUENCE};
use super::{Subject, tlv, write_san_extension};
use crate::id::{MAX_ID_LEN, SpiffeId};
use crate::key::{KeyType, PublicKey, SignError, SignatureScheme, Signer, sign_with};
use crate::random::Random;
use std::time::SystemTime;

/// Why a certificate or request was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("SPIFFE ID of a leaf must have a path")]
    LeafWithoutPath,
    #[error("SPIFFE ID of a signing certificate must not have a path")]
    AuthorityWithPath,
    #[error("SPIFFE ID is longer than 2048 bytes")]
    IdTooLong,
    #[error("serial number must not be zero")]
    Serial,
    #[error("validity must end after it begins and lie between 1970 and 9999")]
    Validity,
    #[error("DNS name {0:?} is not ASCII")]
    DnsName(String),
    #[error("signing key's type is not one certificates are signed with")]
    SigningKey,
    #[error("self-signed certificate must carry the key of its signer")]
    NotOwnKey,
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// What a leaf certificate will say: an X509-SVID.
#[derive(Debug, Clone)]
pub struct LeafTemplate {
    /// Big-endian, in 1 to 2^128-1; see [`random_serial`].
    pub serial: [u8; 16],
    pub subject: Subject,
    pub id: SpiffeId,
    pub dns_names: Vec<String>,
    pub public_key: PublicKey,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What a signing certificate will say.
#[derive(Debug, Clone)]
pub struct CaTemplate {
    /// Big-endian, in 1 to 2^128-1; see [`random_serial`].
    pub serial: [u8; 16],
    pub subject: Subject,
    /// The trust domain's ID.
    pub id: SpiffeId,
    pub public_key: PublicKey,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub path_len: Option<u8>,
    /// `None`: SHA-1 of the public key.
    pub subject_key_id: Option<Vec<u8>>,
}

/// Who signs: the issuer's name and key identifier as its own certificate has them, and its key.
#[derive(Debug, Clone, Copy)]
pub struct Issuer<'a> {
    /// The encoded subject of the issuer's certificate, copied into what it signs.
    pub subject_der: &'a [u8],
    /// The issuer's subject key identifier; empty leaves the authority key identifier out.
    pub key_id: &'a [u8],
    pub signer: &'a dyn Signer,
}

/// A serial number from 1 to 2^128-1.
pub fn random_serial(random: &dyn Random) -> [u8; 16] {
    let mut serial = [0u8; 16];
    while serial == [0u8; 16] {
        random.fill(&mut serial);
    }
    serial
}

/// Issues an X509-SVID. Does not suspend when the issuer's key is in memory.
///
/// # Errors
/// [`BuildError`].
pub async fn issue_leaf(leaf: &LeafTemplate, issuer: &Issuer<'_>) -> Result<Vec<u8>, BuildError> {
    if !leaf.id.has_path() {
        return Err(BuildError::LeafWithoutPath);
    }
    if let Some(name) = leaf.dns_names.iter().find(|name| !name.is_ascii()) {
        return Err(BuildError::DnsName(name.clone()));
    }
    let scheme = scheme_of(issuer.signer)?;
    let subject = leaf.subject.to_der();
    let head = Head {
        serial: &leaf.serial,
        issuer: issuer.subject_der,
        not_before: leaf.not_before,
        not_after: leaf.not_after,
        subject: &subject,
        public_key: &leaf.public_key,
    };
    let key_id = leaf.public_key.subject_key_id();
    let tbs = to_be_signed(&head, &leaf.id, scheme, |out| {
        // digitalSignature, keyEncipherment, keyAgreement.
        write_key_usage(out, &[3, 0xa8]);
        write_extended_key_usage(out);
        write_basic_constraints(out, None);
        write_key_ids(out, &key_id, issuer.key_id);
        let no_subject = leaf.subject.is_empty();
        write_san_extension(out, no_subject, &leaf.dns_names, &[leaf.id.as_str()]);
    })?;
    assemble(tbs, scheme, issuer.signer).await
}

/// Issues a CA certificate: by `issuer`, or signed with `signer`, its own key, when there is none. Does
/// not suspend when the signing key is in memory.
///
/// # Errors
/// [`BuildError`].
pub async fn issue_ca(
    ca: &CaTemplate,
    issuer: Option<&Issuer<'_>>,
    signer: &dyn Signer,
) -> Result<Vec<u8>, BuildError> {
    if ca.id.has_path() {
        return Err(BuildError::AuthorityWithPath);
    }
    let subject = ca.subject.to_der();
    let key_id = ca
        .subject_key_id
        .clone()
        .unwrap_or_else(|| ca.public_key.subject_key_id().to_vec());
    let issuer = match issuer {
        Some(issuer) => *issuer,
        None if signer.public_key() != &ca.public_key => return Err(BuildError::NotOwnKey),
        None => Issuer {
            subject_der: &subject,
            key_id: &[],
            signer,
        },
    };
    let scheme = scheme_of(issuer.signer)?;
    let head = Head {
        serial: &ca.serial,
        issuer: issuer.subject_der,
        not_before: ca.not_before,
        not_after: ca.not_after,
        subject: &subject,
        public_key: &ca.public_key,
    };
    let tbs = to_be_signed(&head, &ca.id, scheme, |out| {
        // keyCertSign, cRLSign.
        write_key_usage(out, &[1, 0x06]);
        write_basic_constraints(out, Some(ca.path_len));
        write_key_ids(out, &key_id, issuer.key_id);
        write_san_extension(out, ca.subject.is_empty(), &[], &[ca.id.as_str()]);
    })?;
    assemble(tbs, scheme, issuer.signer).await
}

/// Writes a signing request for a signing certificate, as sent to an upstream authority.
///
/// # Errors
/// [`BuildError`].
pub async fn build_ca_csr(
    subject: &Subject,
    id: &SpiffeId,
    signer: &dyn Signer,
) -> Result<Vec<u8>, BuildError> {
    if id.has_path() {
        return Err(BuildError::AuthorityWithPath);
    }
    let scheme = scheme_of(signer)?;
    let info =
        crate::csr::request_info(&subject.to_der(), signer.public_key(), &[id.as_str()], &[]);
    assemble(info, scheme, signer).await
}

/// The parts every certificate starts with.
struct Head<'a> {
    serial: &'a [u8; 16],
    issuer: &'a [u8],
    not_before: SystemTime,
    not_after: SystemTime,
    subject: &'a [u8],
    public_key: &'a PublicKey,
}

fn to_be_signed(
    head: &Head<'_>,
    id: &SpiffeId,
    scheme: SignatureScheme,
    extensions: impl FnOnce(&mut Vec<u8>),
) -> Result<Vec<u8>, BuildError> {
    if id.as_str().len() > MAX_ID_LEN {
        return Err(BuildError::IdTooLong);
    }
    if head.serial == &[0u8; 16] {
        return Err(BuildError::Serial);
    }
    let mut validity = Vec::with_capacity(34);
    let written = encode::time(&mut validity, head.not_before)
        .and(encode::time(&mut validity, head.not_after));
    if written.is_none() || head.not_after <= head.not_before {
        return Err(BuildError::Validity);
    }
    let algorithm = super::encode_algorithm(scheme).ok_or(BuildError::SigningKey)?;
    let mut out = Vec::with_capacity(1024);
    tlv(&mut out, SEQUENCE, |out| {
        // [0] EXPLICIT INTEGER 2: version 3.
        out.extend_from_slice(&[0xa0, 3, INTEGER, 1, 2]);
        encode::unsigned(out, head.serial);
        out.extend_from_slice(algorithm);
        out.extend_from_slice(head.issuer);
        encode::bytes(out, SEQUENCE, &validity);
        out.extend_from_slice(head.subject);
        out.extend_from_slice(head.public_key.spki_der());
        tlv(out, 0xa3, |out| tlv(out, SEQUENCE, extensions));
    });
    Ok(out)
}

/// Signs `body` and wraps it, the algorithm and the signature into the outer sequence.
async fn assemble(
    body: Vec<u8>,
    scheme: SignatureScheme,
    signer: &dyn Signer,
) -> Result<Vec<u8>, BuildError> {
    let signature = sign_with(signer, scheme, &body).await?;
    wrap_signed(&body, scheme, &signature)
}

/// The outer sequence of a certificate or signing request.
pub(crate) fn wrap_signed(
    body: &[u8],
    scheme: SignatureScheme,
    signature: &[u8],
) -> Result<Vec<u8>, BuildError> {
    let algorithm = super::encode_algorithm(scheme).ok_or(BuildError::SigningKey)?;
    let mut out = Vec::with_capacity(body.len() + signature.len() + 40);
    tlv(&mut out, SEQUENCE, |out| {
        out.extend_from_slice(body);
        out.extend_from_slice(algorithm);
        encode::bit_string(out, signature);
    });
    Ok(out)
}

fn scheme_of(signer: &dyn Signer) -> Result<SignatureScheme, BuildError> {
    signer
        .public_key()
        .x509_scheme()
        .ok_or(BuildError::SigningKey)
}

fn write_key_usage(out: &mut Vec<u8>, bits: &[u8]) {
    encode::extension(out, &[0x55, 0x1d, 15], true, |out| {
        encode::bytes(out, BIT_STRING, bits);
    });
}

/// serverAuth and clientAuth: SPIFFE wants both or none.
fn write_extended_key_usage(out: &mut Vec<u8>) {
    encode::extension(out, &[0x55, 0x1d, 37], false, |out| {
        tlv(out, SEQUENCE, |out| {
            encode::bytes(out, OID, &[0x2b, 6, 1, 5, 5, 7, 3, 1]);
            encode::bytes(out, OID, &[0x2b, 6, 1, 5, 5, 7, 3, 2]);
        });
    });
}

/// `None`: not an authority. `Some(path_len)`: an authority.
fn write_basic_constraints(out: &mut Vec<u8>, authority: Option<Option<u8>>) {
    encode::extension(out, &[0x55, 0x1d, 19], true, |out| {
        tlv(out, SEQUENCE, |out| {
            if let Some(path_len) = authority {
                out.extend_from_slice(&[0x01, 0x01, 0xff]);
                if let Some(path_len) = path_len {
                    encode::unsigned(out, &[path_len]);
                }
            }
        });
    });
}

fn write_key_ids(out: &mut Vec<u8>, subject: &[u8], authority: &[u8]) {
    encode::extension(out, &[0x55, 0x1d, 14], false, |out| {
        encode::bytes(out, encode::OCTET_STRING, subject);
    });
    if !authority.is_empty() {
        encode::extension(out, &[0x55, 0x1d, 35], false, |out| {
            tlv(out, SEQUENCE, |out| encode::bytes(out, 0x80, authority));
        });
    }
}

impl PublicKey {
    /// The scheme the holder of this key signs certificates with; `None` when we do not sign with such keys.
    #[must_use]
    pub fn x509_scheme(&self) -> Option<SignatureScheme> {
        self.signing_type().map(KeyType::x509_scheme)
    }
}
