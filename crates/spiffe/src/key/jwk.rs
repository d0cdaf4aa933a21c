//! Public keys as JSON Web Keys (RFC 7517, 7518): the members SPIFFE uses and no others.

use super::spki::{self, Curve, Kind};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Largest JWK member decoded, in characters: an 8192-bit modulus takes 1366.
const MAX_MEMBER: usize = 2048;

/// Why a JWK gives no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// A kind of key this program does not know: such an entry of a set is skipped (Trust Domain §4.2.1).
    #[error("JWK key type or curve is not supported")]
    UnknownKind,
    #[error("JWK members do not form a public key")]
    Malformed,
}

/// One entry of a JWK Set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    #[serde(rename = "use", default, skip_serializing_if = "Option::is_none")]
    pub key_use: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kty: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
}

impl Jwk {
    pub(crate) fn of_key(kind: Kind, key: &[u8]) -> Self {
        let text = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
        match kind {
            Kind::Ec(curve) => {
                let coordinates = key.get(1..).unwrap_or_default();
                let (x, y) = coordinates
                    .split_at_checked(curve.coordinate_len())
                    .unwrap_or_default();
                let crv = Some(curve.jwk_name().to_owned());
                Self {
                    kty: Some("EC".to_owned()),
                    crv,
                    x: text(x),
                    y: text(y),
                    ..Self::default()
                }
            }
            Kind::Rsa => {
                let (n, e) = spki::parse_rsa(key).unwrap_or_default();
                Self {
                    kty: Some("RSA".to_owned()),
                    n: text(n),
                    e: text(e),
                    ..Self::default()
                }
            }
        }
    }

    /// The key's members as a `SubjectPublicKeyInfo`, not yet checked for sense.
    pub(crate) fn to_spki(&self) -> Result<Vec<u8>, JwkError> {
        match self.kty.as_deref() {
            Some("EC") => self.to_ec_spki(),
            Some("RSA") => {
                let (n, e) = (member(self.n.as_deref())?, member(self.e.as_deref())?);
                spki::encode_rsa(&n, &e).map_err(|_unencodable| JwkError::Malformed)
            }
            Some(_) => Err(JwkError::UnknownKind),
            None => Err(JwkError::Malformed),
        }
    }

    fn to_ec_spki(&self) -> Result<Vec<u8>, JwkError> {
        let name = self.crv.as_deref().ok_or(JwkError::Malformed)?;
        let curve = Curve::ALL
            .into_iter()
            .find(|curve| curve.jwk_name() == name)
            .ok_or(JwkError::UnknownKind)?;
        let mut point = vec![4];
        for coordinate in [member(self.x.as_deref())?, member(self.y.as_deref())?] {
            // RFC 7518 §6.2.1.2: the full width, leading zeroes included.
            if coordinate.len() != curve.coordinate_len() {
                return Err(JwkError::Malformed);
            }
            point.extend_from_slice(&coordinate);
        }
        spki::encode_ec(curve, &point).map_err(|_unencodable| JwkError::Malformed)
    }
}

fn member(text: Option<&str>) -> Result<Vec<u8>, JwkError> {
    let text = text
        .filter(|text| text.len() <= MAX_MEMBER)
        .ok_or(JwkError::Malformed)?;
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_not_base64url| JwkError::Malformed)
}
