//! The services that every gRPC tool expects: health and reflection. They need no security header.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use http::Request;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

use super::router::{Answer, Generated, Service};

/// The files whose services the Workload API socket shows.
const SHOWN: [&str; 2] = ["workloadapi.proto", "google/protobuf/struct.proto"];

/// The agent's health, to be set here and served on every socket.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Not serving, until [`Self::serving`] says so. Returns a service for each of `N` sockets.
    pub(crate) async fn new<const N: usize>() -> (Self, [Box<dyn Service>; N]) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = Self { reporter };
        health.serving(false).await;
        let services = std::array::from_fn(|_| {
            let service: Box<dyn Service> = Generated::new(service.clone());
            service
        });
        (health, services)
    }

    pub(crate) async fn serving(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.reporter.set_service_status("", status).await;
    }
}

/// Reflection, made when first asked for: its tables are large and few ever ask.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reflection(Arc<OnceLock<Routes>>);

impl Service for Reflection {
    fn prefix(&self) -> &str {
        "/grpc.reflection."
    }

    fn call(&self, request: Request<Body>) -> Answer {
        let made = Arc::clone(&self.0);
        Box::pin(async move {
            let routes = made.get_or_init(reflection).clone();
            match routes.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }
}

fn reflection() -> Routes {
    let shown = workload_files();
    let v1 = builder(&shown).build_v1();
    let v1alpha = builder(&shown).build_v1alpha();
    match (v1, v1alpha) {
        (Ok(v1), Ok(v1alpha)) => Routes::new(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "reflection cannot be served");
            Routes::default()
        }
    }
}

fn builder(shown: &FileDescriptorSet) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_file_descriptor_set(shown.clone())
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// The files that are served here, out of all that this program knows.
fn workload_files() -> FileDescriptorSet {
    let all = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let served: BTreeSet<String> = all
        .file
        .iter()
        .filter(|file| {
            file.service
                .iter()
                .any(|service| service.name() == "SpiffeWorkloadAPI" && file.package().is_empty())
        })
        .flat_map(|file| {
            file.dependency
                .iter()
                .cloned()
                .chain([file.name().to_owned()])
        })
        .chain(SHOWN.map(str::to_owned))
        .collect();
    FileDescriptorSet {
        file: all
            .file
            .into_iter()
            .filter(|file| served.contains(file.name()))
            .collect(),
    }
}
