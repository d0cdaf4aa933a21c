//! The Bundle service: the trust domain's own bundle for everybody, the federated ones for administrators and agents.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
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
use spiffe::bundle::Bundle;
use spiffe::digest::sha256_hex;
use tonic::{Request, Response, Status};

use super::wire;
use crate::audit::Fields;
use crate::caller::Caller;
use crate::datastore::{BundleMask as Written, DeleteMode};
use crate::error::{Kind, OpError, failed, malformed, refused};
use crate::ops::Batch;
use crate::ops::bundles::{Bundles, Write};
use crate::ratelimit::RateLimits;
use crate::status::{item, item_ok};
use encoded::EncodedBundle;

mod encoded;
#[cfg(test)]
mod tests;

#[derive(Debug)]
pub(crate) struct BundleService {
    bundles: Bundles,
    limits: Arc<RateLimits>,
    encoded: EncodedBundle,
}

#[tonic::async_trait]
impl BundleApi for BundleService {
    async fn count_bundles(
        &self,
        _: Request<rpc::CountBundlesRequest>,
    ) -> Result<Response<rpc::CountBundlesResponse>, Status> {
        Ok(Response::new(rpc::CountBundlesResponse {
            count: wire::count(self.bundles.count()),
        }))
    }

    async fn get_bundle(
        &self,
        request: Request<rpc::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let found = self.own(&Caller::of(&request)?)?;
        let mask = request.get_ref().output_mask.as_ref();
        Ok(Response::new(bundle_to_wire(&found, mask)))
    }

    async fn append_bundle(
        &self,
        request: Request<rpc::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("trust_domain_id", &self.bundles.trust_domain));
        let mut more = Bundle::new(self.bundles.trust_domain.clone());
        more.jwt_authorities = jwt_authorities_from_wire(&request.jwt_authorities)
            .map_err(malformed("failed to convert JWT authority"))?;
        more.x509_authorities = x509_authorities_from_wire(&request.x509_authorities)
            .map_err(malformed("failed to convert X.509 authority"))?;
        let appended = self.bundles.append(more).await?;
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
        caller.describe(|| {
            Fields::new()
                .with("jwt_authority_key_id", &authority.key_id)
                .with("jwt_authority_expires_at", authority.expires_at)
                .with(
                    "jwt_authority_public_key_sha256",
                    sha256_hex(&authority.public_key),
                )
        });
        let keys = jwt_authorities_from_wire(std::slice::from_ref(&authority))
            .map_err(malformed("invalid JWT authority"))?;
        let key = keys
            .into_iter()
            .next()
            .ok_or_else(|| refused(Kind::InvalidArgument, "missing JWT authority"))?;
        let jwt_authorities = self
            .bundles
            .publish(key)
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
        let page = wire::page(request.page_size, &request.page_token);
        let listed = self.bundles.list_federated(&page)?;
        let mask = request.output_mask.as_ref();
        let bundles = listed.items.iter();
        Ok(Response::new(rpc::ListFederatedBundlesResponse {
            bundles: bundles.map(|bundle| bundle_to_wire(bundle, mask)).collect(),
            next_page_token: listed.next_token,
        }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<rpc::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.describe(|| Fields::new().with("trust_domain_id", &request.trust_domain));
        let found = self.bundles.get_federated(&request.trust_domain)?;
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
        let written = self.write(&caller, &request.bundle, Write::Create).await;
        let mask = request.output_mask.as_ref();
        let results = written.into_iter().map(|outcome| {
            let (status, bundle) = wire_outcome(outcome, mask);
            batch_create_federated_bundle_response::Result { status, bundle }
        });
        let results = results.collect();
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
        let written = self
            .write(
                &caller,
                &request.bundle,
                Write::Update(written(request.input_mask.as_ref())),
            )
            .await;
        let mask = request.output_mask.as_ref();
        let results = written.into_iter().map(|outcome| {
            let (status, bundle) = wire_outcome(outcome, mask);
            batch_update_federated_bundle_response::Result { status, bundle }
        });
        let results = results.collect();
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
        let written = self.write(&caller, &request.bundle, Write::Set).await;
        let mask = request.output_mask.as_ref();
        let results = written.into_iter().map(|outcome| {
            let (status, bundle) = wire_outcome(outcome, mask);
            batch_set_federated_bundle_response::Result { status, bundle }
        });
        let results = results.collect();
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
            let outcome = self.bundles.delete(&trust_domain, mode).await;
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
    pub(crate) fn new(bundles: Bundles, limits: Arc<RateLimits>) -> Self {
        Self {
            bundles,
            limits,
            encoded: EncodedBundle::default(),
        }
    }

    /// GetBundle's answer as it is sent. The boundary asks for this one.
    pub(crate) fn frames(
        &self,
        request: &Request<rpc::GetBundleRequest>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Status> {
        let found = self.own(&Caller::of(request)?)?;
        let mask = request.get_ref().output_mask.as_ref();
        let message = self.encoded.message(&found, mask);
        Ok(stream::iter([Ok(message)]))
    }

    /// The own bundle, for a caller that has not asked for it too often.
    fn own(&self, caller: &Caller) -> Result<Arc<Bundle>, OpError> {
        caller.describe(|| Fields::new().with("trust_domain_id", &self.bundles.trust_domain));
        self.limits
            .bundle
            .take_or_refuse(&caller.connection, "bundle request")?;
        self.bundles.own()
    }

    async fn write(
        &self,
        caller: &Caller,
        bundles: &[types::Bundle],
        how: Write,
    ) -> Vec<Result<Arc<Bundle>, OpError>> {
        let read = |bundle: &types::Bundle| {
            self.bundles.check_federated(&bundle.trust_domain, how)?;
            bundle_from_caller(Some(bundle)).map_err(malformed("failed to convert bundle"))
        };
        let details = |bundle: &types::Bundle| {
            Fields::new()
                .with("trust_domain_id", &bundle.trust_domain)
                .with("refresh_hint", bundle.refresh_hint)
                .with("sequence_number", bundle.sequence_number)
        };
        let batch = Batch::read(caller, bundles, read, details);
        self.bundles.write_all(caller, batch, how).await
    }
}

/// A written bundle, or why it was not written.
fn wire_outcome(
    outcome: Result<Arc<Bundle>, OpError>,
    mask: Option<&BundleMask>,
) -> (Option<types::Status>, Option<types::Bundle>) {
    match outcome {
        Ok(written) => (Some(item_ok()), Some(bundle_to_wire(&written, mask))),
        Err(refused) => (Some(item(&refused)), None),
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
