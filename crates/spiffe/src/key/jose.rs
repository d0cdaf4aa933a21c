//! Turning ECDSA signatures from the form X.509 uses into the one JOSE uses (RFC 7518 §3.4).

use super::JwsAlgorithm;
use super::spki::Curve;
use der::asn1::UintRef;
use der::{Decode, Reader, SliceReader};

/// A signature made by [`JwsAlgorithm::scheme`] in JOSE form: ECDSA as `r || s` of fixed width, RSA as it is.
/// `None` when the bytes are no such signature.
pub(crate) fn jws_signature(alg: JwsAlgorithm, signature: Vec<u8>) -> Option<Vec<u8>> {
    let curve = match alg {
        JwsAlgorithm::ES256 => Curve::P256,
        JwsAlgorithm::ES384 => Curve::P384,
        JwsAlgorithm::ES512 => Curve::P521,
        _ => return Some(signature),
    };
    let mut reader = SliceReader::new(&signature).ok()?;
    let (r, s) = reader
        .sequence(|inner| {
            let r = UintRef::decode(inner)?;
            let s = UintRef::decode(inner)?;
            Ok::<_, der::Error>((r, s))
        })
        .ok()?;
    reader.finish().ok()?;
    let width = curve.coordinate_len();
    let mut raw = Vec::with_capacity(2 * width);
    for number in [r.as_bytes(), s.as_bytes()] {
        raw.resize(raw.len() + width.checked_sub(number.len())?, 0);
        raw.extend_from_slice(number);
    }
    Some(raw)
}
