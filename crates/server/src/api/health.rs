//! grpc.health.v1 on the admin socket: the server as a whole, by whether its own bundle can be read (SPIRE: from the
//! database, so that a database which is away shows here as well).

use std::pin::Pin;
use std::sync::Arc;

use spiffe::trust_domain::TrustDomain;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};
use crate::registry::{Condition, Registry};

#[derive(Debug)]
pub(crate) struct HealthService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
}

impl HealthService {
    fn now(&self) -> HealthCheckResponse {
        serving(&self.registry, &self.trust_domain)
    }
}

fn serving(registry: &Registry, own: &TrustDomain) -> HealthCheckResponse {
    let is_away = matches!(registry.freshness().condition(), Condition::Away { .. });
    let status = if registry.bundle(own).is_some() && !is_away {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    HealthCheckResponse {
        status: status as i32,
    }
}

fn whole_server_only(request: &HealthCheckRequest) -> Result<(), OpError> {
    if request.service.is_empty() {
        return Ok(());
    }
    Err(refused(
        Kind::InvalidArgument,
        "per-service health is not supported",
    ))
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        whole_server_only(request.get_ref())?;
        Ok(Response::new(self.now()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Says how it is, then each time that changes.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        whole_server_only(request.get_ref())?;
        let closing = Caller::of(&request)?.connection.closing();
        let (registry, own) = (Arc::clone(&self.registry), self.trust_domain.clone());
        let revisions = WatchStream::new(self.registry.subscribe()).map(|_| ());
        let conditions = WatchStream::new(self.registry.freshness().conditions()).map(|_| ());
        let mut last = None;
        let answers = revisions.merge(conditions).filter_map(move |_| {
            let now = serving(&registry, &own);
            (last.replace(now.status) != Some(now.status)).then_some(Ok(now))
        });
        Ok(Response::new(Box::pin(crate::watch::until_closing(
            answers, closing,
        ))))
    }
}
