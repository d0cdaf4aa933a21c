//! The SPIFFE bundle format (Trust Domain and Bundle §4): a JWK Set whose entries say what they are for.

use super::jwks::{JwkSet, read_json, token_key, write_json};
use super::{AuthoritySource, Bundle, BundleError, JwtAuthority, MAX_REFRESH_HINT, X509Authority};
use crate::json::Object;
use crate::key::Jwk;
use crate::trust_domain::TrustDomain;
use crate::x509::{Certificate, CertificateError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
const WIT_SVID: &str = "wit-svid";

#[derive(Serialize)]
struct Written {
    keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "is_zero")]
    spiffe_sequence: u64,
    #[serde(skip_serializing_if = "is_nought")]
    spiffe_refresh_hint: i64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_nought(number: &i64) -> bool {
    *number == 0
}

impl Bundle {
    /// The bundle as a SPIFFE bundle document.
    #[must_use]
    pub fn to_spiffe_json(&self) -> Vec<u8> {
        write_json(&self.written(self.refresh_hint))
    }

    /// The bundle as a member of a bundle map: without refresh hint.
    pub(super) fn to_spiffe_value(&self) -> Value {
        // A struct of texts and numbers always serialises.
        serde_json::to_value(self.written(0)).unwrap_or_default()
    }

    fn written(&self, refresh_hint: i64) -> Written {
        let x509 = self
            .x509_authorities
            .iter()
            .map(|authority| authority.to_jwk());
        let jwt = self
            .jwt_authorities
            .iter()
            .map(|authority| authority.to_jwk(Some(JWT_SVID)));
        let wit = self
            .wit_authorities
            .iter()
            .map(|authority| authority.to_jwk(Some(WIT_SVID)));
        Written {
            keys: x509.chain(jwt).chain(wit).collect(),
            spiffe_sequence: self.sequence_number,
            spiffe_refresh_hint: refresh_hint,
        }
    }

    /// Reads a SPIFFE bundle document. Entries of unknown or missing use or kind, certificates' entries without `x5c` and
    /// token keys without an id are passed over; a broken entry of a known kind refuses the document. Members are matched by
    /// exact name.
    ///
    /// What is passed over must not leave an empty bundle in the place of one that has been good: then the document is
    /// refused. One with no keys at all is what a trust domain says when nothing of it is to be believed any more.
    ///
    /// # Errors
    /// [`BundleError`]; a caller keeps the bundle that it has.
    pub fn from_spiffe_json(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        Self::from_set(trust_domain, &read_json(json)?)
    }

    /// As [`from_spiffe_json`](Self::from_spiffe_json), from a document already taken apart.
    pub(super) fn from_spiffe_value(
        trust_domain: TrustDomain,
        value: &Value,
    ) -> Result<Self, BundleError> {
        let Object(set) = Object::<JwkSet>::deserialize(value)
            .map_err(|fault| BundleError::Json(fault.to_string()))?;
        Self::from_set(trust_domain, &set)
    }

    fn from_set(trust_domain: TrustDomain, set: &JwkSet) -> Result<Self, BundleError> {
        let mut bundle = Self::new(trust_domain);
        bundle.sequence_number = sequence(set.spiffe_sequence.as_ref())?;
        bundle.refresh_hint = refresh_hint(set.spiffe_refresh_hint.as_ref())?;
        let mut key_ids = HashSet::new();
        let mut passed_over = PassedOver::default();
        for (at, jwk) in set.entries()? {
            passed_over.look(at, &jwk);
            let list = match jwk.key_use.as_deref() {
                Some(X509_SVID) => {
                    if let Some(certificate) = certificate(at, &jwk)? {
                        bundle.add_x509_authority(certificate);
                    }
                    continue;
                }
                Some(JWT_SVID) => &mut bundle.jwt_authorities,
                Some(WIT_SVID) => &mut bundle.wit_authorities,
                _ => continue,
            };
            if let Some((key_id, public_key)) = token_key(at, &jwk)? {
                if !key_ids.insert(key_id.clone()) {
                    return Err(BundleError::DuplicateKeyId(key_id));
                }
                list.push(JwtAuthority {
                    key_id,
                    public_key,
                    expires_at: None,
                    tainted: false,
                    source: AuthoritySource::Unknown,
                });
            }
        }
        passed_over.check(&bundle)?;
        Ok(bundle)
    }
}

/// What stood in a document beside the keys that were taken from it.
#[derive(Default)]
struct PassedOver {
    some: bool,
    without_certificate: Option<usize>,
    without_id: Option<usize>,
}

impl PassedOver {
    fn look(&mut self, at: usize, jwk: &Jwk) {
        match jwk.key_use.as_deref() {
            Some(X509_SVID) => {
                self.some = true;
                if jwk.x5c.as_ref().is_none_or(Vec::is_empty) {
                    self.without_certificate.get_or_insert(at);
                }
            }
            Some(JWT_SVID) => {
                self.some = true;
                if jwk.kid.as_deref().is_none_or(str::is_empty) {
                    self.without_id.get_or_insert(at);
                }
            }
            _ => {}
        }
    }

    /// Refuses a bundle that is empty only because of what was passed over.
    fn check(&self, bundle: &Bundle) -> Result<(), BundleError> {
        let lacking = |at: Option<usize>, key_use, member| {
            at.map_or(Ok(()), |at| {
                Err(BundleError::Lacking {
                    at,
                    key_use,
                    member,
                })
            })
        };
        if bundle.x509_authorities.is_empty() {
            lacking(self.without_certificate, X509_SVID, "x5c")?;
        }
        if bundle.jwt_authorities.is_empty() {
            lacking(self.without_id, JWT_SVID, "kid")?;
        }
        let nothing = bundle.x509_authorities.is_empty()
            && bundle.jwt_authorities.is_empty()
            && bundle.wit_authorities.is_empty();
        if nothing && self.some {
            return Err(BundleError::NothingSupported);
        }
        Ok(())
    }
}

impl X509Authority {
    fn to_jwk(&self) -> Jwk {
        Jwk {
            key_use: Some(X509_SVID.to_owned()),
            x5c: Some(vec![STANDARD.encode(self.certificate.der())]),
            ..self.certificate.public_key().to_jwk()
        }
    }
}

/// The certificate of an entry: the first of its list. `None` when it is to be passed over.
fn certificate(at: usize, jwk: &Jwk) -> Result<Option<Certificate>, BundleError> {
    if !matches!(jwk.kty.as_deref(), Some("EC" | "RSA")) {
        return Ok(None);
    }
    let Some(text) = jwk.x5c.as_ref().and_then(|list| list.first()) else {
        return Ok(None);
    };
    let broken = |reason: String| BundleError::Key { at, reason };
    let der = STANDARD
        .decode(text)
        .map_err(|fault| broken(fault.to_string()))?;
    match Certificate::from_der(&der) {
        Ok(certificate) => Ok(Some(certificate)),
        // A curve or size we do not know: like a key type we do not know.
        Err(CertificateError::PublicKey(_)) => Ok(None),
        Err(fault) => Err(broken(fault.to_string())),
    }
}

fn sequence(member: Option<&Value>) -> Result<u64, BundleError> {
    member.map_or(Ok(0), |value| value.as_u64().ok_or(BundleError::Sequence))
}

/// Clamped to 0 (none) at the low end and to [`MAX_REFRESH_HINT`] at the high end.
fn refresh_hint(member: Option<&Value>) -> Result<i64, BundleError> {
    let Some(value) = member else {
        return Ok(0);
    };
    let seconds = value
        .as_i64()
        .or_else(|| value.as_u64().map(|_huge| i64::MAX));
    Ok(seconds
        .ok_or(BundleError::RefreshHint)?
        .clamp(0, MAX_REFRESH_HINT))
}
