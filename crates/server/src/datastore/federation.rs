//! Writes of federation relationships.

use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::trust_domain::TrustDomain;

use super::DatastoreError;
use super::write_queue::WriteQueue;
use crate::registry::{BundleEndpointProfile, FederationRelationship, Kind, Object};

/// Why a relationship was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationshipError {
    #[error("federation relationship not found")]
    NotFound,
    #[error("federation relationship already exists")]
    Exists,
    #[error(transparent)]
    Store(#[from] DatastoreError),
}

/// The handle by which federation relationships are written.
#[derive(Debug, Clone)]
pub struct FederationRelationships(pub(super) Arc<WriteQueue>);

impl FederationRelationships {
    /// Creates a relationship, and with it the other side's bundle when one is given (it replaces a stored one).
    ///
    /// # Errors
    /// [`RelationshipError::Exists`], or the store could not write.
    pub async fn create(
        &self,
        relationship: FederationRelationship,
        bundle: Option<Bundle>,
    ) -> Result<Arc<FederationRelationship>, RelationshipError> {
        let relationship = Arc::new(relationship);
        let bundle = bundle.map(Arc::new);
        self.0
            .submit(2, move |draft| {
                if draft
                    .get(
                        Kind::FederationRelationship,
                        relationship.trust_domain.as_str(),
                    )
                    .is_some()
                {
                    return Err(RelationshipError::Exists);
                }
                draft.put(Object::FederationRelationship(Arc::clone(&relationship)));
                if let Some(bundle) = &bundle {
                    draft.put(Object::Bundle(Arc::clone(bundle)));
                }
                Ok(Arc::clone(&relationship))
            })
            .await?
    }

    /// Writes the given fields of a relationship, and the bundle when one is given.
    ///
    /// # Errors
    /// [`RelationshipError::NotFound`], or the store could not write.
    pub async fn update(
        &self,
        trust_domain: &TrustDomain,
        url: Option<String>,
        profile: Option<BundleEndpointProfile>,
        bundle: Option<Bundle>,
    ) -> Result<Arc<FederationRelationship>, RelationshipError> {
        let trust_domain = trust_domain.clone();
        let bundle = bundle.map(Arc::new);
        self.0
            .submit(2, move |draft| {
                let Some(Object::FederationRelationship(stored)) =
                    draft.get(Kind::FederationRelationship, trust_domain.as_str())
                else {
                    return Err(RelationshipError::NotFound);
                };
                let updated = Arc::new(FederationRelationship {
                    trust_domain: trust_domain.clone(),
                    bundle_endpoint_url: url
                        .clone()
                        .unwrap_or_else(|| stored.bundle_endpoint_url.clone()),
                    bundle_endpoint_profile: profile
                        .clone()
                        .unwrap_or_else(|| stored.bundle_endpoint_profile.clone()),
                });
                draft.put(Object::FederationRelationship(Arc::clone(&updated)));
                if let Some(bundle) = &bundle {
                    draft.put(Object::Bundle(Arc::clone(bundle)));
                }
                Ok(updated)
            })
            .await?
    }

    /// # Errors
    /// [`RelationshipError::NotFound`], or the store could not write.
    pub async fn delete(&self, trust_domain: &TrustDomain) -> Result<(), RelationshipError> {
        let trust_domain = trust_domain.clone();
        self.0
            .submit(1, move |draft| {
                if draft
                    .get(Kind::FederationRelationship, trust_domain.as_str())
                    .is_none()
                {
                    return Err(RelationshipError::NotFound);
                }
                draft.delete(Kind::FederationRelationship, trust_domain.as_str());
                Ok(())
            })
            .await?
    }
}
