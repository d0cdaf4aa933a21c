//! The TrustDomain service: federation relationships, for administrators to keep.

use proto::convert::bundle_to_wire;
use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomain as TrustDomainApi;
use proto::spire::api::server::trustdomain::v1::{
    self as rpc, batch_delete_federation_relationship_response,
};
use proto::spire::api::types::federation_relationship::BundleEndpointProfile as WireProfile;
use proto::spire::api::types::{self, FederationRelationshipMask};
use tonic::{Request, Response, Status};

use super::wire;
use crate::audit::Fields;
use crate::caller::Caller;
use crate::ops::federation::{Federated, Federation, not_supported};
use crate::registry::BundleEndpointProfile;
use crate::status::{item, item_ok};

#[derive(Debug)]
pub(crate) struct TrustDomainService {
    pub(crate) federation: Federation,
}

#[tonic::async_trait]
impl TrustDomainApi for TrustDomainService {
    async fn list_federation_relationships(
        &self,
        request: Request<rpc::ListFederationRelationshipsRequest>,
    ) -> Result<Response<rpc::ListFederationRelationshipsResponse>, Status> {
        let request = request.into_inner();
        let page = wire::page(request.page_size, &request.page_token);
        let listed = self.federation.list(&page)?;
        let mask = request.output_mask.as_ref();
        let relationships = listed.items.iter();
        Ok(Response::new(rpc::ListFederationRelationshipsResponse {
            federation_relationships: relationships
                .map(|federated| to_wire(federated, mask))
                .collect(),
            next_page_token: listed.next_token,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<rpc::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("trust_domain_id", &request.trust_domain));
        let found = self.federation.get(&request.trust_domain)?;
        Ok(Response::new(to_wire(&found, request.output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        _: Request<rpc::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<rpc::BatchCreateFederationRelationshipResponse>, Status> {
        Err(not_supported().into())
    }

    async fn batch_update_federation_relationship(
        &self,
        _: Request<rpc::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<rpc::BatchUpdateFederationRelationshipResponse>, Status> {
        Err(not_supported().into())
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<rpc::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<rpc::BatchDeleteFederationRelationshipResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut results = Vec::new();
        for trust_domain in request.into_inner().trust_domains {
            let outcome = self.federation.delete(&trust_domain).await;
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
        Ok(Response::new(self.federation.refresh(trust_domain)?))
    }
}

fn to_wire(
    federated: &Federated,
    mask: Option<&FederationRelationshipMask>,
) -> types::FederationRelationship {
    let wanted = |pick: fn(&FederationRelationshipMask) -> bool| mask.is_none_or(pick);
    let relationship = &federated.relationship;
    let profile = match &relationship.bundle_endpoint_profile {
        BundleEndpointProfile::HttpsWeb => WireProfile::HttpsWeb(types::HttpsWebProfile {}),
        BundleEndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
            WireProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: endpoint_spiffe_id.to_string(),
            })
        }
    };
    let url =
        wanted(|mask| mask.bundle_endpoint_url).then(|| relationship.bundle_endpoint_url.clone());
    let bundle = federated.bundle.as_deref();
    let bundle = bundle.filter(|_| wanted(|mask| mask.trust_domain_bundle));
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.as_str().to_owned(),
        bundle_endpoint_url: url.unwrap_or_default(),
        trust_domain_bundle: bundle.map(|bundle| bundle_to_wire(bundle, None)),
        bundle_endpoint_profile: wanted(|mask| mask.bundle_endpoint_profile).then_some(profile),
    }
}
