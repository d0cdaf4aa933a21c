//! The HTTP listener for liveness and readiness probes: GET and HEAD only, answers from memory, says what is wrong.
//! SPIRE: health_checks.
//!
//! Any peer that reaches the port may connect, so connections are capped, overall and for each address; at a cap the one that
//! was opened first makes room, since a probe is over in no time. The accept loop waits for nothing else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::Section;
use config::fault::{Code, Fault};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::tasks::Shutdown;

const MAX_CONNECTIONS: usize = 64;
/// Of one address, so that others' probes get through whatever it does.
const MAX_PER_ADDRESS: usize = 16;
/// A probe is one short request; whatever takes longer is not a probe.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HEADER: usize = 16 << 10;
/// After `EMFILE` and the like, the kernel needs a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The `health_checks` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// A name or an IP address; an IPv6 address with or without brackets.
    pub bind_address: String,
    pub bind_port: u16,
    pub live_path: String,
    pub ready_path: String,
}

impl HealthConfig {
    /// Reads the `health_checks` block at the top level; nothing when the listener is off. What is wrong is recorded on
    /// the document. SPIRE: the same defaults.
    pub fn read(root: &Section) -> Option<Self> {
        let checks = root.section("health_checks")?;
        let enabled = checks.boolean("listener_enabled").unwrap_or(false);
        let address = checks.non_empty_string("bind_address");
        let path = |key: &str, default: &str| {
            let path = checks
                .non_empty_string(key)
                .unwrap_or_else(|| default.to_owned());
            if !path.starts_with('/') {
                checks.fault_at(
                    key,
                    format!("{key} must begin with a slash"),
                    format!("for instance {key} = {default:?}"),
                );
            }
            path
        };
        let config = Self {
            bind_address: address.unwrap_or_else(|| "localhost".to_owned()),
            bind_port: checks.port("bind_port").unwrap_or(80),
            live_path: path("live_path", "/live"),
            ready_path: path("ready_path", "/ready"),
        };
        if config.live_path == config.ready_path {
            checks.fault(
                Code::ConflictingKeys,
                "ready_path",
                "live_path and ready_path must differ",
                "a daemon may be alive without being ready: probes ask for each by its path",
            );
        }
        enabled.then_some(config)
    }
}

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub live: bool,
    pub ready: bool,
    /// JSON: an object of subsystems and their details.
    pub details: String,
}

/// The bound listener.
#[derive(Debug)]
pub struct HttpProbes {
    listener: std::net::TcpListener,
    address: SocketAddr,
    config: Arc<HealthConfig>,
}

/// The open connections, in the order they came.
#[derive(Debug, Default)]
struct Open {
    running: JoinSet<()>,
    held: VecDeque<(IpAddr, AbortHandle)>,
}

impl HttpProbes {
    /// # Errors
    /// PLA-1301 when the port is taken, PLA-1302 when cannot listen on this address.
    pub fn bind(config: &HealthConfig) -> Result<Self, Fault> {
        let host = config
            .bind_address
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(&config.bind_address);
        let port = config.bind_port;
        let failed = |error: std::io::Error| {
            let in_use = error.kind() == ErrorKind::AddrInUse;
            let (code, hint) = if in_use {
                let holder = format!("find its holder with: ss -ltnp 'sport = :{port}'");
                (Code::AddressInUse, holder)
            } else {
                let other = "set health_checks.bind_address to an address of this machine";
                (Code::BindFailed, other.to_owned())
            };
            Fault::new(
                code,
                format!("cannot listen for health checks on {host} port {port}"),
            )
            .because(error)
            .hint(hint)
        };
        let listener = std::net::TcpListener::bind((host, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            address: listener.local_addr().map_err(failed)?,
            listener,
            config: Arc::new(config.clone()),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers probes with `report` until the shutdown.
    ///
    /// # Errors
    /// When the listener cannot be handed to the runtime.
    pub async fn run(
        self,
        report: impl Fn() -> Report + Send + Sync + 'static,
        mut shutdown: Shutdown,
    ) -> Result<(), Fault> {
        let listener = TcpListener::from_std(self.listener).map_err(|error| {
            Fault::new(Code::Internal, "cannot serve health checks").because(error)
        })?;
        let report: Arc<dyn Fn() -> Report + Send + Sync> = Arc::new(report);
        let mut open = Open::default();
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let (config, report) = (Arc::clone(&self.config), Arc::clone(&report));
                    open.add(from.ip(), serve(stream, config, report));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a health check");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Open {
    fn add(&mut self, from: IpAddr, serving: impl Future<Output = ()> + Send + 'static) {
        while self.running.try_join_next().is_some() {}
        self.held
            .retain(|(_, connection)| !connection.is_finished());
        let of_address = self.held.iter().filter(|(held, _)| *held == from).count();
        let first = if of_address >= MAX_PER_ADDRESS {
            self.held.iter().position(|(held, _)| *held == from)
        } else {
            (self.held.len() >= MAX_CONNECTIONS).then_some(0)
        };
        if let Some((_, connection)) = first.and_then(|first| self.held.remove(first)) {
            connection.abort();
        }
        let connection = self.running.spawn(serving);
        self.held.push_back((from, connection));
    }
}

async fn serve(
    stream: TcpStream,
    config: Arc<HealthConfig>,
    report: Arc<dyn Fn() -> Report + Send + Sync>,
) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let response = answer(request.method(), request.uri().path(), &config, || report());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "health check ended"),
        Err(_elapsed) => tracing::debug!("health check cut off"),
    }
}

fn answer(
    method: &Method,
    path: &str,
    config: &HealthConfig,
    report: impl FnOnce() -> Report,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if path != config.live_path && path != config.ready_path {
        let body = "404 page not found\n".to_owned();
        return response(StatusCode::NOT_FOUND, TEXT, body);
    }
    if method != Method::GET && method != Method::HEAD {
        let body = "only GET is served\n".to_owned();
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, body);
    }
    let report = report();
    // One path may be both.
    let is_well =
        (path != config.live_path || report.live) && (path != config.ready_path || report.ready);
    let status = if is_well {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    response(status, "application/json", report.details)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::tasks::Tasks;

    fn config() -> HealthConfig {
        HealthConfig {
            bind_address: "[::1]".to_owned(),
            bind_port: 0,
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        }
    }

    fn report([live, ready]: [bool; 2]) -> Report {
        Report {
            live,
            ready,
            details: "{}".to_owned(),
        }
    }

    #[test]
    fn each_path_answers_for_its_own_half_of_the_report() {
        let status =
            |path: &str, report: Report| answer(&Method::GET, path, &config(), || report).status();
        assert_eq!(status("/live", report([true, false])), 200);
        assert_eq!(status("/ready", report([true, false])), 500);
        assert_eq!(status("/live", report([false, true])), 500);
        assert_eq!(status("/ready", report([true, true])), 200);
        assert_eq!(status("/other", report([true, true])), 404);
        assert_eq!(status("/live/", report([true, true])), 404);
    }

    #[test]
    fn only_reading_is_served_and_one_path_may_be_both() {
        let both = HealthConfig {
            ready_path: "/live".to_owned(),
            ..config()
        };
        let status = |method: Method| answer(&method, "/live", &both, || report([true, false]));
        assert_eq!(status(Method::POST).status(), 405);
        assert_eq!(status(Method::HEAD).status(), 500);
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let first = HttpProbes::bind(&config()).unwrap();
        let taken = HealthConfig {
            bind_port: first.address().port(),
            ..config()
        };
        let fault = HttpProbes::bind(&taken).unwrap_err();
        assert_eq!(fault.code, Code::AddressInUse);
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_no_probe_out_and_hold_up_no_stop() {
        let probes = HttpProbes::bind(&config()).unwrap();
        let address = probes.address();
        let tasks = Tasks::new();
        let running = tokio::spawn(probes.run(|| report([true, true]), tasks.shutdown()));
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe
            .write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        tasks.request_shutdown();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_at_its_cap_makes_room_among_its_own() {
        let mut open = Open::default();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        open.add(other, std::future::pending());
        for _ in 0..10 * MAX_PER_ADDRESS {
            open.add(one, std::future::pending());
            tokio::task::yield_now().await;
        }
        let of = |from| open.held.iter().filter(|(held, _)| *held == from).count();
        assert_eq!((of(one), of(other)), (MAX_PER_ADDRESS, 1));
    }
}
