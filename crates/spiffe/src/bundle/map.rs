//! Bundle maps (Trust Domain and Bundle §5): several trust domains' bundles in one document, taken or refused
//! as a whole.

use super::jwks::{read_json, write_json};
use super::{Bundle, BundleError};
use crate::trust_domain::TrustDomain;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Most trust domains in one map.
const MAX_TRUST_DOMAINS: usize = 4096;

/// Bundles by trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleMap(pub BTreeMap<TrustDomain, Bundle>);

#[derive(Deserialize)]
struct Read {
    trust_domains: Option<Unique>,
}

/// The members of an object, none of which came twice.
struct Unique(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of bundles by trust domain name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unique, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if members.len() == MAX_TRUST_DOMAINS {
                return Err(A::Error::custom("too many trust domains"));
            }
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a trust domain appears twice"));
            }
        }
        Ok(Unique(members))
    }
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
