//! `GET /live` and `/ready` for probes. SPIRE: health_checks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::fault::{Code, Fault};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::HealthConfig;
use crate::stop::Stop;

/// Probes come one by one; more connections than this wait.
const CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// A bound listener for probes.
#[derive(Debug)]
pub(crate) struct HttpHealth {
    listener: std::net::TcpListener,
    paths: Arc<HealthConfig>,
}

impl HttpHealth {
    /// # Errors
    /// PLA-1301 when the port is taken, PLA-1302 when the address can't be listened on.
    pub(crate) fn bind(config: &HealthConfig) -> Result<Self, Fault> {
        let address = format!("{}:{}", config.bind_address, config.bind_port);
        let failed = |error: std::io::Error| {
            let code = if error.kind() == std::io::ErrorKind::AddrInUse {
                Code::AddressInUse
            } else {
                Code::BindFailed
            };
            Fault::new(code, format!("health checks cannot listen on {address}"))
                .because(error)
                .hint(format!("ss -ltnp sport = :{}", config.bind_port))
        };
        let listener =
            std::net::TcpListener::bind((config.bind_address.as_str(), config.bind_port))
                .map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listener,
            paths: Arc::new(config.clone()),
        })
    }

    /// Answers probes until `stop`: 200 when the agent serves workloads, 500 when it does not.
    ///
    /// # Errors
    /// When the listener can't be handed to the runtime.
    pub(crate) async fn serve(
        self,
        ready: watch::Receiver<bool>,
        mut stop: Stop,
    ) -> Result<(), Fault> {
        let listener = TcpListener::from_std(self.listener).map_err(|error| {
            Fault::new(Code::Internal, "health checks cannot be served").because(error)
        })?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return Ok(());
            };
            let accepted = tokio::select! {
                () = stop.stopped() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (paths, ready) = (Arc::clone(&self.paths), ready.clone());
            drop(tokio::spawn(converse(stream, paths, ready, place)));
        }
    }
}

async fn converse(
    stream: TcpStream,
    paths: Arc<HealthConfig>,
    ready: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    let service = hyper::service::service_fn(|request| {
        let response = answer(&paths, *ready.borrow(), &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 << 10);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await {
        tracing::debug!(%error, "probe ended");
    }
}

fn answer(paths: &HealthConfig, ready: bool, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let status = if path != paths.live_path && path != paths.ready_path {
        StatusCode::NOT_FOUND
    } else if request.method() != Method::GET && request.method() != Method::HEAD {
        StatusCode::METHOD_NOT_ALLOWED
    } else if path == paths.ready_path && !ready {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    let details = if ready {
        serde_json::json!({ "agent": {} })
    } else {
        serde_json::json!({ "agent": { "make_new_x509_err": "the agent has not heard from its server yet" } })
    };
    let mut response = Response::new(Full::new(Bytes::from(details.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}
