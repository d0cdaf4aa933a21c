//! `SubjectPublicKeyInfo` at the byte level: recognising the four kinds of key and writing them. The bytes are
//! kept as they came, so an identifier computed over them is the one everybody else computes.

use der::asn1::{AnyRef, BitStringRef, UintRef};
use der::{Decode, Encode, Reader, SliceReader};
use spki::{AlgorithmIdentifierRef, ObjectIdentifier};

pub(crate) const EC_PUBLIC_KEY: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(crate) const RSA_ENCRYPTION: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// The curves a SPIFFE document may be signed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    pub(crate) const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    /// Bytes of one coordinate, and of `r` and `s` in a raw signature.
    pub(crate) fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    pub(crate) fn jwk_name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    pub(crate) fn oid(self) -> ObjectIdentifier {
        match self {
            Self::P256 => P256,
            Self::P384 => P384,
            Self::P521 => P521,
        }
    }
}

/// What the algorithm identifier says the key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ec(Curve),
    Rsa,
}

/// A public key info taken apart: its kind, and where the key's own bytes lie (an EC point or an
/// `RSAPublicKey`).
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) kind: Kind,
    pub(crate) key: &'a [u8],
}

/// Takes a whole `SubjectPublicKeyInfo` apart. `Ok(None)`: well-formed, but of a kind we do not know.
pub(crate) fn parse(spki: &[u8]) -> Result<Option<Parsed<'_>>, der::Error> {
    let mut reader = SliceReader::new(spki)?;
    let (algorithm, bits) = reader.sequence(|inner| {
        let algorithm = AlgorithmIdentifierRef::decode(inner)?;
        let bits = BitStringRef::decode(inner)?;
        Ok::<_, der::Error>((algorithm, bits))
    })?;
    reader.finish()?;
    let Some(kind) = kind_of(&algorithm) else {
        return Ok(None);
    };
    let key = bits.as_bytes().ok_or(der::Tag::BitString.value_error())?;
    Ok(Some(Parsed { kind, key }))
}

fn kind_of(algorithm: &AlgorithmIdentifierRef<'_>) -> Option<Kind> {
    if algorithm.oid == EC_PUBLIC_KEY {
        let curve = algorithm
            .parameters
            .and_then(|any| any.decode_as::<ObjectIdentifier>().ok())?;
        return Curve::ALL
            .into_iter()
            .find(|known| known.oid() == curve)
            .map(Kind::Ec);
    }
    // RFC 3279: the parameters are NULL; some writers leave them out.
    let plain = algorithm.parameters.is_none_or(AnyRef::is_null);
    (algorithm.oid == RSA_ENCRYPTION && plain).then_some(Kind::Rsa)
}

/// Writes the public key info of an uncompressed EC point.
pub(crate) fn encode_ec(curve: Curve, point: &[u8]) -> Result<Vec<u8>, der::Error> {
    let oid = curve.oid();
    encode(EC_PUBLIC_KEY, AnyRef::from(&oid), point)
}

/// Writes the public key info of an RSA modulus and exponent, both big-endian.
pub(crate) fn encode_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Vec<u8>, der::Error> {
    let (n, e) = (UintRef::new(modulus)?, UintRef::new(exponent)?);
    let mut body = n.to_der()?;
    e.encode_to_vec(&mut body)?;
    let key = AnyRef::new(der::Tag::Sequence, &body)?.to_der()?;
    encode(RSA_ENCRYPTION, AnyRef::NULL, &key)
}

fn encode(
    oid: ObjectIdentifier,
    parameters: AnyRef<'_>,
    key: &[u8],
) -> Result<Vec<u8>, der::Error> {
    let mut body = AlgorithmIdentifierRef {
        oid,
        parameters: Some(parameters),
    }
    .to_der()?;
    BitStringRef::from_bytes(key)?.encode_to_vec(&mut body)?;
    AnyRef::new(der::Tag::Sequence, &body)?.to_der()
}

/// The modulus and exponent of an `RSAPublicKey`, big-endian without leading zeroes.
pub(crate) fn parse_rsa(key: &[u8]) -> Result<(&[u8], &[u8]), der::Error> {
    let mut reader = SliceReader::new(key)?;
    let (n, e) = reader.sequence(|inner| {
        let n = UintRef::decode(inner)?;
        let e = UintRef::decode(inner)?;
        Ok::<_, der::Error>((n, e))
    })?;
    reader.finish()?;
    Ok((n.as_bytes(), e.as_bytes()))
}
