//! The Bundle service: the trust domain's own bundle for everybody, the federated ones for administrators and agents.

use std::collections::HashSet;
use std::sync::Arc;

use config::fault::Code;
use proto::convert::{
    bundle_from_caller, bundle_to_wire, jwt_authorities_from_wire, jwt_authority_to_wire,
    x509_authorities_from_wire,
};
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::server::bundle::v1::bundle_server::Bundle as BundleApi;
use proto::spire::api::server::bundle::v1::{
    self as rpc, batch_create_federated_bundle_response, batch_delete_federated_bundle_response,
    batch_set_federated_bundle_response, batch_update_federated_bundle_response,
};
use proto::spire::api::types::{self, BundleMask};
use spiffe::bundle::{Bundle, JwtAuthority};
use spiffe::trust_domain::TrustDomain;
use tonic::{Request, Response, Status};

use super::wire;
use crate::audit::Fields;
use crate::caller::Caller;
use crate::datastore::{BundleError, BundleMask as Written, Datastore, DeleteMode};
use crate::error::{Kind, OpError, failed, malformed, refused, write_failed};
use crate::ratelimit::RateLimits;
use crate::registry::Registry;
use crate::status::{item, item_ok};

#[cfg(test)]
mod tests;

/// JWT keys of this trust domain, its downstream servers' included. Readers of the bundle refuse one with thousands.
const MAX_JWT_AUTHORITIES: usize = 1_024;

#[derive(Debug)]
pub(crate) struct BundleService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) datastore: Datastore,
    pub(crate) limits: Arc<RateLimits>,
}

/// How a bundle from a caller is written.
#[derive(Clone, Copy)]
enum Write<'a> {
    Create,
    Update(Option<&'a BundleMask>),
    Set,
}

#[tonic::async_trait]
impl BundleApi for BundleService {
    async fn count_bundles(
        &self,
        _: Request<rpc::CountBundlesRequest>,
    ) -> Result<Response<rpc::CountBundlesResponse>, Status> {
        Ok(Response::new(rpc::CountBundlesResponse {
            count: wire::count(self.registry.bundles().len()),
        }))
    }

    async fn get_bundle(
        &self,
        request: Request<rpc::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Caller::of(&request)?;
        caller.describe(|| Fields::new().with("trust_domain_id", &self.trust_domain));
        let found = self.registry.bundle(&self.trust_domain).ok_or_else(|| {
            refused(Kind::NotFound, "bundle not found").with_code(Code::BundleNotFound)
        })?;
        Ok(Response::new(bundle_to_wire(
            &found,
            request.get_ref().output_mask.as_ref(),
        )))
    }

    async fn append_bundle(
        &self,
        request: Request<rpc::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("trust_domain_id", &self.trust_domain));
        let appended = self.append(&request).await?;
        Ok(Response::new(bundle_to_wire(
            &appended,
            request.output_mask.as_ref(),
        )))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<rpc::PublishJwtAuthorityRequest>,
    ) -> Result<Response<rpc::PublishJwtAuthorityResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .publish_key
            .take(&caller.connection, 1, "key publishing")
            .await?;
        caller.still_entitled()?;
        let authority = request
            .into_inner()
            .jwt_authority
            .ok_or_else(|| refused(Kind::InvalidArgument, "missing JWT authority"))?;
        caller.describe(|| Fields::new().with("jwt_authority_key_id", &authority.key_id));
        let jwt_authorities = self
            .publish(authority)
            .await?
            .jwt_authorities
            .iter()
            .map(jwt_authority_to_wire)
            .collect();
        Ok(Response::new(rpc::PublishJwtAuthorityResponse {
            jwt_authorities,
        }))
    }

    async fn publish_wit_authority(
        &self,
        _: Request<rpc::PublishWitAuthorityRequest>,
    ) -> Result<Response<rpc::PublishWitAuthorityResponse>, Status> {
        Err(refused(
            Kind::Unimplemented,
            "WIT-SVID functionality is not yet implemented",
        )
        .into())
    }

    async fn list_federated_bundles(
        &self,
        request: Request<rpc::ListFederatedBundlesRequest>,
    ) -> Result<Response<rpc::ListFederatedBundlesResponse>, Status> {
        let request = request.into_inner();
        let mut foreign = self.registry.bundles();
        foreign.retain(|bundle| bundle.trust_domain != self.trust_domain);
        let (listed, next_page_token) = wire::page_by_trust_domain(
            &foreign,
            |bundle| &bundle.trust_domain,
            request.page_size,
            &request.page_token,
        )?;
        let bundles = listed
            .iter()
            .map(|bundle| bundle_to_wire(bundle, request.output_mask.as_ref()))
            .collect();
        Ok(Response::new(rpc::ListFederatedBundlesResponse {
            bundles,
            next_page_token,
        }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<rpc::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("trust_domain_id", &request.trust_domain));
        let name = self.foreign(
            &request.trust_domain,
            "getting a federated bundle for the server's own trust domain is not allowed",
        )?;
        let found = self.registry.bundle(&name).ok_or_else(|| {
            refused(Kind::NotFound, "bundle not found").with_code(Code::BundleNotFound)
        })?;
        Ok(Response::new(bundle_to_wire(
            &found,
            request.output_mask.as_ref(),
        )))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<rpc::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<rpc::BatchCreateFederatedBundleResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for bundle in &request.bundle {
            let (status, bundle) = self
                .write(&caller, bundle, Write::Create, request.output_mask.as_ref())
                .await;
            results.push(batch_create_federated_bundle_response::Result {
                status: Some(status),
                bundle,
            });
        }
        Ok(Response::new(rpc::BatchCreateFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<rpc::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<rpc::BatchUpdateFederatedBundleResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for bundle in &request.bundle {
            let how = Write::Update(request.input_mask.as_ref());
            let (status, bundle) = self
                .write(&caller, bundle, how, request.output_mask.as_ref())
                .await;
            results.push(batch_update_federated_bundle_response::Result {
                status: Some(status),
                bundle,
            });
        }
        Ok(Response::new(rpc::BatchUpdateFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<rpc::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<rpc::BatchSetFederatedBundleResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.bundle.len());
        for bundle in &request.bundle {
            let (status, bundle) = self
                .write(&caller, bundle, Write::Set, request.output_mask.as_ref())
                .await;
            results.push(batch_set_federated_bundle_response::Result {
                status: Some(status),
                bundle,
            });
        }
        Ok(Response::new(rpc::BatchSetFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<rpc::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<rpc::BatchDeleteFederatedBundleResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mode = match Mode::try_from(request.mode) {
            Ok(Mode::Restrict) => DeleteMode::Restrict,
            Ok(Mode::Delete) => DeleteMode::Delete,
            Ok(Mode::Dissociate) => DeleteMode::Dissociate,
            Err(_) => {
                return Err(failed(
                    Kind::InvalidArgument,
                    "failed to parse deletion mode",
                    format!("unhandled delete mode \"{}\"", request.mode),
                )
                .into());
            }
        };
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for trust_domain in request.trust_domains {
            let outcome = self.delete(&trust_domain, mode).await;
            caller.item(outcome.as_ref().copied(), || {
                Fields::new().with("trust_domain_id", &trust_domain)
            });
            let status = Some(outcome.map_or_else(|refused| item(&refused), |()| item_ok()));
            results.push(batch_delete_federated_bundle_response::Result {
                status,
                trust_domain,
            });
        }
        Ok(Response::new(rpc::BatchDeleteFederatedBundleResponse {
            results,
        }))
    }
}

impl BundleService {
    /// The name of a trust domain other than our own.
    fn foreign(&self, name: &str, not_own: &str) -> Result<TrustDomain, OpError> {
        let name =
            TrustDomain::parse(name).map_err(malformed("trust domain argument is not valid"))?;
        if name == self.trust_domain {
            return Err(refused(Kind::InvalidArgument, not_own));
        }
        Ok(name)
    }

    async fn append(&self, request: &rpc::AppendBundleRequest) -> Result<Arc<Bundle>, OpError> {
        if request.jwt_authorities.is_empty() && request.x509_authorities.is_empty() {
            return Err(refused(Kind::InvalidArgument, "no authorities to append"));
        }
        let mut more = Bundle::new(self.trust_domain.clone());
        more.jwt_authorities = jwt_authorities_from_wire(&request.jwt_authorities)
            .map_err(malformed("failed to convert JWT authority"))?;
        more.x509_authorities = x509_authorities_from_wire(&request.x509_authorities)
            .map_err(malformed("failed to convert X.509 authority"))?;
        self.datastore
            .append_bundle(more)
            .await
            .map_err(|error| write_failed("failed to append bundle", &error))
    }

    async fn publish(&self, authority: types::JwtKey) -> Result<Arc<Bundle>, OpError> {
        let authorities = jwt_authorities_from_wire(std::slice::from_ref(&authority))
            .map_err(malformed("invalid JWT authority"))?;
        if let Some(own) = self.registry.bundle(&self.trust_domain) {
            publishable(&own, &authorities)?;
        }
        let mut more = Bundle::new(self.trust_domain.clone());
        more.jwt_authorities = authorities;
        self.datastore
            .append_bundle(more)
            .await
            .map_err(|error| write_failed("failed to publish JWT key", &error))
    }

    async fn write(
        &self,
        caller: &Caller,
        bundle: &types::Bundle,
        how: Write<'_>,
        mask: Option<&BundleMask>,
    ) -> (types::Status, Option<types::Bundle>) {
        let outcome = self.try_write(bundle, how).await;
        caller.item(outcome.as_ref().map(|_| ()), || {
            Fields::new()
                .with("trust_domain_id", &bundle.trust_domain)
                .with("refresh_hint", bundle.refresh_hint)
                .with("sequence_number", bundle.sequence_number)
        });
        match outcome {
            Ok(written) => (item_ok(), Some(bundle_to_wire(&written, mask))),
            Err(refused) => (item(&refused), None),
        }
    }

    async fn try_write(
        &self,
        bundle: &types::Bundle,
        how: Write<'_>,
    ) -> Result<Arc<Bundle>, OpError> {
        let (verb, what) = match how {
            Write::Create => ("creating", "unable to create bundle"),
            Write::Update(_) => ("updating", "failed to update bundle"),
            Write::Set => ("setting", "failed to set bundle"),
        };
        let not_own =
            format!("{verb} a federated bundle for the server's own trust domain is not allowed");
        self.foreign(&bundle.trust_domain, &not_own)?;
        let bundle =
            bundle_from_caller(Some(bundle)).map_err(malformed("failed to convert bundle"))?;
        distinct(&bundle.jwt_authorities)?;
        let outcome = match how {
            Write::Create => self.datastore.create_bundle(bundle).await,
            Write::Update(mask) => self.datastore.update_bundle(bundle, written(mask)).await,
            Write::Set => self
                .datastore
                .set_bundle(bundle)
                .await
                .map_err(BundleError::Store),
        };
        outcome.map_err(|error| refusal(error, what))
    }

    async fn delete(&self, trust_domain: &str, mode: DeleteMode) -> Result<(), OpError> {
        let name = self.foreign(
            trust_domain,
            "removing the bundle for the server trust domain is not allowed",
        )?;
        let outcome = self.datastore.delete_bundle(&name, mode).await;
        outcome.map_err(|error| refusal(error, "failed to delete federated bundle"))
    }
}

fn refusal(error: BundleError, what: &str) -> OpError {
    match error {
        BundleError::Exists => refused(Kind::AlreadyExists, "bundle already exists"),
        BundleError::NotFound => {
            refused(Kind::NotFound, "bundle not found").with_code(Code::BundleNotFound)
        }
        BundleError::Referenced(_) => {
            failed(Kind::FailedPrecondition, what, error).with_code(Code::BundleInUse)
        }
        other => write_failed(what, &other),
    }
}

fn written(mask: Option<&BundleMask>) -> Written {
    match mask {
        None => Written::ALL,
        Some(mask) => Written {
            x509_authorities: mask.x509_authorities,
            jwt_authorities: mask.jwt_authorities,
            wit_authorities: mask.wit_authorities,
            refresh_hint: mask.refresh_hint,
            sequence_number: mask.sequence_number,
        },
    }
}

/// Whether downstream keys may join the bundle: they leave it again, and there is room.
fn publishable(own: &Bundle, authorities: &[JwtAuthority]) -> Result<(), OpError> {
    if authorities.iter().any(|key| key.expires_at.is_none()) {
        return Err(refused(
            Kind::InvalidArgument,
            "invalid JWT authority: it never expires; set expires_at",
        ));
    }
    let known = |key: &JwtAuthority| {
        own.jwt_authorities
            .iter()
            .any(|own| own.key_id == key.key_id)
    };
    if own.jwt_authorities.len() >= MAX_JWT_AUTHORITIES && !authorities.iter().all(known) {
        return Err(refused(
            Kind::ResourceExhausted,
            format!(
                "the bundle has {MAX_JWT_AUTHORITIES} JWT authorities already; wait until some expire"
            ),
        ));
    }
    Ok(())
}

/// A bundle document with two keys of one ID is refused by its readers.
fn distinct(authorities: &[JwtAuthority]) -> Result<(), OpError> {
    let mut seen = HashSet::new();
    match authorities
        .iter()
        .find(|key| !seen.insert(key.key_id.as_str()))
    {
        None => Ok(()),
        Some(twice) => Err(refused(
            Kind::InvalidArgument,
            format!(
                "failed to convert bundle: two JWT authorities have the key ID \"{}\"",
                twice.key_id
            ),
        )),
    }
}
