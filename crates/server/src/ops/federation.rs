//! Relationships with other trust domains: from where their bundles are fetched.
//!
//! This version stores and shows relationships, but fetches no bundles. It makes no new ones: an administrator whose
//! relationship was created would wait for its bundles in vain.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::trust_domain::TrustDomain;

use super::page::by_trust_domain;
use crate::datastore::{FederationRelationships, RelationshipError};
use crate::error::{Kind, OpError, malformed, refused, write_failed};
use crate::registry::{FederationRelationship, Listing, Page, Registry};

#[derive(Debug)]
pub(crate) struct Federation {
    pub(crate) registry: Arc<Registry>,
    pub(crate) relationships: FederationRelationships,
}

/// A relationship with the bundle that its trust domain has here, if it has one.
#[derive(Debug)]
pub(crate) struct Federated {
    pub(crate) relationship: Arc<FederationRelationship>,
    pub(crate) bundle: Option<Arc<Bundle>>,
}

/// Why a relationship is neither created, nor changed, nor refreshed.
pub(crate) fn not_supported() -> OpError {
    refused(
        Kind::Unimplemented,
        "federation relationships are not supported yet, since this version does not fetch bundles; \
         bring the other trust domain's bundle in with 'bundle set'",
    )
}

impl Federation {
    /// A page of relationships, sorted by trust domain.
    ///
    /// # Errors
    /// InvalidArgument when the page token is not one of this server's.
    pub(crate) fn list(&self, page: &Page) -> Result<Listing<Federated>, OpError> {
        let all = self.registry.federation_relationships();
        let listed = by_trust_domain(all, |relationship| &relationship.trust_domain, page)?;
        let items = listed.items.into_iter();
        Ok(Listing {
            items: items.map(|relationship| self.of(relationship)).collect(),
            next_token: listed.next_token,
        })
    }

    /// # Errors
    /// InvalidArgument, NotFound.
    pub(crate) fn get(&self, trust_domain: &str) -> Result<Federated, OpError> {
        let found = self.find(trust_domain)?;
        let found = found.ok_or_else(|| {
            let missing = "federation relationship does not exist";
            refused(Kind::NotFound, missing)
        })?;
        Ok(self.of(found))
    }

    /// Removes a relationship. The bundle stays.
    ///
    /// # Errors
    /// InvalidArgument, NotFound, or the store could not write.
    pub(crate) async fn delete(&self, trust_domain: &str) -> Result<(), OpError> {
        if trust_domain.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing trust domain"));
        }
        let name = parse(trust_domain)?;
        let deleted = self.relationships.delete(&name).await;
        deleted.map_err(|error| match error {
            RelationshipError::NotFound => refused(Kind::NotFound, error.to_string()),
            other => write_failed("failed to delete federation relationship", &other),
        })
    }

    /// Fetches the bundle of a relationship's trust domain now, which this version cannot.
    ///
    /// # Errors
    /// InvalidArgument, NotFound, Unimplemented.
    pub(crate) fn refresh(&self, trust_domain: &str) -> Result<(), OpError> {
        if self.find(trust_domain)?.is_none() {
            let missing = format!("no relationship with trust domain \"{trust_domain}\"");
            return Err(refused(Kind::NotFound, missing));
        }
        Err(not_supported())
    }

    fn find(&self, trust_domain: &str) -> Result<Option<Arc<FederationRelationship>>, OpError> {
        let name = parse(trust_domain)?;
        Ok(self.registry.federation_relationship(&name))
    }

    fn of(&self, relationship: Arc<FederationRelationship>) -> Federated {
        let bundle = self.registry.bundle(&relationship.trust_domain);
        Federated {
            relationship,
            bundle,
        }
    }
}

fn parse(trust_domain: &str) -> Result<TrustDomain, OpError> {
    TrustDomain::parse(trust_domain).map_err(malformed("failed to parse trust domain"))
}
