//! Path validation (RFC 5280 §6) from a leaf to a bundle's authorities. webpki builds and verifies the path;
//! what it leaves out is checked here on the path it found: the authority's own validity, key usage and path
//! length, and URI name constraints, which webpki refuses outright. Chains that hold such a constraint, or are
//! longer than webpki goes, are walked link by link instead, in the order they came.
//!
//! A chain is the peer's to choose, so both ways verify from the authority downwards: each signature is verified with a key
//! that an authority vouches for already, never with one that the peer made up.

use super::Certificate;
use super::extensions::{DNS_NAME, KEY_CERT_SIGN, NameConstraint, NameConstraints, URI_NAME};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use std::cell::RefCell;
use std::time::Duration;
use webpki::aws_lc_rs as algs;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, VerifiedPath};

#[cfg(test)]
mod tests;

/// Most certificates in a presented chain, the leaf included.
pub(crate) const MAX_CHAIN: usize = 16;
/// Longest chain webpki verifies: a leaf and six intermediates.
const MAX_WEBPKI_CHAIN: usize = 7;
/// Most paths tried from an authority downwards: roots of one name, times places in the chain that name them.
const MAX_ATTEMPTS: usize = 32;
/// Most name comparisons for the constraints of one path.
const MAX_COMPARISONS: usize = 10_000;

/// Why no path leads from a certificate to an authority of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("certificate has expired")]
    Expired,
    #[error("certificate is not valid yet")]
    NotYetValid,
    #[error("certificate is not signed by any authority of the bundle")]
    UnknownIssuer,
    #[error("certificate signature does not verify")]
    BadSignature,
    #[error("intermediate certificate is not an authority")]
    NotAuthority,
    #[error("authority certificate's key usage does not allow it to sign certificates")]
    KeyUsage,
    #[error("authority certificate's path length is exceeded")]
    PathLength,
    #[error("authority certificate's name constraints do not allow the name")]
    NameConstraint,
    #[error("authority certificate has a name constraint of an unsupported kind")]
    UnsupportedConstraint,
    #[error("certificate has an unknown critical extension")]
    CriticalExtension,
    #[error("too many paths could lead from the certificate to an authority of the bundle")]
    TooManyPaths,
    #[error("certificate path is not valid: {0}")]
    Other(String),
}

static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algs::ECDSA_P256_SHA256,
    algs::ECDSA_P256_SHA384,
    algs::ECDSA_P256_SHA512,
    algs::ECDSA_P384_SHA256,
    algs::ECDSA_P384_SHA384,
    algs::ECDSA_P384_SHA512,
    algs::ECDSA_P521_SHA256,
    algs::ECDSA_P521_SHA384,
    algs::ECDSA_P521_SHA512,
    algs::RSA_PKCS1_2048_8192_SHA256,
    algs::RSA_PKCS1_2048_8192_SHA384,
    algs::RSA_PKCS1_2048_8192_SHA512,
    algs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algs::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algs::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// An authority, ready for both ways of verifying.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    pub(crate) certificate: Certificate,
    pub(crate) anchor: TrustAnchor<'static>,
}

impl Authority {
    /// `None` when webpki cannot read the certificate.
    pub(crate) fn new(certificate: Certificate) -> Option<Self> {
        let der = CertificateDer::from(certificate.der());
        let mut anchor = webpki::anchor_from_trusted_cert(&der).ok()?.to_owned();
        let constraints = certificate.extensions().name_constraints.as_ref();
        if constraints.is_some_and(|constraints| constraints.mentions(URI_NAME)) {
            // Enforced below instead, all of it.
            anchor.name_constraints = None;
        }
        Some(Self {
            certificate,
            anchor,
        })
    }
}

/// Whether every path that is valid below `one` would be valid below `other` at `now` (unix seconds): they have one subject
/// and one key, and all else that [`verify`] looks at in an authority is the same. Only their validity, serial number and
/// signature may differ, as those of an authority that was renewed with its key.
pub(crate) fn stands_in_for(other: &Certificate, one: &Certificate, now: i64) -> bool {
    let (theirs, its) = (other.extensions(), one.extensions());
    other.subject_der() == one.subject_der()
        && other.public_key() == one.public_key()
        && theirs.is_ca == its.is_ca
        && theirs.key_usage == its.key_usage
        && theirs.path_len == its.path_len
        && theirs.name_constraints == its.name_constraints
        && its
            .name_constraints
            .as_ref()
            .is_none_or(NameConstraints::are_readable)
        && check_validity(other, now).is_ok()
}

/// Verifies that a path leads from `leaf` through `intermediates` to one of `authorities` at `now` (unix
/// seconds), and gives that authority. Extended key usage is the caller's business.
pub(crate) fn verify<'a>(
    leaf: &Certificate,
    intermediates: &[Certificate],
    authorities: &'a [Authority],
    now: i64,
) -> Result<&'a Certificate, PathError> {
    let constrained = |certificate: &Certificate| {
        certificate
            .extensions()
            .name_constraints
            .as_ref()
            .is_some_and(|names| names.mentions(URI_NAME))
    };
    if intermediates.len() >= MAX_WEBPKI_CHAIN || intermediates.iter().any(constrained) {
        return walk(leaf, intermediates, authorities, now);
    }
    let leaf_der = CertificateDer::from(leaf.der());
    let end_entity = EndEntityCert::try_from(&leaf_der).map_err(|fault| of_webpki(&fault))?;
    let chain: Vec<CertificateDer<'_>> = intermediates
        .iter()
        .map(|one| CertificateDer::from(one.der()))
        .collect();
    // Only those a path could end at.
    let issues = |authority: &Authority| {
        let mut presented = std::iter::once(leaf).chain(intermediates);
        presented.any(|one| one.issuer_der() == authority.certificate.subject_der())
    };
    let anchors: Vec<TrustAnchor<'_>> = authorities
        .iter()
        .filter(|authority| issues(authority))
        .map(|authority| authority.anchor.clone())
        .collect();
    let time =
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or_default()));

    let found = RefCell::new(Err(None));
    let check = |path: &VerifiedPath<'_>| {
        match check_found(path, leaf, intermediates, authorities, now) {
            Ok(authority) => {
                *found.borrow_mut() = Ok(authority);
                Ok(())
            }
            Err(reason) => {
                *found.borrow_mut() = Err(Some(reason));
                // Goes on to other paths, if there are any.
                Err(webpki::Error::UnknownIssuer)
            }
        }
    };
    let outcome = end_entity.verify_for_usage(
        ALGORITHMS,
        &anchors,
        &chain,
        time,
        AnyPurpose,
        None,
        Some(&check),
    );
    match (outcome, found.into_inner()) {
        (Ok(_path), Ok(authority)) => Ok(authority),
        (Err(_), Err(Some(reason))) => Err(reason),
        (Err(fault), _) => Err(of_webpki(&fault)),
        // Not reached: webpki accepts no path that the check above has not seen.
        (Ok(_path), Err(_)) => Err(PathError::UnknownIssuer),
    }
}

/// Who has checked signatures, names and validity of a path so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VerifiedBy {
    Webpki,
    Walking,
}

struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// The further checks on a path webpki has verified.
fn check_found<'a>(
    path: &VerifiedPath<'_>,
    leaf: &Certificate,
    intermediates: &[Certificate],
    authorities: &'a [Authority],
    now: i64,
) -> Result<&'a Certificate, PathError> {
    let used: Option<Vec<&Certificate>> = path
        .intermediate_certificates()
        .map(|used| {
            intermediates
                .iter()
                .find(|one| one.der() == used.der().as_ref())
        })
        .collect();
    let used = used.ok_or(PathError::UnknownIssuer)?;
    // Two authorities may share name and key; any that passes will do.
    let mut refused = PathError::UnknownIssuer;
    for authority in authorities.iter().filter(|authority| {
        let (found, anchor) = (path.anchor(), &authority.anchor);
        found.subject == anchor.subject
            && found.subject_public_key_info == anchor.subject_public_key_info
    }) {
        match check_path(leaf, &used, &authority.certificate, now, VerifiedBy::Webpki) {
            Ok(()) => return Ok(&authority.certificate),
            Err(reason) => refused = reason,
        }
    }
    Err(refused)
}

/// Verifies a chain as it stands: each certificate signed by the next, the last that is needed by an authority.
///
/// Names come first, since comparing them costs nothing: how far the chain hangs together, and which of its certificates
/// name an authority as their issuer. From such a place the signatures are verified downwards to the leaf.
fn walk<'a>(
    leaf: &Certificate,
    intermediates: &[Certificate],
    authorities: &'a [Authority],
    now: i64,
) -> Result<&'a Certificate, PathError> {
    let chain: Vec<&Certificate> = std::iter::once(leaf).chain(intermediates).collect();
    let linked = chain
        .windows(2)
        .take_while(
            |pair| matches!(pair, [below, next] if below.issuer_der() == next.subject_der()),
        )
        .count();
    let mut refused = PathError::UnknownIssuer;
    let mut attempts = MAX_ATTEMPTS;
    for depth in 0..=linked {
        let (Some(used), Some(top)) = (chain.get(1..=depth), chain.get(depth)) else {
            break;
        };
        for authority in authorities {
            if authority.certificate.subject_der() != top.issuer_der() {
                continue;
            }
            attempts = usize::checked_sub(attempts, 1).ok_or(PathError::TooManyPaths)?;
            match descend(leaf, used, &authority.certificate, now) {
                Ok(()) => return Ok(&authority.certificate),
                Err(reason) => refused = reason,
            }
        }
    }
    Err(refused)
}

/// Verifies the links from an authority down to the leaf. `used` goes from the leaf's issuer upwards.
fn descend(
    leaf: &Certificate,
    used: &[&Certificate],
    authority: &Certificate,
    now: i64,
) -> Result<(), PathError> {
    let top = used.last().copied().unwrap_or(leaf);
    if !top.is_signed_by(authority) {
        // It only has the name of the issuer.
        return Err(PathError::UnknownIssuer);
    }
    let mut above: Option<&Certificate> = None;
    for below in used.iter().rev().copied().chain([leaf]) {
        check_readable(below, now)?;
        if let Some(signer) = above {
            // Before its key is used: a workload's certificate vouches for nobody.
            if !signer.is_ca() {
                return Err(PathError::NotAuthority);
            }
            if !below.is_signed_by(signer) {
                return Err(PathError::BadSignature);
            }
        }
        above = Some(below);
    }
    check_path(leaf, used, authority, now, VerifiedBy::Walking)
}

fn check_readable(certificate: &Certificate, now: i64) -> Result<(), PathError> {
    check_validity(certificate, now)?;
    if certificate.extensions().unknown_critical {
        return Err(PathError::CriticalExtension);
    }
    Ok(())
}

fn check_validity(certificate: &Certificate, now: i64) -> Result<(), PathError> {
    let (not_before, not_after) = certificate.validity_unix();
    if now < not_before {
        return Err(PathError::NotYetValid);
    }
    if now > not_after {
        return Err(PathError::Expired);
    }
    Ok(())
}

/// The checks both ways of verifying leave to be done: `intermediates` go from the leaf's issuer upwards.
fn check_path(
    leaf: &Certificate,
    intermediates: &[&Certificate],
    authority: &Certificate,
    now: i64,
    verified_by: VerifiedBy,
) -> Result<(), PathError> {
    check_validity(authority, now)?;
    let mut comparisons = MAX_COMPARISONS;
    // Intermediates below the one looked at that count against its path length.
    let mut counted: u32 = 0;
    for (depth, signer) in intermediates.iter().copied().chain([authority]).enumerate() {
        let extensions = signer.extensions();
        if !extensions.is_ca {
            return Err(PathError::NotAuthority);
        }
        if extensions
            .key_usage
            .is_some_and(|usage| usage & KEY_CERT_SIGN == 0)
        {
            return Err(PathError::KeyUsage);
        }
        if extensions.path_len.is_some_and(|limit| counted > limit) {
            return Err(PathError::PathLength);
        }
        if !signer.is_self_issued() {
            counted += 1;
        }
        let Some(constraints) = &extensions.name_constraints else {
            continue;
        };
        if verified_by == VerifiedBy::Webpki && !constraints.mentions(URI_NAME) {
            // Enforced there, whatever kinds they are of.
            continue;
        }
        let below = intermediates.get(..depth).unwrap_or(intermediates);
        check_names(constraints, leaf, below, &mut comparisons)?;
    }
    Ok(())
}

/// Enforces DNS and URI name constraints on all that is below their certificate; refuses any others.
fn check_names(
    constraints: &NameConstraints,
    leaf: &Certificate,
    below: &[&Certificate],
    comparisons: &mut usize,
) -> Result<(), PathError> {
    if !constraints.are_readable() {
        return Err(PathError::UnsupportedConstraint);
    }
    for certificate in below.iter().copied().chain([leaf]) {
        let uris = certificate
            .uris()
            .iter()
            .map(|uri| (URI_NAME, host_of(uri)));
        let dns = certificate
            .dns_names()
            .iter()
            .map(|name| (DNS_NAME, Some(name.as_str())));
        for (kind, name) in uris.chain(dns) {
            let permitted = || {
                constraints
                    .permitted
                    .iter()
                    .filter(|constraint| constraint.kind == kind)
            };
            let excluded = || {
                constraints
                    .excluded
                    .iter()
                    .filter(|constraint| constraint.kind == kind)
            };
            let cost = permitted().count() + excluded().count();
            if cost == 0 {
                continue;
            }
            *comparisons = comparisons
                .checked_sub(cost)
                .ok_or(PathError::NameConstraint)?;
            // A URI without a host cannot be shown to lie within a constraint.
            let name = name.ok_or(PathError::NameConstraint)?;
            let within = |constraint: &NameConstraint| lies_within(kind, name, &constraint.text);
            if excluded().any(within) || (permitted().next().is_some() && !permitted().any(within))
            {
                return Err(PathError::NameConstraint);
            }
        }
    }
    Ok(())
}

/// The host of a hierarchical URI.
fn host_of(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

/// RFC 5280 §4.2.1.10: a URI constraint names one host, or with a leading period every host below; a DNS
/// constraint names a host and every one below.
fn lies_within(kind: u32, name: &str, constraint: &str) -> bool {
    if let Some(suffix) = constraint.strip_prefix('.') {
        return ends_with_labels(name, suffix) && !name.eq_ignore_ascii_case(suffix);
    }
    name.eq_ignore_ascii_case(constraint)
        || (kind == DNS_NAME && ends_with_labels(name, constraint))
}

fn ends_with_labels(name: &str, suffix: &str) -> bool {
    if suffix.is_empty() {
        return true;
    }
    let Some(at) = name.len().checked_sub(suffix.len()) else {
        return false;
    };
    let tail_fits = name
        .get(at..)
        .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix));
    let at_label = at == 0 || name.as_bytes().get(at - 1) == Some(&b'.');
    tail_fits && at_label
}

fn of_webpki(fault: &webpki::Error) -> PathError {
    use webpki::Error as E;
    match fault {
        E::CertExpired { .. } => PathError::Expired,
        E::CertNotValidYet { .. } => PathError::NotYetValid,
        E::UnknownIssuer => PathError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => PathError::BadSignature,
        E::EndEntityUsedAsCa => PathError::NotAuthority,
        E::PathLenConstraintViolated => PathError::PathLength,
        E::NameConstraintViolation => PathError::NameConstraint,
        E::UnsupportedCriticalExtension => PathError::CriticalExtension,
        other => PathError::Other(format!("{other:?}")),
    }
}
