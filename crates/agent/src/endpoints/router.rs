//! Which service answers a request: by the beginning of its path, as gRPC's paths are `/package.Service/Method`.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::ServiceExt as _;

/// The answer to one request.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// A service on a socket. The [`crate::attestor::Workload`] that asks is among the request's extensions.
pub(crate) trait Service: Send + Sync + Debug {
    /// What every path of the service begins with, such as `/grpc.health.v1.Health/`.
    fn prefix(&self) -> &str;

    fn call(&self, request: Request<Body>) -> Answer;
}

/// The services of one socket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Router(Arc<[Box<dyn Service>]>);

impl Router {
    pub(crate) fn new(services: Vec<Box<dyn Service>>) -> Self {
        Self(services.into())
    }

    pub(super) async fn route(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path();
        match self
            .0
            .iter()
            .find(|service| path.starts_with(service.prefix()))
        {
            Some(service) => service.call(request).await,
            None => {
                let service = path.split('/').nth(1).unwrap_or_default();
                Status::unimplemented(format!("unknown service {service}")).into_http()
            }
        }
    }
}

/// A service that tonic generated.
pub(crate) struct Generated<S> {
    prefix: String,
    // Only ever locked to be cloned: the services are not `Sync`.
    service: Mutex<S>,
}

impl<S: NamedService> Generated<S> {
    pub(crate) fn new(service: S) -> Box<Self> {
        Box::new(Self {
            prefix: format!("/{}/", S::NAME),
            service: Mutex::new(service),
        })
    }
}

impl<S> Debug for Generated<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Generated").field(&self.prefix).finish()
    }
}

impl<S> Service for Generated<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn call(&self, request: Request<Body>) -> Answer {
        let service = self
            .service
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Box::pin(async move {
            match service.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own name.
    #[derive(Debug)]
    struct Named(&'static str);

    impl Service for Named {
        fn prefix(&self) -> &str {
            self.0
        }

        fn call(&self, _request: Request<Body>) -> Answer {
            let name = self.0;
            Box::pin(async move { Status::not_found(name).into_http() })
        }
    }

    async fn answer_of(path: &str) -> (tonic::Code, String) {
        let services: Vec<Box<dyn Service>> = vec![
            Box::new(Named("/a.Service/")),
            Box::new(Named("/a.Services/")),
        ];
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = Router::new(services).route(request).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        (status.code(), status.message().to_owned())
    }

    #[tokio::test]
    async fn a_service_is_found_by_its_whole_name() {
        for (path, name) in [
            ("/a.Service/Method", "/a.Service/"),
            ("/a.Services/Method", "/a.Services/"),
        ] {
            assert_eq!(
                answer_of(path).await,
                (tonic::Code::NotFound, name.to_owned())
            );
        }
    }

    #[tokio::test]
    async fn what_no_service_answers_is_unimplemented() {
        for path in ["/b.Service/Method", "/a.Service", "/", "/A.Service/Method"] {
            assert_eq!(
                answer_of(path).await.0,
                tonic::Code::Unimplemented,
                "{path}"
            );
        }
    }
}
