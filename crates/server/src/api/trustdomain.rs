//! The TrustDomain service. Federation relationships are stored and told, but this version does not fetch bundles, so it
//! makes no new ones: whoever is told "created" would wait for bundles in vain.

use std::sync::Arc;

use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomain as TrustDomainApi;
use proto::spire::api::server::trustdomain::v1::{
    self as rpc, batch_delete_federation_relationship_response,
};
use proto::spire::api::types::federation_relationship::BundleEndpointProfile as WireProfile;
use proto::spire::api::types::{self, FederationRelationshipMask};
use spiffe::trust_domain::TrustDomain;
use tonic::{Request, Response, Status};

use super::wire;
use crate::audit::Fields;
use crate::caller::Caller;
use crate::datastore::{Datastore, RelationshipError};
use crate::error::{Kind, OpError, malformed, refused, write_failed};
use crate::registry::{BundleEndpointProfile, FederationRelationship, Registry};
use crate::status::{item, item_ok};

#[derive(Debug)]
pub(crate) struct TrustDomainService {
    pub(crate) registry: Arc<Registry>,
    pub(crate) datastore: Datastore,
}

const NOT_YET: &str = "federation relationships are not supported yet, since this version does not fetch bundles; \
                       bring the other trust domain's bundle in with 'bundle set'";

#[tonic::async_trait]
impl TrustDomainApi for TrustDomainService {
    async fn list_federation_relationships(
        &self,
        request: Request<rpc::ListFederationRelationshipsRequest>,
    ) -> Result<Response<rpc::ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        let all = self.registry.federation_relationships();
        let (page, next_page_token) = wire::page_by_trust_domain(
            &all,
            |relationship| &relationship.trust_domain,
            request.page_size,
            &request.page_token,
        )?;
        let mask = request.output_mask.as_ref();
        Ok(Response::new(rpc::ListFederationRelationshipsResponse {
            federation_relationships: page
                .iter()
                .map(|relationship| self.to_wire(relationship, mask))
                .collect(),
            next_page_token,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<rpc::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("trust_domain_id", &request.trust_domain));
        let name = TrustDomain::parse(&request.trust_domain)
            .map_err(malformed("failed to parse trust domain"))?;
        let found = self
            .registry
            .federation_relationship(&name)
            .ok_or_else(|| refused(Kind::NotFound, "federation relationship does not exist"))?;
        Ok(Response::new(
            self.to_wire(&found, request.output_mask.as_ref()),
        ))
    }

    async fn batch_create_federation_relationship(
        &self,
        _: Request<rpc::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<rpc::BatchCreateFederationRelationshipResponse>, Status> {
        Err(refused(Kind::Unimplemented, NOT_YET).into())
    }

    async fn batch_update_federation_relationship(
        &self,
        _: Request<rpc::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<rpc::BatchUpdateFederationRelationshipResponse>, Status> {
        Err(refused(Kind::Unimplemented, NOT_YET).into())
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<rpc::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<rpc::BatchDeleteFederationRelationshipResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut results = Vec::new();
        for trust_domain in request.into_inner().trust_domains {
            let outcome = self.delete(&trust_domain).await;
            caller.item(outcome.as_ref().copied(), || {
                Fields::new().with("trust_domain_id", &trust_domain)
            });
            let status = Some(outcome.map_or_else(|refused| item(&refused), |()| item_ok()));
            results.push(batch_delete_federation_relationship_response::Result {
                status,
                trust_domain,
            });
        }
        Ok(Response::new(
            rpc::BatchDeleteFederationRelationshipResponse { results },
        ))
    }

    async fn refresh_bundle(
        &self,
        request: Request<rpc::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let trust_domain = &request.get_ref().trust_domain;
        Caller::of(&request)?.describe(|| Fields::new().with("trust_domain_id", trust_domain));
        let name =
            TrustDomain::parse(trust_domain).map_err(malformed("failed to parse trust domain"))?;
        if self.registry.federation_relationship(&name).is_none() {
            return Err(refused(
                Kind::NotFound,
                format!("no relationship with trust domain \"{name}\""),
            )
            .into());
        }
        Err(refused(Kind::Unimplemented, NOT_YET).into())
    }
}

impl TrustDomainService {
    async fn delete(&self, trust_domain: &str) -> Result<(), OpError> {
        if trust_domain.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing trust domain"));
        }
        let name =
            TrustDomain::parse(trust_domain).map_err(malformed("failed to parse trust domain"))?;
        self.datastore
            .delete_federation_relationship(&name)
            .await
            .map_err(|error| match error {
                RelationshipError::NotFound => {
                    refused(Kind::NotFound, "federation relationship not found")
                }
                other => write_failed("failed to delete federation relationship", &other),
            })
    }

    fn to_wire(
        &self,
        relationship: &FederationRelationship,
        mask: Option<&FederationRelationshipMask>,
    ) -> types::FederationRelationship {
        let wanted = |pick: fn(&FederationRelationshipMask) -> bool| mask.is_none_or(pick);
        let profile = match &relationship.bundle_endpoint_profile {
            BundleEndpointProfile::HttpsWeb => WireProfile::HttpsWeb(types::HttpsWebProfile {}),
            BundleEndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
                WireProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                    endpoint_spiffe_id: endpoint_spiffe_id.to_string(),
                })
            }
        };
        let url = wanted(|mask| mask.bundle_endpoint_url)
            .then(|| relationship.bundle_endpoint_url.clone());
        let bundle = self
            .registry
            .bundle(&relationship.trust_domain)
            .filter(|_| wanted(|mask| mask.trust_domain_bundle));
        types::FederationRelationship {
            trust_domain: relationship.trust_domain.as_str().to_owned(),
            bundle_endpoint_url: url.unwrap_or_default(),
            trust_domain_bundle: bundle.map(|bundle| proto::convert::bundle_to_wire(&bundle, None)),
            bundle_endpoint_profile: wanted(|mask| mask.bundle_endpoint_profile).then_some(profile),
        }
    }
}
