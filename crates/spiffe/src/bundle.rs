//! Trust bundles (Trust Domain and Bundle §3-4): the authorities of one trust domain, and their formats. A
//! bundle always knows its trust domain, and no operation ever mixes two.

mod jwks;
mod map;
mod spiffe_json;
#[cfg(test)]
mod tests;
mod x509;

pub use jwks::JwtBundle;
pub use map::BundleMap;
pub use x509::X509Bundle;

use crate::key::PublicKey;
use crate::trust_domain::TrustDomain;
use crate::x509::{Certificate, CertificateError, PemBundleError};
use serde::{Deserialize, Serialize};

/// Largest bundle document read, in bytes.
pub const MAX_BUNDLE_LEN: usize = 4 * 1024 * 1024;
/// Most keys in one bundle document.
pub const MAX_KEYS: usize = 4096;
/// Longest refresh hint obeyed, in seconds: 30 days.
pub const MAX_REFRESH_HINT: i64 = 30 * 86_400;
/// What a missing refresh hint means, in seconds.
pub const DEFAULT_REFRESH_HINT: i64 = 300;

/// Why a text is not a bundle. A caller keeps the bundle that it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("bundle is longer than 4 MiB")]
    TooLong,
    #[error("bundle has more than 4096 keys")]
    TooManyKeys,
    #[error("bundle is not a JSON document of the right form: {0}")]
    Json(String),
    #[error("bundle has no keys member")]
    NoKeys,
    #[error("bundle sequence number is not a whole number from 0 to 2^64-1")]
    Sequence,
    #[error("bundle refresh hint is not a whole number of seconds")]
    RefreshHint,
    #[error("bundle key {at}: {reason}")]
    Key { at: usize, reason: String },
    #[error(
        "bundle key {at} is a {key_use} key without {member}, and there is no other that can be used"
    )]
    Lacking {
        at: usize,
        key_use: &'static str,
        member: &'static str,
    },
    #[error("bundle has keys, none of which is of a kind that is supported")]
    NothingSupported,
    #[error("bundle certificate: {0}")]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Pem(#[from] PemBundleError),
    #[error("bundle map has no trust_domains member")]
    NoTrustDomains,
    #[error("bundle map key {0:?} is not the name of a trust domain")]
    TrustDomainName(String),
    #[error("bundle has two keys with id {0:?}")]
    DuplicateKeyId(String),
}

/// Who put an authority into a bundle that is kept. No document carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthoritySource {
    /// It came with a document, or was put there before this was recorded.
    #[default]
    Unknown,
    /// A server of the trust domain made it.
    Own,
    /// The upstream authority of this name does, until it says otherwise.
    Upstream(String),
    /// A server below made it.
    Downstream,
    Administrator,
}

impl AuthoritySource {
    /// For rows, where it is left out.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

/// A certificate that X509-SVIDs of the trust domain may chain to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct X509Authority {
    pub certificate: Certificate,
    /// On its way out: still verifies, but nothing new is issued under it.
    #[serde(default)]
    pub tainted: bool,
    #[serde(default, skip_serializing_if = "AuthoritySource::is_unknown")]
    pub source: AuthoritySource,
}

/// A key that tokens of the trust domain may be signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtAuthority {
    pub key_id: String,
    pub public_key: PublicKey,
    /// Unix seconds; `None` when the source does not say.
    #[serde(default)]
    pub expires_at: Option<i64>,
    /// On its way out, as for [`X509Authority`].
    #[serde(default)]
    pub tainted: bool,
    #[serde(default, skip_serializing_if = "AuthoritySource::is_unknown")]
    pub source: AuthoritySource,
}

/// All authorities of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub trust_domain: TrustDomain,
    #[serde(default)]
    pub x509_authorities: Vec<X509Authority>,
    #[serde(default)]
    pub jwt_authorities: Vec<JwtAuthority>,
    #[serde(default)]
    pub wit_authorities: Vec<JwtAuthority>,
    /// Seconds; 0 when the source does not say.
    #[serde(default)]
    pub refresh_hint: i64,
    /// Grows with every change of content.
    #[serde(default)]
    pub sequence_number: u64,
}

impl Bundle {
    /// A bundle without authorities: whatever is presented, nothing of the trust domain is believed.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 0,
        }
    }

    /// The X.509 part, ready to verify with.
    #[must_use]
    pub fn x509_bundle(&self) -> X509Bundle {
        let mut bundle = X509Bundle::new(self.trust_domain.clone());
        for authority in &self.x509_authorities {
            bundle.add(authority.certificate.clone());
        }
        bundle
    }

    /// The JWT part, ready to verify with.
    #[must_use]
    pub fn jwt_bundle(&self) -> JwtBundle {
        let mut bundle = JwtBundle::new(self.trust_domain.clone());
        for authority in &self.jwt_authorities {
            bundle.add(&authority.key_id, authority.public_key.clone());
        }
        bundle
    }

    /// Adds the authorities of `other` that are missing here, by certificate and by key id. Gives whether there
    /// were any. Bundles of two trust domains are never merged.
    pub fn append(&mut self, other: &Self) -> bool {
        if other.trust_domain != self.trust_domain {
            return false;
        }
        let mut changed = false;
        for authority in &other.x509_authorities {
            if !self
                .x509_authorities
                .iter()
                .any(|known| known.certificate == authority.certificate)
            {
                self.x509_authorities.push(authority.clone());
                changed = true;
            }
        }
        let lists = [
            (&mut self.jwt_authorities, &other.jwt_authorities),
            (&mut self.wit_authorities, &other.wit_authorities),
        ];
        for (mine, theirs) in lists {
            for authority in theirs {
                if !mine.iter().any(|known| known.key_id == authority.key_id) {
                    mine.push(authority.clone());
                    changed = true;
                }
            }
        }
        changed
    }

    /// Whether the two hold the same authorities, whatever their sequence numbers and hints.
    #[must_use]
    pub fn same_authorities(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.x509_authorities == other.x509_authorities
            && self.jwt_authorities == other.jwt_authorities
            && self.wit_authorities == other.wit_authorities
    }

    /// The X.509 authorities as PEM, in order.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.x509_authorities
            .iter()
            .map(|authority| authority.certificate.to_pem())
            .collect()
    }

    /// The X.509 authorities as concatenated DER (the Workload API's form).
    #[must_use]
    pub fn to_concatenated_der(&self) -> Vec<u8> {
        self.x509_authorities
            .iter()
            .flat_map(|authority| authority.certificate.der())
            .copied()
            .collect()
    }

    /// A bundle of the certificates in a PEM text; duplicates are folded.
    ///
    /// # Errors
    /// [`BundleError::Pem`].
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        let mut bundle = Self::new(trust_domain);
        for certificate in Certificate::parse_pem_bundle(text)? {
            bundle.add_x509_authority(certificate);
        }
        Ok(bundle)
    }

    /// Adds a certificate unless it is there already.
    pub fn add_x509_authority(&mut self, certificate: Certificate) {
        if !self
            .x509_authorities
            .iter()
            .any(|known| known.certificate == certificate)
        {
            self.x509_authorities.push(X509Authority {
                certificate,
                tainted: false,
                source: AuthoritySource::Unknown,
            });
        }
    }
}
