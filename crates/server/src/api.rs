//! The boundary of the gRPC services: every call of both endpoints passes here.
//!
//! Finds the method's row in the table, authorizes the caller, hands the call to its service, and records how it ended. A
//! method without a row is not served, and a call without an audit event cannot be answered, whatever a handler does.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use daemon::log_limit::LogLimit;
use daemon::telemetry::Telemetry;
use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use proto::message_body;
use proto::spire::api::server::agent::v1::agent_server::AgentServer;
use proto::spire::api::server::bundle::v1::bundle_server::BundleServer;
use proto::spire::api::server::debug::v1::debug_server::DebugServer;
use proto::spire::api::server::entry::v1::entry_server::EntryServer;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::audit::{Auditor, CallRecord, Unfinished};
use crate::authz::{Authorizer, Lifetime, Row, is_local_service, row};
use crate::caller::Connection;
use crate::error::log_account::LogAccount;
use crate::error::{Kind, refused};
use crate::metrics::RPC;
use crate::principal::Account;
use crate::watch::WatchService;
use boundary::AttestationCall;
pub(crate) use refused_attestations::RefusedAttestations;
use request_body::RequestBody;

mod account_body;
pub(crate) mod agent;
mod boundary;
pub(crate) mod bundle;
pub(crate) mod debug;
pub(crate) mod entry;
pub(crate) mod health;
pub(crate) mod localauthority;
pub(crate) mod logger;
mod refused_attestations;
mod request_body;
pub(crate) mod svid;
pub(crate) mod trustdomain;
mod wire;

/// The services, each ready to be cloned for a call.
pub(crate) struct Api {
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) auditor: Auditor,
    pub(crate) telemetry: Telemetry,
    pub(crate) refused_attestations: Arc<RefusedAttestations>,
    /// For the lines that callers cause, by account.
    pub(crate) log_limit: Arc<LogLimit<Option<Account>>>,
    pub(crate) agent: AgentServer<agent::AgentService>,
    pub(crate) bundle: Arc<bundle::BundleService>,
    pub(crate) debug: DebugServer<debug::DebugService>,
    pub(crate) entry: EntryServer<entry::EntryService>,
    pub(crate) health: HealthServer<health::HealthService>,
    pub(crate) local_authority: LocalAuthorityServer<localauthority::LocalAuthorityService>,
    pub(crate) logger: LoggerServer<logger::LoggerService>,
    pub(crate) svid: Arc<svid::SvidService>,
    pub(crate) trust_domain: TrustDomainServer<trustdomain::TrustDomainService>,
    pub(crate) watch: Arc<WatchService>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

const TOO_MANY_CALLS: &str = "too many calls of this peer are in flight; wait for some to end";
/// The call by which a node attests.
const ATTEST_AGENT: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";
/// The call that whoever can connect may make, answered with a message that is encoded already.
const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";

impl Api {
    /// Answers one call and records it. Failures are answers, too: a connection outlives a refused call. Without room in the
    /// budget of its peer a call is refused.
    pub(crate) async fn call(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
        has_room: bool,
    ) -> Response<Body> {
        let row = row(request.uri().path());
        let record = Arc::new(
            self.auditor
                .begin(|| boundary::context(row, request.uri().path(), connection)),
        );
        let timer = self.telemetry.start(&RPC, boundary::labels(row));
        // A caller that goes away drops this future, and the guard records it.
        let unfinished = Unfinished(Arc::clone(&record));
        let served = async {
            if has_room {
                self.serve(row, connection, request, &record).await
            } else {
                Status::from(refused(Kind::ResourceExhausted, TOO_MANY_CALLS)).into_http()
            }
        };
        let account = LogAccount::new(&self.log_limit, connection.account());
        let served = Arc::clone(&account).of_call(AssertUnwindSafe(served).catch_unwind());
        let response = match served.await {
            Ok(response) => response,
            Err(_panic) => boundary::panicked(&unfinished.0),
        };
        let is_attestation = row.is_some_and(|row| row.method == ATTEST_AGENT);
        let attestation = is_attestation.then(|| AttestationCall {
            refused: Arc::clone(&self.refused_attestations),
            connection: Arc::clone(connection),
        });
        let lifetime = row.map_or(Lifetime::Unary, |row| row.lifetime);
        let response = if lifetime == Lifetime::Conversation {
            response.map(|body| account_body::on_account(account, body))
        } else {
            response
        };
        let response = boundary::conclude(response, lifetime, unfinished, attestation).await;
        boundary::measure(response, lifetime, timer)
    }

    async fn serve(
        &self,
        row: Option<&'static Row>,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
        record: &Arc<CallRecord>,
    ) -> Response<Body> {
        let Some(row) = row else {
            return unknown(request.uri().path()).into_http();
        };
        let (service, _) = row.names();
        if !connection.is_local() && is_local_service(service) {
            return Status::new(Code::Unimplemented, format!("unknown service {service}"))
                .into_http();
        }
        let caller = match self.authorizer.authorize(row, connection, record).await {
            Ok(caller) => caller,
            Err(refused) => return Status::from(refused).into_http(),
        };
        tracing::debug!(
            method = row.method,
            authority = caller.authority.name(),
            "call"
        );
        let largest = request_body::largest_message(&caller);
        // Until this call is answered: a request that waits for its turn is held in memory, too.
        let held = Arc::new(connection.budget().hold_bytes());
        let mut request =
            request.map(|body| RequestBody::new(row.lifetime, Arc::clone(&held), body));
        request.extensions_mut().insert(caller);
        let answered = match service {
            "spire.api.server.svid.v1.SVID" => {
                let service = Arc::clone(&self.svid);
                service.answer(row.method, request, largest).await
            }
            "spire.api.server.entry.v1.Entry" => self.entry.clone().call(request).await,
            "spire.api.server.bundle.v1.Bundle" if row.method == GET_BUNDLE => {
                let bundle = Arc::clone(&self.bundle);
                let call = |request| async move { bundle.frames(&request) };
                Ok(message_body::answer(request, largest, call).await)
            }
            "spire.api.server.bundle.v1.Bundle" => {
                let bundle = BundleServer::from_arc(Arc::clone(&self.bundle));
                let mut bundle = bundle.max_decoding_message_size(largest);
                bundle.call(request).await
            }
            "spire.api.server.agent.v1.Agent" => {
                let mut agent = self.agent.clone().max_decoding_message_size(largest);
                agent.call(request).await
            }
            "plastron.server.v1.Watch" => {
                let watch = Arc::clone(&self.watch);
                let call = |request| async move { watch.frames(request).await };
                Ok(message_body::answer(request, largest, call).await)
            }
            "spire.api.server.trustdomain.v1.TrustDomain" => {
                self.trust_domain.clone().call(request).await
            }
            "spire.api.server.localauthority.v1.LocalAuthority" => {
                self.local_authority.clone().call(request).await
            }
            "spire.api.server.logger.v1.Logger" => self.logger.clone().call(request).await,
            "spire.api.server.debug.v1.Debug" => self.debug.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            _ => return unknown(row.method).into_http(),
        };
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// As gRPC servers answer; our agents find out in this way whether a server has the watch.
fn unknown(path: &str) -> Status {
    let (service, method) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path, ""));
    Status::new(
        Code::Unimplemented,
        format!("unknown method {method} for service {service}"),
    )
}

#[cfg(test)]
mod tests;
