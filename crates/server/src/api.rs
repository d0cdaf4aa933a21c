//! Every gRPC call of both endpoints passes here: find its row in the table, authorize, hand it to its service.
//!
//! A method without a row is not served, so no service can add one unseen.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use proto::plastron::server::v1::watch_server::WatchServer;
use proto::spire::api::server::agent::v1::agent_server::AgentServer;
use proto::spire::api::server::bundle::v1::bundle_server::BundleServer;
use proto::spire::api::server::debug::v1::debug_server::DebugServer;
use proto::spire::api::server::entry::v1::entry_server::EntryServer;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use proto::spire::api::server::svid::v1::svid_server::SvidServer;
use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use crate::authz::{Authorizer, is_local_service, row};
use crate::caller::Connection;
use intake::Intake;

pub(crate) mod agent;
pub(crate) mod bundle;
pub(crate) mod debug;
pub(crate) mod entry;
pub(crate) mod health;
mod intake;
pub(crate) mod localauthority;
pub(crate) mod logger;
pub(crate) mod svid;
pub(crate) mod trustdomain;
mod wire;

/// The services, each ready to be cloned for a call.
pub(crate) struct Api {
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) agent: AgentServer<agent::AgentService>,
    pub(crate) bundle: BundleServer<bundle::BundleService>,
    pub(crate) debug: DebugServer<debug::DebugService>,
    pub(crate) entry: EntryServer<entry::EntryService>,
    pub(crate) health: HealthServer<health::HealthService>,
    pub(crate) local_authority: LocalAuthorityServer<localauthority::LocalAuthorityService>,
    pub(crate) logger: LoggerServer<logger::LoggerService>,
    pub(crate) svid: SvidServer<svid::SvidService>,
    pub(crate) trust_domain: TrustDomainServer<trustdomain::TrustDomainService>,
    pub(crate) watch: WatchServer<crate::watch::WatchService>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// Answers one call. Failures are answers too: a connection outlives a refused call.
    pub(crate) async fn call(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let path = request.uri().path();
        let Some((method, allowed)) = row(path) else {
            return unknown(path).into_http();
        };
        let service = service_of(method);
        if !connection.is_local() && is_local_service(service) {
            return Status::new(Code::Unimplemented, format!("unknown service {service}"))
                .into_http();
        }
        let caller = match self.authorizer.authorize(method, allowed, connection).await {
            Ok(caller) => caller,
            Err(refused) => return refused.into_http(),
        };
        tracing::debug!(method, authority = caller.authority.name(), "call");
        let largest = intake::largest_message(&caller);
        let mut request = request.map(|body| Intake::of_call(method, body));
        request.extensions_mut().insert(caller);
        let answered = match service {
            "spire.api.server.svid.v1.SVID" => self.svid.clone().call(request).await,
            "spire.api.server.entry.v1.Entry" => self.entry.clone().call(request).await,
            "spire.api.server.bundle.v1.Bundle" => {
                let mut bundle = self.bundle.clone().max_decoding_message_size(largest);
                bundle.call(request).await
            }
            "spire.api.server.agent.v1.Agent" => {
                let mut agent = self.agent.clone().max_decoding_message_size(largest);
                agent.call(request).await
            }
            "plastron.server.v1.Watch" => self.watch.clone().call(request).await,
            "spire.api.server.trustdomain.v1.TrustDomain" => {
                self.trust_domain.clone().call(request).await
            }
            "spire.api.server.localauthority.v1.LocalAuthority" => {
                self.local_authority.clone().call(request).await
            }
            "spire.api.server.logger.v1.Logger" => self.logger.clone().call(request).await,
            "spire.api.server.debug.v1.Debug" => self.debug.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            _ => return unknown(method).into_http(),
        };
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn service_of(method: &str) -> &str {
    method
        .trim_start_matches('/')
        .split_once('/')
        .map_or("", |(service, _)| service)
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
