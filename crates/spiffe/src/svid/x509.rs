//! X509-SVIDs: a certificate chain that proves a SPIFFE ID (X509-SVID §3-5). Only [`verify_svid`] says whether
//! to believe one.

use crate::bundle::X509Bundle;
use crate::clock::unix_seconds;
use crate::id::{IdError, SpiffeId};
use crate::trust_domain::TrustDomain;
use crate::x509::path::{self, MAX_CHAIN};
use crate::x509::{CRL_SIGN, DIGITAL_SIGNATURE, KEY_CERT_SIGN};
use crate::x509::{Certificate, CertificateError, PathError};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

#[cfg(test)]
mod tests;

/// Why a chain is not a valid X509-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum X509SvidError {
    #[error("certificate chain is empty")]
    EmptyChain,
    #[error("certificate chain is longer than 16 certificates")]
    ChainTooLong,
    #[error("certificate {at} of the chain: {reason}")]
    Certificate { at: usize, reason: CertificateError },
    #[error("leaf certificate has {0} URI names; an X509-SVID has exactly one")]
    UriCount(usize),
    #[error("leaf certificate's URI is not a SPIFFE ID: {0}")]
    Id(#[from] IdError),
    #[error("leaf certificate's SPIFFE ID has no path")]
    IdWithoutPath,
    #[error("leaf certificate is an authority")]
    LeafIsAuthority,
    #[error("leaf certificate's key usage allows it to sign certificates")]
    LeafSignsCertificates,
    #[error("leaf certificate's key usage allows it to sign revocation lists")]
    LeafSignsCrls,
    #[error("leaf certificate's key usage does not include digitalSignature")]
    LeafWithoutDigitalSignature,
    #[error("leaf certificate's extended key usage does not allow it to be a {0}")]
    Purpose(&'static str),
    #[error("intermediate certificate {at} may not sign certificates")]
    Intermediate { at: usize },
    #[error("no X.509 bundle for trust domain {0:?}")]
    NoBundle(String),
    #[error("X.509 bundle of trust domain {0:?} has no authorities")]
    EmptyBundle(String),
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Where bundles to verify against come from.
pub trait BundleSource: Send + Sync + Debug {
    /// The X.509 bundle of `trust_domain`, if we trust it at all.
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>>;
}

/// What a peer is about to use its certificate as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Either side; extended key usage is not looked at.
    Any,
    /// The accepting side of a connection.
    Server,
    /// The connecting side.
    Client,
}

/// A chain whose leaf has the form of an X509-SVID. That it was issued by the right authority is not implied:
/// our own, fresh from our own server, or [`verify_svid`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Svid {
    id: SpiffeId,
    chain: Vec<Certificate>,
}

impl X509Svid {
    /// Parses a chain, leaf first, and checks the rules for leaf and intermediates.
    ///
    /// # Errors
    /// [`X509SvidError`].
    pub fn parse(chain: &[&[u8]]) -> Result<Self, X509SvidError> {
        if chain.len() > MAX_CHAIN {
            return Err(X509SvidError::ChainTooLong);
        }
        let chain = chain
            .iter()
            .enumerate()
            .map(|(at, der)| {
                Certificate::from_der(der)
                    .map_err(|reason| X509SvidError::Certificate { at, reason })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Self::from_certificates(chain)
    }

    /// As [`parse`](Self::parse), from one concatenation of DER (the Workload API's form).
    ///
    /// # Errors
    /// [`X509SvidError`].
    pub fn parse_concatenated(bytes: &[u8]) -> Result<Self, X509SvidError> {
        let of_first = |reason| X509SvidError::Certificate { at: 0, reason };
        Self::from_certificates(Certificate::parse_concatenated(bytes).map_err(of_first)?)
    }

    /// As [`parse`](Self::parse), from certificates already read.
    ///
    /// # Errors
    /// [`X509SvidError`].
    pub fn from_certificates(chain: Vec<Certificate>) -> Result<Self, X509SvidError> {
        let (leaf, intermediates) = chain.split_first().ok_or(X509SvidError::EmptyChain)?;
        if chain.len() > MAX_CHAIN {
            return Err(X509SvidError::ChainTooLong);
        }
        let id = leaf_id(leaf)?;
        for (at, intermediate) in intermediates.iter().enumerate() {
            let signs = intermediate
                .extensions()
                .key_usage
                .is_some_and(|usage| usage & KEY_CERT_SIGN != 0);
            if !intermediate.is_ca() || !signs {
                return Err(X509SvidError::Intermediate { at: at + 1 });
            }
        }
        Ok(Self { id, chain })
    }

    /// The SPIFFE ID of the leaf.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The whole chain, leaf first; never empty.
    #[must_use]
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// The leaf certificate.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "construction refuses an empty chain"
    )]
    pub fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    /// The encoded certificates, leaf first.
    pub fn chain_der(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(Certificate::der)
    }

    /// The first moment of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.leaf().not_before()
    }

    /// The last moment of the leaf's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.leaf().not_after()
    }

    /// The leaf's serial number in decimal.
    #[must_use]
    pub fn serial(&self) -> String {
        self.leaf().serial()
    }
}

/// An identity, proved by a chain to an authority of its trust domain. Only verification makes one:
///
/// ```compile_fail,E0451
/// # fn forge(id: plastron_spiffe::SpiffeId, leaf: plastron_spiffe::Certificate) {
/// let authority = leaf.clone();
/// let forged = plastron_spiffe::VerifiedX509Svid { id, leaf, authority };
/// # }
/// ```
///
/// What it proves, it proves of the moment of verification. Over a connection, that the peer also holds the key is shown
/// by [`PeerIdentity`](crate::tls::PeerIdentity).
#[derive(Debug, Clone)]
pub struct VerifiedX509Svid {
    id: SpiffeId,
    leaf: Certificate,
    authority: Certificate,
}

impl VerifiedX509Svid {
    /// The identity.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificate that names it.
    #[must_use]
    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }

    /// The authority of the bundle at which the chain ended. When the bundle loses it, the proof no longer holds, unless
    /// [`X509Bundle::still_holds`] finds one that stands in for it.
    #[must_use]
    pub fn authority(&self) -> &Certificate {
        &self.authority
    }
}

/// Verifies a chain, leaf first: the leaf's form, then a path to an authority of the leaf's own trust domain,
/// valid at `now`.
///
/// # Errors
/// [`X509SvidError`], of the first check that failed.
pub fn verify_svid(
    chain: &[&[u8]],
    bundles: &dyn BundleSource,
    now: SystemTime,
) -> Result<VerifiedX509Svid, X509SvidError> {
    verify_svid_for(Purpose::Any, chain, bundles, now)
}

/// As [`verify_svid`], and the leaf's extended key usage, if it has one, must allow `purpose`. That of
/// authorities is not looked at: implementations differ on whether it nests.
///
/// # Errors
/// [`X509SvidError`], of the first check that failed.
pub fn verify_svid_for(
    purpose: Purpose,
    chain: &[&[u8]],
    bundles: &dyn BundleSource,
    now: SystemTime,
) -> Result<VerifiedX509Svid, X509SvidError> {
    if chain.len() > MAX_CHAIN {
        return Err(X509SvidError::ChainTooLong);
    }
    let (leaf, rest) = chain.split_first().ok_or(X509SvidError::EmptyChain)?;
    let parse = |at: usize, der: &[u8]| {
        Certificate::from_der(der).map_err(|reason| X509SvidError::Certificate { at, reason })
    };
    let leaf = parse(0, leaf)?;
    let id = leaf_id(&leaf)?;
    check_purpose(&leaf, purpose)?;

    let trust_domain = id.trust_domain();
    let bundle = bundles
        .x509_bundle(&trust_domain)
        .filter(|bundle| bundle.trust_domain() == &trust_domain)
        .ok_or_else(|| X509SvidError::NoBundle(trust_domain.to_string()))?;
    if bundle.is_empty() {
        return Err(X509SvidError::EmptyBundle(trust_domain.to_string()));
    }
    let intermediates = rest
        .iter()
        .enumerate()
        .map(|(at, der)| parse(at + 1, der))
        .collect::<Result<Vec<_>, _>>()?;
    let authority = path::verify(&leaf, &intermediates, bundle.verifying(), unix_seconds(now))?;
    let authority = authority.clone();
    Ok(VerifiedX509Svid {
        id,
        leaf,
        authority,
    })
}

/// The SPIFFE ID of a leaf that has the form of an X509-SVID (X509-SVID §5.2).
pub(crate) fn leaf_id(leaf: &Certificate) -> Result<SpiffeId, X509SvidError> {
    let [uri] = leaf.uris() else {
        return Err(X509SvidError::UriCount(leaf.uris().len()));
    };
    let id = SpiffeId::parse(uri)?;
    if leaf.is_ca() {
        return Err(X509SvidError::LeafIsAuthority);
    }
    let usage = leaf.extensions().key_usage.unwrap_or_default();
    if usage & KEY_CERT_SIGN != 0 {
        return Err(X509SvidError::LeafSignsCertificates);
    }
    if usage & CRL_SIGN != 0 {
        return Err(X509SvidError::LeafSignsCrls);
    }
    if usage & DIGITAL_SIGNATURE == 0 {
        return Err(X509SvidError::LeafWithoutDigitalSignature);
    }
    if !id.has_path() {
        return Err(X509SvidError::IdWithoutPath);
    }
    Ok(id)
}

fn check_purpose(leaf: &Certificate, purpose: Purpose) -> Result<(), X509SvidError> {
    let Some(usage) = leaf.extensions().extended_key_usage else {
        return Ok(());
    };
    match purpose {
        Purpose::Server if !usage.server_auth && !usage.any => {
            Err(X509SvidError::Purpose("server"))
        }
        Purpose::Client if !usage.client_auth && !usage.any => {
            Err(X509SvidError::Purpose("client"))
        }
        Purpose::Any | Purpose::Server | Purpose::Client => Ok(()),
    }
}
