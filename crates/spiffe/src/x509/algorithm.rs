//! Signature algorithm identifiers of RFC 3279, 4055 and 5758, both ways.

use crate::key::SignatureScheme;
use der::Decode;
use der::asn1::AnyRef;
use rustls_pki_types::{AlgorithmIdentifier, alg_id};
use spki::{AlgorithmIdentifierRef, ObjectIdentifier};

/// The identifiers we write and read.
const KNOWN: [(SignatureScheme, &str); 6] = [
    (SignatureScheme::EcdsaSha256, "1.2.840.10045.4.3.2"),
    (SignatureScheme::EcdsaSha384, "1.2.840.10045.4.3.3"),
    (SignatureScheme::EcdsaSha512, "1.2.840.10045.4.3.4"),
    (SignatureScheme::RsaPkcs1Sha256, "1.2.840.113549.1.1.11"),
    (SignatureScheme::RsaPkcs1Sha384, "1.2.840.113549.1.1.12"),
    (SignatureScheme::RsaPkcs1Sha512, "1.2.840.113549.1.1.13"),
];

/// The identifiers of RSA-PSS that we read, without the tag and length around them. Each holds parameters: the hash, MGF1 with
/// the same hash, a salt of its length. Go and OpenSSL write these, and webpki knows no others.
const PSS: [(SignatureScheme, AlgorithmIdentifier); 3] = [
    (SignatureScheme::RsaPssSha256, alg_id::RSA_PSS_SHA256),
    (SignatureScheme::RsaPssSha384, alg_id::RSA_PSS_SHA384),
    (SignatureScheme::RsaPssSha512, alg_id::RSA_PSS_SHA512),
];

/// The scheme a DER `AlgorithmIdentifier` names, if it is one of ours.
pub(crate) fn decode(der: &[u8]) -> Option<SignatureScheme> {
    let content = AnyRef::from_der(der).ok()?.value();
    if let Some((scheme, _)) = PSS.iter().find(|(_, known)| known.as_ref() == content) {
        return Some(*scheme);
    }
    let identifier = AlgorithmIdentifierRef::from_der(der).ok()?;
    if !identifier.parameters.is_none_or(AnyRef::is_null) {
        return None;
    }
    let found = KNOWN
        .iter()
        .find(|(_, oid)| ObjectIdentifier::new(oid).is_ok_and(|oid| oid == identifier.oid));
    found.map(|(scheme, _)| *scheme)
}

/// The whole DER `AlgorithmIdentifier` of a scheme; `None` for those we do not sign certificates with.
pub(crate) fn encode(scheme: SignatureScheme) -> Option<&'static [u8]> {
    Some(match scheme {
        SignatureScheme::EcdsaSha256 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
        SignatureScheme::EcdsaSha384 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03",
        SignatureScheme::EcdsaSha512 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04",
        SignatureScheme::RsaPkcs1Sha256 => {
            b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00"
        }
        SignatureScheme::RsaPkcs1Sha384 => {
            b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00"
        }
        SignatureScheme::RsaPkcs1Sha512 => {
            b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00"
        }
        SignatureScheme::RsaPssSha256
        | SignatureScheme::RsaPssSha384
        | SignatureScheme::RsaPssSha512 => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_written_identifier_reads_back_as_itself() {
        for (scheme, _) in KNOWN {
            assert_eq!(decode(encode(scheme).unwrap()), Some(scheme));
        }
        assert_eq!(decode(b"\x30\x05\x06\x03\x2b\x65\x70"), None);
    }
}
