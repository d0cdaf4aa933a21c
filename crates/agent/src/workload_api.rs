//! The SPIFFE Workload API: five calls that are answered, two that are not offered yet.
//!
//! Each request passes the same gate: the security header, then who is calling, then what that caller may have. Answers
//! are encoded once per set of selectors and shared, so the service works on encoded messages.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use spiffe::clock::Clock;
use spiffe::random::Random;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::server::Grpc;
use tower::service_fn;

mod codec;
mod jwt;
mod messages;
mod refusal;
mod streams;
mod validate;

use codec::PreEncoded;
pub(crate) use refusal::LogLimits;

use crate::attestor::{AttestError, Attestation, Attestors, Incomplete, Workload};
use crate::cache::Cache;
use crate::endpoints::Serve;
use crate::endpoints::standard::Standard;
use crate::rate_limit::{Method, RateLimiter};
use crate::sync::{JwtRequest, LinkStatus};

/// Every path of the service.
const PREFIX: &str = "/SpiffeWorkloadAPI/";
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// How long a call waits for an agent that has just started.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// Requests hold an audience list or a token, nothing large; each is held until it is complete, before anybody knows whose.
const MAX_REQUEST: usize = 64 << 10;

/// What the service works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) cache: Arc<Cache>,
    pub(crate) attestors: Attestors,
    pub(crate) limiter: RateLimiter,
    pub(crate) jwt: watch::Receiver<Option<mpsc::Sender<JwtRequest>>>,
    pub(crate) status: watch::Receiver<LinkStatus>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) standard: Standard,
    pub(crate) options: Options,
    /// When the entries were last searched for one that nearly matches: a caller may not make that the agent's work.
    pub(crate) searched: std::sync::Mutex<Option<tokio::time::Instant>>,
    pub(crate) log_limits: LogLimits,
}

/// What of the configuration the service needs.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) enabled: bool,
    pub(crate) allow_unauthenticated_verifiers: bool,
    pub(crate) allowed_foreign_jwt_claims: Vec<String>,
    pub(crate) log_selectors: Vec<String>,
    /// The process that is held to no rate: this one, for its health probes.
    pub(crate) exempt: u32,
}

/// The public socket's services.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadApi(Arc<Context>);

/// A caller that passed the gate.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) workload: Arc<Workload>,
    pub(crate) selectors: SelectorSet,
    /// What could not be found out: then nothing that the caller lacks is a reason to refuse it.
    pub(crate) incomplete: Vec<Incomplete>,
}

impl WorkloadApi {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

impl Serve for WorkloadApi {
    async fn serve(
        &self,
        workload: Arc<Workload>,
        request: Request<Incoming>,
    ) -> Response<tonic::body::Body> {
        match request.uri().path().strip_prefix(PREFIX) {
            Some(method) if self.0.options.enabled => {
                let method = method.to_owned();
                if let Err(status) = check_header(request.headers()) {
                    return status.into_http();
                }
                self.dispatch(&method, workload, request).await
            }
            _ => self.0.standard.answer(request).await,
        }
    }
}

impl WorkloadApi {
    async fn dispatch(
        &self,
        method: &str,
        workload: Arc<Workload>,
        request: Request<Incoming>,
    ) -> Response<tonic::body::Body> {
        let context = &self.0;
        match method {
            "FetchX509SVID" => {
                let call = service_fn(|_: tonic::Request<X509svidRequest>| {
                    streams::x509_svids(Arc::clone(context), Arc::clone(&workload))
                });
                grpc().server_streaming(call, request).await
            }
            "FetchX509Bundles" => {
                let call = service_fn(|_: tonic::Request<X509BundlesRequest>| {
                    streams::bundles(
                        Arc::clone(context),
                        Arc::clone(&workload),
                        streams::Kind::X509,
                    )
                });
                grpc().server_streaming(call, request).await
            }
            "FetchJWTBundles" => {
                let call = service_fn(|_: tonic::Request<JwtBundlesRequest>| {
                    streams::bundles(
                        Arc::clone(context),
                        Arc::clone(&workload),
                        streams::Kind::Jwt,
                    )
                });
                grpc().server_streaming(call, request).await
            }
            "FetchJWTSVID" => {
                let call = service_fn(|request: tonic::Request<JwtsvidRequest>| {
                    jwt::fetch(
                        Arc::clone(context),
                        Arc::clone(&workload),
                        request.into_inner(),
                    )
                });
                grpc().unary(call, request).await
            }
            "ValidateJWTSVID" => {
                let call = service_fn(|request: tonic::Request<ValidateJwtsvidRequest>| {
                    validate::validate(
                        Arc::clone(context),
                        Arc::clone(&workload),
                        request.into_inner(),
                    )
                });
                grpc().unary(call, request).await
            }
            "FetchWITSVID" => {
                Status::unimplemented("fetching WIT-SVIDs is not implemented").into_http()
            }
            "FetchWITBundles" => {
                Status::unimplemented("fetching WIT bundles is not implemented").into_http()
            }
            _ => Status::unimplemented(format!(
                "unknown method {method} for service SpiffeWorkloadAPI"
            ))
            .into_http(),
        }
    }
}

fn grpc<M: prost::Message + Default + Send + 'static>() -> Grpc<PreEncoded<M>> {
    Grpc::new(PreEncoded::default()).apply_max_message_size_config(Some(MAX_REQUEST), None)
}

/// Exactly one value, exactly `true`: that keeps requests out which a confused browser or proxy was talked into.
fn check_header(headers: &HeaderMap) -> Result<(), Status> {
    let mut values = headers.get_all(SECURITY_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "security header missing from request",
        )),
    }
}

impl Context {
    /// The gate: waits for a starting agent, attests the caller, holds it to its rate.
    async fn admit(
        &self,
        workload: Arc<Workload>,
        method: Option<Method>,
    ) -> Result<Caller, Status> {
        self.until_ready().await?;
        let attestation = self.attest(&workload).await?;
        if let Some(method) = method
            && !self.limiter.allows(method, &attestation.selectors)
            && u32::try_from(workload.peer().pid) != Ok(self.options.exempt)
        {
            return Err(Status::unavailable("rate limit exceeded; try again later"));
        }
        Ok(Caller {
            workload,
            selectors: attestation.selectors.clone(),
            incomplete: attestation.incomplete.clone(),
        })
    }

    async fn attest(&self, workload: &Workload) -> Result<Arc<Attestation>, Status> {
        let attestation = self.attestors.attest(workload).await;
        match &attestation {
            Ok(attestation) => {
                for incomplete in &attestation.incomplete {
                    self.log_incomplete(workload.peer(), incomplete);
                }
            }
            Err(error) => self.log_refused(workload.peer(), *error),
        }
        attestation.map_err(|error| match error {
            AttestError::Gone => Status::unavailable("workload attestation failed"),
            AttestError::Denied => refusal::not_who_connected(),
        })
    }

    async fn until_ready(&self) -> Result<(), Status> {
        let mut ready = self.cache.ready();
        if *ready.borrow() {
            return Ok(());
        }
        match tokio::time::timeout(START_PATIENCE, ready.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::unavailable(
                "the agent is starting and has not heard from its server yet",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
