//! The SVID service: documents for administrators to mint, for agents to obtain by entry, and CAs for servers below.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::capped::Capped;
use proto::convert::{spiffe_id_from_wire, spiffe_id_to_wire};
use proto::message_body;
use proto::spire::api::server::svid::v1::svid_server::{Svid as SvidApi, SvidServer};
use proto::spire::api::server::svid::v1::{
    self as rpc, batch_new_witsvid_response, batch_new_x509svid_response,
};
use proto::spire::api::types;
use spiffe::clock::unix_seconds;
use tonic::body::Body;
use tonic::codegen::{Service as _, StdError};
use tonic::{Request, Response, Status};

use super::wire;
use crate::audit::Fields;
use crate::ca::{IssuedJwt, IssuedX509};
use crate::caller::Caller;
use crate::error::{Kind, OpError, malformed, refused};
use crate::ops::svids::{MAX_BATCH, Svids, X509Request, check_batch};
use crate::ratelimit::RateLimits;
use crate::status::{item, item_ok};

#[cfg(test)]
mod tests;

#[derive(Debug)]
pub(crate) struct SvidService {
    pub(crate) svids: Svids,
    pub(crate) limits: Arc<RateLimits>,
}

const BATCH_NEW_X509_SVID: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";
const NEW_JWT_SVID: &str = "/spire.api.server.svid.v1.SVID/NewJWTSVID";

/// More are not even decoded.
const _: () = assert!(proto::capped::MAX_BATCH == MAX_BATCH);

const WIT_DISABLED: &str = "WIT functionality is disabled";

#[tonic::async_trait]
impl SvidApi for SvidService {
    async fn mint_x509svid(
        &self,
        request: Request<rpc::MintX509svidRequest>,
    ) -> Result<Response<rpc::MintX509svidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let rpc::MintX509svidRequest { csr, ttl } = request.into_inner();
        let issued = self.svids.mint_x509(&caller, &csr, ttl).await?;
        Ok(Response::new(rpc::MintX509svidResponse {
            svid: Some(wire::x509_svid(&issued)),
        }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<rpc::MintJwtsvidRequest>,
    ) -> Result<Response<rpc::MintJwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.svids.check_jwt_enabled()?;
        let rpc::MintJwtsvidRequest { id, audience, ttl } = request.into_inner();
        caller.describe(|| {
            Fields::new()
                .with("spiffe_id", wire::id_text(id.as_ref()))
                .with("audience", audience.join(","))
                .with("ttl", ttl)
        });
        let id = spiffe_id_from_wire(id.as_ref()).map_err(malformed("invalid SPIFFE ID"))?;
        let issued = self.svids.mint_jwt(&caller, id, &audience, ttl).await?;
        Ok(Response::new(rpc::MintJwtsvidResponse {
            svid: Some(jwt_svid(&issued)),
        }))
    }

    async fn mint_witsvid(
        &self,
        _: Request<rpc::MintWitsvidRequest>,
    ) -> Result<Response<rpc::MintWitsvidResponse>, Status> {
        Err(refused(Kind::Unimplemented, WIT_DISABLED).into())
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<rpc::BatchNewX509svidRequest>,
    ) -> Result<Response<rpc::BatchNewX509svidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing parameters").into());
        }
        self.limits
            .x509_signing
            .take(&caller.connection, params.len(), "certificate signing")
            .await?;
        check_batch(params.len())?;
        caller.still_entitled()?;
        let requests: Vec<_> = params
            .into_iter()
            .map(|rpc::NewX509svidParams { entry_id, csr }| X509Request { entry_id, csr })
            .collect();
        let outcomes = self.svids.new_x509(&caller, &requests).await?;
        Ok(Response::new(rpc::BatchNewX509svidResponse {
            results: outcomes.into_iter().map(x509_result).collect(),
        }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<rpc::NewJwtsvidRequest>,
    ) -> Result<Response<rpc::NewJwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.svids.check_jwt_enabled()?;
        // Before the call waits for its turn, so that what waits is small.
        self.svids.check_audience(&request.get_ref().audience)?;
        self.limits
            .jwt_signing
            .take(&caller.connection, 1, "JWT signing request")
            .await?;
        caller.still_entitled()?;
        let rpc::NewJwtsvidRequest { entry_id, audience } = request.into_inner();
        caller.describe(|| {
            Fields::new()
                .with("entry_id", &entry_id)
                .with("audience", audience.join(","))
        });
        let issued = self.svids.new_jwt(&caller, &entry_id, &audience).await?;
        Ok(Response::new(rpc::NewJwtsvidResponse {
            svid: Some(jwt_svid(&issued)),
        }))
    }

    async fn batch_new_witsvid(
        &self,
        request: Request<rpc::BatchNewWitsvidRequest>,
    ) -> Result<Response<rpc::BatchNewWitsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing parameters").into());
        }
        self.limits
            .wit_signing
            .take(&caller.connection, params.len(), "certificate signing")
            .await?;
        check_batch(params.len())?;
        let disabled = item(&refused(Kind::Unimplemented, WIT_DISABLED));
        let result = batch_new_witsvid_response::Result {
            status: Some(disabled),
            svid: None,
        };
        Ok(Response::new(rpc::BatchNewWitsvidResponse {
            results: vec![result; params.len()],
        }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<rpc::NewDownstreamX509caRequest>,
    ) -> Result<Response<rpc::NewDownstreamX509caResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .x509_signing
            .take(&caller.connection, 1, "downstream CA signing")
            .await?;
        caller.still_entitled()?;
        let rpc::NewDownstreamX509caRequest { csr, preferred_ttl } = request.into_inner();
        let preferred_ttl = u64::try_from(preferred_ttl)
            .ok()
            .filter(|ttl| *ttl > 0)
            .map(Duration::from_secs);
        let issued = self
            .svids
            .new_downstream_ca(&caller, &csr, preferred_ttl)
            .await?;
        Ok(Response::new(rpc::NewDownstreamX509caResponse {
            ca_cert_chain: wire::certificates(&issued.chain),
            x509_authorities: issued.roots,
        }))
    }
}

impl SvidService {
    /// Answers a call. Those with lists that agents fill are decoded no further than they may be answered.
    pub(super) async fn answer<B>(
        self: Arc<Self>,
        method: &str,
        request: http::Request<B>,
        largest: usize,
    ) -> Result<http::Response<Body>, Infallible>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        Ok(match method {
            BATCH_NEW_X509_SVID => {
                let call = |request: Request<Capped<rpc::BatchNewX509svidRequest>>| async move {
                    let answer = self.batch_new_x509svid(request.map(|capped| capped.0));
                    Ok(message_body::single(&answer.await?.into_inner()))
                };
                message_body::answer(request, largest, call).await
            }
            NEW_JWT_SVID => {
                let call = |request: Request<Capped<rpc::NewJwtsvidRequest>>| async move {
                    let answer = self.new_jwtsvid(request.map(|capped| capped.0));
                    Ok(message_body::single(&answer.await?.into_inner()))
                };
                message_body::answer(request, largest, call).await
            }
            _ => return SvidServer::from_arc(self).call(request).await,
        })
    }
}

fn x509_result(outcome: Result<IssuedX509, OpError>) -> batch_new_x509svid_response::Result {
    let (status, svid) = match outcome {
        Ok(issued) => (item_ok(), Some(wire::x509_svid(&issued))),
        Err(refused) => (item(&refused), None),
    };
    batch_new_x509svid_response::Result {
        status: Some(status),
        svid,
    }
}

fn jwt_svid(issued: &IssuedJwt) -> types::Jwtsvid {
    types::Jwtsvid {
        token: issued.token.expose().clone(),
        id: Some(spiffe_id_to_wire(&issued.id)),
        expires_at: unix_seconds(issued.expires_at),
        issued_at: unix_seconds(issued.issued_at),
        hint: String::new(),
    }
}
