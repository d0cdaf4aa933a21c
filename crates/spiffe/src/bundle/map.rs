//! Bundle maps (Trust Domain and Bundle §5): several trust domains' bundles in one document, taken or refused
//! as a whole.

use super::jwks::{read_json, write_json};
use super::{Bundle, BundleError};
use crate::json::UniqueMembers;
use crate::trust_domain::TrustDomain;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most trust domains in one map.
const MAX_TRUST_DOMAINS: usize = 4096;

/// Bundles by trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleMap(pub BTreeMap<TrustDomain, Bundle>);

#[derive(Deserialize)]
struct Read {
    trust_domains: Option<UniqueMembers>,
}

#[derive(Serialize)]
struct Written<'a> {
    trust_domains: BTreeMap<&'a str, Value>,
}

impl BundleMap {
    /// Reads a bundle map. One broken bundle or name refuses the whole map. Refresh hints within it are dropped:
    /// they must not say how often the map is fetched.
    ///
    /// # Errors
    /// [`BundleError`]; a caller keeps the map that it has.
    pub fn from_json(json: &[u8]) -> Result<Self, BundleError> {
        let read: Read = read_json(json)?;
        let members = read.trust_domains.ok_or(BundleError::NoTrustDomains)?;
        if members.0.len() > MAX_TRUST_DOMAINS {
            return Err(BundleError::Json("too many trust domains".to_owned()));
        }
        let mut bundles = BTreeMap::new();
        for (name, value) in members.0 {
            let trust_domain = TrustDomain::parse(&name)
                .ok()
                .filter(|trust_domain| trust_domain.as_str() == name)
                .ok_or(BundleError::TrustDomainName(name))?;
            let mut bundle = Bundle::from_spiffe_value(trust_domain.clone(), &value)?;
            bundle.refresh_hint = 0;
            bundles.insert(trust_domain, bundle);
        }
        Ok(Self(bundles))
    }

    /// The bundles as one document, without their refresh hints.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let trust_domains = self
            .0
            .iter()
            .map(|(name, bundle)| (name.as_str(), bundle.to_spiffe_value()))
            .collect();
        write_json(&Written { trust_domains })
    }
}
