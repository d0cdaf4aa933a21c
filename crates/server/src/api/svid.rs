//! The SVID service: documents for administrators to mint, for agents to obtain by entry, and CAs for servers below.
//!
//! This file reads requests and finds the entry; what is issued is decided by the grant and checked by the gate in `ca`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use proto::convert::{spiffe_id_to_wire, workload_id_from_wire};
use proto::spire::api::server::svid::v1::svid_server::Svid as SvidApi;
use proto::spire::api::server::svid::v1::{
    self as rpc, batch_new_witsvid_response, batch_new_x509svid_response,
};
use proto::spire::api::types;
use spiffe::clock::unix_seconds;
use spiffe::csr::{Csr, CsrError, VerifiedCsr};
use spiffe::entry::{check_wildcard_overlap, validate_dns_name};
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;
use tonic::{Request, Response, Status};

use super::wire;
use crate::audit::Fields;
use crate::ca::{Ca, Grant};
use crate::caller::Caller;
use crate::error::{Kind, OpError, failed, malformed, refused};
use crate::ops::{NOT_AUTHORIZED, digest, not_issued};
use crate::ratelimit::RateLimits;
use crate::registry::{Authorized, Registry};
use crate::status::{item, item_ok};

#[cfg(test)]
mod tests;

#[derive(Debug)]
pub(crate) struct SvidService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ca: Arc<Ca>,
    pub(crate) limits: Arc<RateLimits>,
}

/// Items of a batch between two moments at which other tasks of the thread may run.
const BATCH_STRIDE: usize = 16;
const WIT_DISABLED: &str = "WIT functionality is disabled";

#[tonic::async_trait]
impl SvidApi for SvidService {
    async fn mint_x509svid(
        &self,
        request: Request<rpc::MintX509svidRequest>,
    ) -> Result<Response<rpc::MintX509svidResponse>, Status> {
        let caller = Caller::of(&request)?;
        let svid = self.mint_x509(&caller, request.into_inner()).await?;
        Ok(Response::new(rpc::MintX509svidResponse {
            svid: Some(svid),
        }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<rpc::MintJwtsvidRequest>,
    ) -> Result<Response<rpc::MintJwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.jwt_enabled()?;
        let request = request.into_inner();
        caller.describe(|| {
            Fields::new()
                .with("spiffe_id", wire::id_text(request.id.as_ref()))
                .with("audience", request.audience.join(","))
                .with("ttl", request.ttl)
        });
        let id = workload_id_from_wire(&self.trust_domain, request.id.as_ref())
            .map_err(malformed("invalid SPIFFE ID"))?;
        audience(&request.audience)?;
        let grant = Grant::minted(caller.admin()?, id, request.ttl)
            .with_field("audience", request.audience.join(","));
        let svid = self.jwt(&caller, &grant, &request.audience).await?;
        Ok(Response::new(rpc::MintJwtsvidResponse { svid: Some(svid) }))
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
        caller.still_entitled()?;
        let agent = caller.agent()?;
        let items = params.iter().enumerate();
        let items =
            items.map(|(number, param)| self.batch_item(&caller, agent.id(), number, param));
        // A key in memory signs one after the other; one that has to be asked gets several requests at a time.
        let at_once = self.ca.x509_signatures_at_once();
        let mut results = Vec::with_capacity(params.len());
        if at_once == 1 {
            for item in items {
                results.push(item.await?);
            }
        } else {
            let items: Vec<_> = items.collect();
            let mut signed = stream::iter(items).buffered(at_once);
            while let Some(result) = signed.next().await {
                results.push(result?);
            }
        }
        Ok(Response::new(rpc::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<rpc::NewJwtsvidRequest>,
    ) -> Result<Response<rpc::NewJwtsvidResponse>, Status> {
        let caller = Caller::of(&request)?;
        self.limits
            .jwt_signing
            .take(&caller.connection, 1, "JWT signing request")
            .await?;
        caller.still_entitled()?;
        self.jwt_enabled()?;
        let request = request.into_inner();
        caller.describe(|| {
            Fields::new()
                .with("entry_id", &request.entry_id)
                .with("audience", request.audience.join(","))
        });
        let entry = self
            .registry
            .authorized_entry(caller.agent()?.id(), &request.entry_id)
            .ok_or_else(|| refused(Kind::NotFound, NOT_AUTHORIZED))?;
        audience(&request.audience)?;
        let mut grant = Grant::entry(entry);
        if caller.record.is_enabled() {
            grant = grant.with_field("audience", request.audience.join(","));
        }
        let svid = self.jwt(&caller, &grant, &request.audience).await?;
        Ok(Response::new(rpc::NewJwtsvidResponse { svid: Some(svid) }))
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
        let downstream = caller.downstream()?;
        let request = request.into_inner();
        caller.describe(|| {
            Fields::new()
                .with("agent_id", &downstream.entry().spiffe_id)
                .with("csr", digest(&request.csr))
        });
        let csr = verified(&request.csr, "invalid CSR signature")?;
        let grant = Grant::downstream_ca(downstream, &self.trust_domain)
            .ok_or_else(|| refused(Kind::Internal, "caller is not a downstream workload"))?
            .with_field("csr", digest(&request.csr));
        let ttl = u64::try_from(request.preferred_ttl)
            .ok()
            .filter(|ttl| *ttl > 0)
            .map(Duration::from_secs);
        let issued = self
            .ca
            .issue_downstream_ca(&grant, csr.public_key(), ttl, &caller.record)
            .await
            .map_err(not_issued("failed to sign downstream X.509 CA"))?;
        let bundle = self
            .registry
            .bundle(&self.trust_domain)
            .ok_or_else(|| refused(Kind::NotFound, "bundle not found"))?;
        let roots = bundle
            .x509_authorities
            .iter()
            .map(|authority| authority.certificate.der().to_vec())
            .collect();
        Ok(Response::new(rpc::NewDownstreamX509caResponse {
            ca_cert_chain: wire::x509_svid(&issued).cert_chain,
            x509_authorities: roots,
        }))
    }
}

impl SvidService {
    fn jwt_enabled(&self) -> Result<(), OpError> {
        if self.ca.issues_jwt() {
            return Ok(());
        }
        Err(refused(
            Kind::Unimplemented,
            "JWT functionality is disabled",
        ))
    }

    async fn mint_x509(
        &self,
        caller: &Caller,
        request: rpc::MintX509svidRequest,
    ) -> Result<types::X509svid, OpError> {
        if request.csr.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing CSR"));
        }
        caller.describe(|| {
            Fields::new()
                .with("csr", digest(&request.csr))
                .with("ttl", request.ttl)
        });
        let read = verified(&request.csr, "failed to verify CSR signature")
            .and_then(|csr| Ok((minted_identity(&self.trust_domain, &csr)?, csr)));
        let (id, csr) = read?;
        let grant = Grant::minted(caller.admin()?, id, request.ttl)
            .with_names(csr.dns_names().to_vec(), csr.subject())
            .with_field("csr", digest(&request.csr));
        let issued = self
            .ca
            .issue_x509(&grant, csr.public_key(), &caller.record)
            .await
            .map_err(not_issued("failed to sign X509-SVID"))?;
        Ok(wire::x509_svid(&issued))
    }

    async fn batch_item(
        &self,
        caller: &Caller,
        agent: &SpiffeId,
        number: usize,
        param: &rpc::NewX509svidParams,
    ) -> Result<batch_new_x509svid_response::Result, OpError> {
        if number % BATCH_STRIDE == BATCH_STRIDE - 1 {
            tokio::task::yield_now().await;
            caller.still_entitled()?;
        }
        Ok(match self.new_x509(caller, agent, param).await {
            Ok(svid) => batch_new_x509svid_response::Result {
                status: Some(item_ok()),
                svid: Some(svid),
            },
            Err(refused) => batch_new_x509svid_response::Result {
                status: Some(item(&refused)),
                svid: None,
            },
        })
    }

    /// One item of a batch: the entry that this agent may have, and the key that the CSR proves to be held.
    async fn new_x509(
        &self,
        caller: &Caller,
        agent: &SpiffeId,
        param: &rpc::NewX509svidParams,
    ) -> Result<types::X509svid, OpError> {
        let (entry, csr) = match self.read_param(agent, param) {
            Ok(read) => read,
            Err(refused) => {
                caller.item(Err(&refused), || {
                    Fields::new()
                        .with("csr", digest(&param.csr))
                        .with("entry_id", &param.entry_id)
                });
                return Err(refused);
            }
        };
        let mut grant = Grant::entry(entry);
        if caller.record.is_enabled() {
            grant = grant.with_field("csr", digest(&param.csr));
        }
        let issued = self
            .ca
            .issue_x509(&grant, csr.public_key(), &caller.record)
            .await
            .map_err(not_issued("failed to sign X509-SVID"))?;
        Ok(wire::x509_svid(&issued))
    }

    fn read_param(
        &self,
        agent: &SpiffeId,
        param: &rpc::NewX509svidParams,
    ) -> Result<(Authorized, VerifiedCsr), OpError> {
        if param.entry_id.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing entry ID"));
        }
        if param.csr.is_empty() {
            return Err(refused(Kind::InvalidArgument, "missing CSR"));
        }
        let entry = self
            .registry
            .authorized_entry(agent, &param.entry_id)
            .ok_or_else(|| refused(Kind::NotFound, NOT_AUTHORIZED))?;
        Ok((entry, verified(&param.csr, "invalid CSR signature")?))
    }

    async fn jwt(
        &self,
        caller: &Caller,
        grant: &Grant,
        audience: &[String],
    ) -> Result<types::Jwtsvid, OpError> {
        let issued = self
            .ca
            .issue_jwt(grant, audience, &caller.record)
            .await
            .map_err(not_issued("failed to sign JWT-SVID"))?;
        Ok(types::Jwtsvid {
            token: issued.token.expose().clone(),
            id: Some(spiffe_id_to_wire(&issued.id)),
            expires_at: unix_seconds(issued.expires_at),
            issued_at: unix_seconds(issued.issued_at),
            hint: String::new(),
        })
    }
}

/// The rules that SPIRE has for a minted certificate's request: one SPIFFE ID of a workload of ours, valid DNS names.
fn minted_identity(own: &TrustDomain, csr: &VerifiedCsr) -> Result<SpiffeId, OpError> {
    let uri = match csr.uris() {
        [] => return Err(refused(Kind::InvalidArgument, "CSR URI SAN is required")),
        [uri] => uri,
        _ => {
            return Err(refused(
                Kind::InvalidArgument,
                "only one URI SAN is expected",
            ));
        }
    };
    let id = SpiffeId::parse(uri).map_err(malformed("CSR URI SAN is invalid"))?;
    wire::workload(own, &id).map_err(malformed("CSR URI SAN is invalid"))?;
    for name in csr.dns_names() {
        validate_dns_name(name)
            .map_err(|reason| format!("{name:?}: {reason}"))
            .map_err(malformed("CSR DNS name is invalid"))?;
    }
    check_wildcard_overlap(csr.dns_names()).map_err(malformed(
        "CSR DNS name contains a wildcard that covers another non-wildcard name",
    ))?;
    Ok(id)
}

/// A request whose signature was checked.
fn verified(csr: &[u8], bad_signature: &'static str) -> Result<VerifiedCsr, OpError> {
    Csr::parse_and_verify(csr).map_err(|error| match error {
        CsrError::Signature => refused(Kind::InvalidArgument, bad_signature),
        other => failed(Kind::InvalidArgument, "malformed CSR", other),
    })
}

fn audience(audience: &[String]) -> Result<(), OpError> {
    if audience.is_empty() {
        return Err(refused(
            Kind::InvalidArgument,
            "at least one audience is required",
        ));
    }
    Ok(())
}
