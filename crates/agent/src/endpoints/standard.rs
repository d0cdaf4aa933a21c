//! The services that every gRPC tool expects: health and reflection. They need no security header.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use http::{Request, Response};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

/// The files whose services the Workload API socket shows.
const SHOWN: [&str; 2] = ["workloadapi.proto", "google/protobuf/struct.proto"];

/// Health, and reflection made when first asked for: its tables are large and few ever ask.
#[derive(Debug)]
pub(crate) struct Standard {
    reporter: HealthReporter,
    health: Routes,
    reflection: OnceLock<Routes>,
}

impl Standard {
    /// Not serving, until told.
    pub(crate) async fn new() -> Self {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("", ServingStatus::NotServing)
            .await;
        Self {
            reporter,
            health: Routes::new(service),
            reflection: OnceLock::new(),
        }
    }

    pub(crate) async fn serving(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.reporter.set_service_status("", status).await;
    }

    /// Answers a request of one of these services; others are unimplemented.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<tonic::body::Body>
    where
        B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let routes = if request.uri().path().starts_with("/grpc.reflection.") {
            self.reflection.get_or_init(reflection)
        } else {
            &self.health
        };
        match routes
            .clone()
            .oneshot(request.map(tonic::body::Body::new))
            .await
        {
            Ok(response) => response,
            Err(never) => match never {},
        }
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
