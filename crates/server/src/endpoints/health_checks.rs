//! The HTTP listener for liveness and readiness probes: GET only, answers from memory, says what is wrong.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::fault::Fault;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::admission::{Admission, Capacity, Slot};
use super::pause_after_failed_accept;
use super::tcp::listen;
use crate::config::HealthConfig;
use crate::health::Health;
use crate::principal::{Account, Class};
use crate::source::Source;
use daemon::tasks::Shutdown;

const MAX_CONNECTIONS: usize = 64;
/// Of one address, so that others' probes get through whatever it does.
const MAX_PER_SOURCE: usize = 16;
/// A probe is one short request; whatever takes longer is not a probe.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The bound listener.
#[derive(Debug)]
pub(crate) struct HealthChecks {
    listener: TcpListener,
    address: SocketAddr,
    paths: Arc<Paths>,
}

#[derive(Debug)]
struct Paths {
    live: String,
    ready: String,
}

/// Binds the listener.
///
/// # Errors
/// When the address is taken or not ours.
pub(crate) async fn bind(config: &HealthConfig) -> Result<HealthChecks, Fault> {
    let (listener, address) =
        listen(&config.bind_address, config.bind_port, "health_checks.").await?;
    let paths = Paths {
        live: config.live_path.clone(),
        ready: config.ready_path.clone(),
    };
    Ok(HealthChecks {
        listener,
        address,
        paths: Arc::new(paths),
    })
}

impl HealthChecks {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn run(self, health: Arc<Health>, mut shutdown: Shutdown) {
        let mut connections = Admission::new(Capacity {
            per_source: MAX_PER_SOURCE,
            ..Capacity::of(MAX_CONNECTIONS)
        });
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let (health, paths) = (Arc::clone(&health), Arc::clone(&self.paths));
                    let from = Account::Source(Source::of(address.ip()));
                    let serve = |slot| serve(stream, slot, health, paths);
                    if !connections.spawn(from, Class::Unauthenticated, serve) {
                        tracing::debug!(%address, "refusing a health check: too many");
                    }
                }
                Err(error) => pause_after_failed_accept(&error, &mut shutdown).await,
            }
        }
    }
}

async fn serve(stream: TcpStream, slot: Arc<Slot>, health: Arc<Health>, paths: Arc<Paths>) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &health, &paths);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // However it ends: a prober that wants to know asks again.
    tokio::select! {
        _ended = connection => {}
        () = slot.evicted() => {}
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
    }
}

/// SPIRE: 200 or 500 with a JSON object of subsystem and details.
fn answer(request: &Request<Incoming>, health: &Health, paths: &Paths) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if path != paths.live && path != paths.ready {
        return response(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "404 page not found\n".to_owned(),
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return response(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "only GET is served\n".to_owned(),
        );
    }
    let report = health.report();
    let well = if path == paths.live {
        report.live
    } else {
        report.ready
    };
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    response(status, "application/json", report.details.to_string())
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(kind),
    );
    response
}
