//! Trust bundles.

use std::collections::HashSet;

use spiffe::bundle::AuthoritySource;
use spiffe::{Bundle, Certificate, JwtAuthority, PublicKey, TrustDomain, X509Authority};

use super::ConvertError;
use crate::spire::api::types::{self, BundleMask};

/// The message for a bundle with the fields of the mask, and always its trust domain. No mask means all fields.
#[must_use]
pub fn bundle_to_wire(bundle: &Bundle, mask: Option<&BundleMask>) -> types::Bundle {
    let mut wire = types::Bundle {
        trust_domain: bundle.trust_domain.as_str().to_owned(),
        x509_authorities: bundle
            .x509_authorities
            .iter()
            .map(x509_authority_to_wire)
            .collect(),
        jwt_authorities: bundle
            .jwt_authorities
            .iter()
            .map(jwt_authority_to_wire)
            .collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
        wit_authorities: bundle
            .wit_authorities
            .iter()
            .map(wit_authority_to_wire)
            .collect(),
    };
    mask_bundle(&mut wire, mask);
    wire
}

/// Sets the fields that are outside the mask to their defaults.
pub fn mask_bundle(bundle: &mut types::Bundle, mask: Option<&BundleMask>) {
    let Some(mask) = mask else { return };
    if !mask.x509_authorities {
        bundle.x509_authorities.clear();
    }
    if !mask.jwt_authorities {
        bundle.jwt_authorities.clear();
    }
    if !mask.refresh_hint {
        bundle.refresh_hint = 0;
    }
    if !mask.sequence_number {
        bundle.sequence_number = 0;
    }
    if !mask.wit_authorities {
        bundle.wit_authorities.clear();
    }
}

/// A bundle as a server tells it, with its marks of tainted authorities.
///
/// # Errors
/// When the trust domain is malformed or an authority cannot be read.
pub fn bundle_from_wire(bundle: &types::Bundle) -> Result<Bundle, ConvertError> {
    let trust_domain = TrustDomain::parse(&bundle.trust_domain)
        .map_err(|error| ConvertError::within("invalid trust domain")(ConvertError::Id(error)))?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: x509_authorities_from_wire(&bundle.x509_authorities)
            .map_err(ConvertError::within("unable to parse X.509 authority"))?,
        jwt_authorities: jwt_authorities_from_wire(&bundle.jwt_authorities)
            .map_err(ConvertError::within("unable to parse JWT authority"))?,
        wit_authorities: wit_authorities_from_wire(&bundle.wit_authorities)
            .map_err(ConvertError::within("unable to parse WIT authority"))?,
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
    })
}

/// A bundle as a caller of the server's API gives it: authorities are tainted by other calls, never by this, and no
/// key ID names two keys, since readers of the bundle would refuse it or each believe another one.
///
/// # Errors
/// When there is none, the trust domain is malformed, an authority cannot be read or a key ID comes twice.
pub fn bundle_from_caller(bundle: Option<&types::Bundle>) -> Result<Bundle, ConvertError> {
    let mut bundle = bundle_from_wire(bundle.ok_or(ConvertError::MissingBundle)?)?;
    let mut key_ids = HashSet::new();
    for authority in bundle.jwt_authorities.iter().chain(&bundle.wit_authorities) {
        if !key_ids.insert(authority.key_id.as_str()) {
            return Err(ConvertError::Authority(format!(
                "key ID {:?} names two keys",
                authority.key_id
            )));
        }
    }
    for authority in &mut bundle.x509_authorities {
        authority.tainted = false;
    }
    for authority in bundle
        .jwt_authorities
        .iter_mut()
        .chain(&mut bundle.wit_authorities)
    {
        authority.tainted = false;
    }
    Ok(bundle)
}

/// The message for an X.509 authority.
#[must_use]
pub fn x509_authority_to_wire(authority: &X509Authority) -> types::X509Certificate {
    types::X509Certificate {
        asn1: authority.certificate.der().to_vec(),
        tainted: authority.tainted,
    }
}

/// The X.509 authorities in a message.
///
/// # Errors
/// When one is no certificate.
pub fn x509_authorities_from_wire(
    authorities: &[types::X509Certificate],
) -> Result<Vec<X509Authority>, ConvertError> {
    let read = |authority: &types::X509Certificate| {
        let certificate = Certificate::from_der(&authority.asn1)
            .map_err(|error| ConvertError::Authority(error.to_string()))?;
        Ok(X509Authority {
            certificate,
            tainted: authority.tainted,
            source: AuthoritySource::Unknown,
        })
    };
    authorities.iter().map(read).collect()
}

/// The message for a JWT authority.
#[must_use]
pub fn jwt_authority_to_wire(authority: &JwtAuthority) -> types::JwtKey {
    types::JwtKey {
        public_key: authority.public_key.spki_der().to_vec(),
        key_id: authority.key_id.clone(),
        expires_at: authority.expires_at.unwrap_or_default(),
        tainted: authority.tainted,
    }
}

/// The JWT authorities in a message.
///
/// # Errors
/// When one is no public key or has no key ID.
pub fn jwt_authorities_from_wire(
    authorities: &[types::JwtKey],
) -> Result<Vec<JwtAuthority>, ConvertError> {
    let read = |key: &types::JwtKey| {
        token_authority(&key.public_key, &key.key_id, key.expires_at, key.tainted)
    };
    authorities.iter().map(read).collect()
}

/// The message for a WIT authority.
#[must_use]
pub fn wit_authority_to_wire(authority: &JwtAuthority) -> types::WitKey {
    let types::JwtKey {
        public_key,
        key_id,
        expires_at,
        tainted,
    } = jwt_authority_to_wire(authority);
    types::WitKey {
        public_key,
        key_id,
        expires_at,
        tainted,
    }
}

/// The WIT authorities in a message.
///
/// # Errors
/// When one is no public key or has no key ID.
pub fn wit_authorities_from_wire(
    authorities: &[types::WitKey],
) -> Result<Vec<JwtAuthority>, ConvertError> {
    let read = |key: &types::WitKey| {
        token_authority(&key.public_key, &key.key_id, key.expires_at, key.tainted)
    };
    authorities.iter().map(read).collect()
}

/// On the wire a key that does not expire does so at 0.
fn token_authority(
    spki: &[u8],
    key_id: &str,
    expires_at: i64,
    tainted: bool,
) -> Result<JwtAuthority, ConvertError> {
    let public_key = PublicKey::from_spki_der(spki)
        .map_err(|error| ConvertError::Authority(error.to_string()))?;
    if key_id.is_empty() {
        return Err(ConvertError::MissingKeyId);
    }
    let expires_at = (expires_at != 0).then_some(expires_at);
    Ok(JwtAuthority {
        key_id: key_id.to_owned(),
        public_key,
        expires_at,
        tainted,
        source: AuthoritySource::Unknown,
    })
}
