//! Trust bundles.

use std::collections::HashSet;

use spiffe::bundle::AuthoritySource;
use spiffe::x509::CertificateError;
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

/// A bundle as it comes from a server, and what of it could not be used.
#[derive(Debug)]
pub struct ReceivedBundle {
    /// The authorities that were read.
    pub bundle: Bundle,
    /// One [`ConvertError::UnsupportedAuthority`], with its part of the message, for each authority that was left out.
    pub skipped: Vec<ConvertError>,
}

/// A bundle as a server sends it, with its marks of tainted authorities. An authority whose kind of key we do not support
/// is left out: we could verify nothing with it, and the others must reach who needs them.
///
/// # Errors
/// When the trust domain or an authority is malformed, or when no X.509 authority is left of those that the server sent.
pub fn bundle_from_server(bundle: &types::Bundle) -> Result<ReceivedBundle, ConvertError> {
    let mut skipped = Vec::new();
    let read = read_bundle(bundle, &mut |error| {
        if !error.is_unsupported_authority() {
            return Err(error);
        }
        skipped.push(error);
        Ok(())
    })?;
    if read.x509_authorities.is_empty()
        && !bundle.x509_authorities.is_empty()
        && !skipped.is_empty()
    {
        // X.509 authorities are read first, so the first error is about one of them.
        return Err(skipped.swap_remove(0));
    }
    Ok(ReceivedBundle {
        bundle: read,
        skipped,
    })
}

/// A bundle with its marks of tainted authorities, where each authority has to be usable.
///
/// # Errors
/// When the trust domain is malformed or an authority cannot be read.
pub fn bundle_from_wire(bundle: &types::Bundle) -> Result<Bundle, ConvertError> {
    read_bundle(bundle, &mut Err)
}

/// Reads a bundle; `on_error` decides whether an authority that cannot be read is left out or refuses the bundle.
fn read_bundle(
    bundle: &types::Bundle,
    on_error: &mut dyn FnMut(ConvertError) -> Result<(), ConvertError>,
) -> Result<Bundle, ConvertError> {
    let trust_domain = TrustDomain::parse(&bundle.trust_domain)
        .map_err(|error| ConvertError::within("invalid trust domain")(ConvertError::Id(error)))?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: read_list(
            &bundle.x509_authorities,
            "unable to parse X.509 authority",
            x509_authority_from_wire,
            on_error,
        )?,
        jwt_authorities: read_list(
            &bundle.jwt_authorities,
            "unable to parse JWT authority",
            jwt_authority_from_wire,
            on_error,
        )?,
        wit_authorities: read_list(
            &bundle.wit_authorities,
            "unable to parse WIT authority",
            wit_authority_from_wire,
            on_error,
        )?,
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
    })
}

fn read_list<W, A>(
    list: &[W],
    what: &'static str,
    read: fn(&W) -> Result<A, ConvertError>,
    on_error: &mut dyn FnMut(ConvertError) -> Result<(), ConvertError>,
) -> Result<Vec<A>, ConvertError> {
    let mut found = Vec::with_capacity(list.len());
    for wire in list {
        match read(wire) {
            Ok(authority) => found.push(authority),
            Err(error) => on_error(ConvertError::within(what)(error))?,
        }
    }
    Ok(found)
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
    authorities.iter().map(x509_authority_from_wire).collect()
}

fn x509_authority_from_wire(
    authority: &types::X509Certificate,
) -> Result<X509Authority, ConvertError> {
    let certificate = Certificate::from_der(&authority.asn1).map_err(|error| match error {
        CertificateError::PublicKey(key) if key.is_unsupported() => {
            ConvertError::UnsupportedAuthority(error.to_string())
        }
        _ => ConvertError::Authority(error.to_string()),
    })?;
    Ok(X509Authority {
        certificate,
        tainted: authority.tainted,
        source: AuthoritySource::Unknown,
    })
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
    authorities.iter().map(jwt_authority_from_wire).collect()
}

fn jwt_authority_from_wire(key: &types::JwtKey) -> Result<JwtAuthority, ConvertError> {
    token_authority(&key.public_key, &key.key_id, key.expires_at, key.tainted)
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
    authorities.iter().map(wit_authority_from_wire).collect()
}

fn wit_authority_from_wire(key: &types::WitKey) -> Result<JwtAuthority, ConvertError> {
    token_authority(&key.public_key, &key.key_id, key.expires_at, key.tainted)
}

/// On the wire a key that does not expire does so at 0.
fn token_authority(
    spki: &[u8],
    key_id: &str,
    expires_at: i64,
    tainted: bool,
) -> Result<JwtAuthority, ConvertError> {
    let public_key = PublicKey::from_spki_der(spki).map_err(|error| {
        if error.is_unsupported() {
            ConvertError::UnsupportedAuthority(error.to_string())
        } else {
            ConvertError::Authority(error.to_string())
        }
    })?;
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
