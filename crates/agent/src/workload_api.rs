//! The SPIFFE Workload API: five calls that are answered, two that are not offered yet.
//!
//! Each request shows the security header and passes the gate; then comes what that caller may have. Answers are encoded
//! once per set of selectors and shared, so the service works on encoded messages.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{Ready, ready};
use futures_util::stream::{Once, once};
use http::{HeaderMap, Request, Response};
use plugin::blocking::WorkLimits;
use proto::capped::Capped;
use proto::message_body::answer;
use proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use spiffe::clock::Clock;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::{Code, Status};

mod jwt;
mod messages;
mod streams;
mod validate;

use messages::Encoded;

use crate::attestor::Workload;
use crate::config::WorkloadApiConfig;
use crate::endpoints::router::{Answer, Service};
use crate::gate::Gate;
use crate::metrics::WORKLOAD_API_CALL;
use crate::sync::{JWT_WAITING, JwtRequest};

/// Every path of the service.
const PREFIX: &str = "/SpiffeWorkloadAPI/";
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// Requests hold an audience list or a token, nothing large; each is held until it is complete, before anybody knows whose.
const MAX_REQUEST: usize = 128 << 10;

/// What the service works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) gate: Arc<Gate>,
    pub(crate) jwt: watch::Receiver<Option<mpsc::Sender<JwtRequest>>>,
    /// How many tokens may be asked of the server at the same time, of which one user has a part.
    pub(crate) jwt_turns: WorkLimits,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: WorkloadApiConfig,
}

/// One user's processes may wait for so many tokens: more of them wait for each other, and never for a place that another
/// user's need.
const JWT_TURNS_OF_USER: usize = JWT_WAITING / 4;

/// The turns of all users.
pub(crate) fn jwt_turns() -> WorkLimits {
    WorkLimits::new(JWT_WAITING, JWT_TURNS_OF_USER)
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadApi(Arc<Context>);

impl WorkloadApi {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self(context)
    }
}

impl Service for WorkloadApi {
    fn prefix(&self) -> &str {
        PREFIX
    }

    fn call(&self, request: Request<Body>) -> Answer {
        let this = self.clone();
        Box::pin(async move {
            if let Err(status) = check_header(request.headers()) {
                return status.into_http();
            }
            let path = request.uri().path();
            let method = path.strip_prefix(PREFIX).unwrap_or_default().to_owned();
            let telemetry = &this.0.gate.telemetry;
            let timer = telemetry.start(&WORKLOAD_API_CALL, [known(&method)]);
            let answer = match request.extensions().get::<Arc<Workload>>() {
                Some(workload) => {
                    let workload = Arc::clone(workload);
                    this.dispatch(&method, workload, request).await
                }
                None => Status::internal("the caller is not identified").into_http(),
            };
            timer.end(status_of(&answer));
            answer
        })
    }
}

impl WorkloadApi {
    async fn dispatch(
        &self,
        method: &str,
        workload: Arc<Workload>,
        request: Request<Body>,
    ) -> Response<Body> {
        let context = Arc::clone(&self.0);
        match method {
            "FetchX509SVID" => {
                let call =
                    |_: tonic::Request<X509svidRequest>| streams::x509_svids(context, workload);
                answer(request, MAX_REQUEST, call).await
            }
            "FetchX509Bundles" => {
                let call = |_: tonic::Request<X509BundlesRequest>| {
                    streams::bundles(context, workload, streams::Kind::X509)
                };
                answer(request, MAX_REQUEST, call).await
            }
            "FetchJWTBundles" => {
                let call = |_: tonic::Request<JwtBundlesRequest>| {
                    streams::bundles(context, workload, streams::Kind::Jwt)
                };
                answer(request, MAX_REQUEST, call).await
            }
            "FetchJWTSVID" => {
                let call = |request: tonic::Request<Capped<JwtsvidRequest>>| {
                    single(jwt::fetch(context, workload, request.into_inner().0))
                };
                answer(request, MAX_REQUEST, call).await
            }
            "ValidateJWTSVID" => {
                let call = |request: tonic::Request<ValidateJwtsvidRequest>| {
                    single(validate::validate(context, workload, request.into_inner()))
                };
                answer(request, MAX_REQUEST, call).await
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

/// An answer of one message.
async fn single(
    message: impl Future<Output = Result<Encoded, Status>>,
) -> Result<Once<Ready<Result<Bytes, Status>>>, Status> {
    Ok(once(ready(Ok(message.await?.frame()))))
}

/// The method's name as a label: callers may ask for anything.
fn known(method: &str) -> &'static str {
    const METHODS: [&str; 7] = [
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
        "FetchWITSVID",
        "FetchWITBundles",
    ];
    let known = METHODS.into_iter().find(|known| *known == method);
    known.unwrap_or("unknown")
}

/// How an answer begins, as the name of a status code. What comes after is in its stream.
fn status_of(answer: &Response<Body>) -> &'static str {
    let status = Status::from_header_map(answer.headers());
    proto::code_name(status.map_or(Code::Ok, |status| status.code()))
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

#[cfg(test)]
mod tests;
