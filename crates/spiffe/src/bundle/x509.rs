//! The X.509 part of a bundle, prepared for path validation.

use crate::clock::unix_seconds;
use crate::trust_domain::TrustDomain;
use crate::x509::Certificate;
use crate::x509::path::{Authority, stands_in_for};
use std::time::SystemTime;

/// The certificates X509-SVIDs of one trust domain may chain to.
#[derive(Debug, Clone)]
pub struct X509Bundle {
    trust_domain: TrustDomain,
    authorities: Vec<Certificate>,
    verifying: Vec<Authority>,
}

impl X509Bundle {
    /// A bundle without certificates.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            authorities: Vec::new(),
            verifying: Vec::new(),
        }
    }

    /// The trust domain whose SVIDs this bundle verifies.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The certificates, in the order added.
    #[must_use]
    pub fn authorities(&self) -> &[Certificate] {
        &self.authorities
    }

    /// Adds a certificate unless it is there already. One that path validation cannot use is listed, but
    /// nothing verifies under it.
    pub fn add(&mut self, certificate: Certificate) {
        if self.authorities.contains(&certificate) {
            return;
        }
        self.verifying.extend(Authority::new(certificate.clone()));
        self.authorities.push(certificate);
    }

    /// Whether there is no certificate, so that nothing of the trust domain is believed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    /// Whether a chain that was verified under `authority` still holds: it is here, or one that is valid at `now` and
    /// differs from it in validity, serial number and signature alone, like a root that was renewed with its key.
    #[must_use]
    pub fn still_holds(&self, authority: &Certificate, now: SystemTime) -> bool {
        let now = unix_seconds(now);
        self.authorities.contains(authority)
            || self
                .verifying
                .iter()
                .any(|known| stands_in_for(&known.certificate, authority, now))
    }

    pub(crate) fn verifying(&self) -> &[Authority] {
        &self.verifying
    }
}

impl PartialEq for X509Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.authorities == other.authorities
    }
}

impl Eq for X509Bundle {}
