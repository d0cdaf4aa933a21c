//! The whole agent: bound, attested, asked over its socket, stopped and started again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::Document;
use ::config::fault::Code;
use daemon::telemetry::totals::Totals;
use proto::spire::agent::debug::v1::GetInfoRequest;
use proto::spire::agent::debug::v1::debug_client::DebugClient;
use proto::spire::api::agent::logger::v1::logger_client::LoggerClient;
use proto::spire::api::agent::logger::v1::{ResetLogLevelRequest, SetLogLevelRequest};
use proto::spire::api::types::permission_denied_details::Reason;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{JwtsvidRequest, X509svidRequest, X509svidResponse};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::{Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::testing::entry;
use crate::testing::fake_server::{FakeServer, denied};

const LONG: Duration = Duration::from_secs(20);

struct Running {
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), Fault>>,
}

fn config(port: u16, directory: &Path, more: &str) -> Config {
    config_with(port, directory, "", more)
}

/// `settings` are lines of the `agent` section, `more` stands after all sections.
fn config_with(port: u16, directory: &Path, settings: &str, more: &str) -> Config {
    let text = format!(
        "agent {{\n trust_domain = \"example.org\"\n server_address = \"127.0.0.1\"\n server_port = {port}\n \
         data_dir = \"{dir}/data\"\n socket_path = \"{dir}/public/api.sock\"\n admin_socket_path = \"{dir}/admin/admin.sock\"\n \
         insecure_bootstrap = true\n join_token = \"good\"\n {settings}\n }}\n\
         plugins {{\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"disk\" {{ plugin_data {{ directory = \"{dir}/data\" }} }}\n \
         WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n }}\n{more}",
        dir = directory.display()
    );
    let document = Document::parse("agent.conf", &text, None).unwrap();
    Config::from_document(&document, &Overrides::default())
        .unwrap_or_else(|faults| panic!("{faults}"))
}

/// A log that is at `info`, until it is set to another level.
#[derive(Debug)]
struct Switch(std::sync::Mutex<tracing::Level>);

impl Default for Switch {
    fn default() -> Self {
        Self(std::sync::Mutex::new(tracing::Level::INFO))
    }
}

impl LogControl for Switch {
    fn level(&self) -> tracing::Level {
        *self.0.lock().unwrap()
    }
    fn set_level(&self, level: tracing::Level) {
        *self.0.lock().unwrap() = level;
    }
}

async fn start(config: Config) -> Running {
    start_measured(Systemd::default(), config, Telemetry::default()).await
}

/// The same under a service manager.
async fn start_under(systemd: Systemd, config: Config) -> Running {
    start_measured(systemd, config, Telemetry::default()).await
}

async fn start_measured(systemd: Systemd, config: Config, telemetry: Telemetry) -> Running {
    let mut bound = Agent::bind_in(
        config,
        Environment {
            log: Some(Arc::new(Switch::default())),
            telemetry,
        },
    )
    .await
    .unwrap();
    bound.handover = Handover::new(systemd);
    let socket = bound.socket().to_owned();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(bound.run(async move {
        stopped.await.ok();
    }));
    Running {
        socket,
        stop,
        ended,
    }
}

impl Running {
    async fn stream(&self) -> Result<Streaming<X509svidResponse>, Status> {
        let channel = proto::channel::connect_uds(&self.socket).await.unwrap();
        let mut client = SpiffeWorkloadApiClient::new(channel);
        Ok(client
            .fetch_x509svid(with_header(X509svidRequest {}))
            .await?
            .into_inner())
    }

    async fn ids(&self) -> Vec<String> {
        let mut stream = self.stream().await.unwrap();
        let update = tokio::time::timeout(LONG, stream.message()).await.unwrap();
        let svids = update.unwrap().unwrap().svids;
        svids.into_iter().map(|svid| svid.spiffe_id).collect()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(LONG, self.ended)
            .await
            .expect("stops in time")
            .unwrap()
            .unwrap();
        assert!(!self.socket.exists());
    }
}

impl Running {
    fn admin(&self) -> PathBuf {
        let directory = self.socket.parent().unwrap().parent().unwrap();
        directory.join("admin/admin.sock")
    }

    async fn is_serving(&self, socket: &Path) -> bool {
        let channel = proto::channel::connect_uds(socket).await.unwrap();
        let mut health = HealthClient::new(channel);
        let watch = HealthCheckRequest::default();
        let mut changes = health.watch(watch).await.unwrap().into_inner();
        let serving = async {
            while let Some(change) = changes.message().await.unwrap() {
                if change.status() == ServingStatus::Serving {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(LONG, serving).await.expect("in time")
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn server() -> FakeServer {
    let server = FakeServer::start("example.org").await;
    let made = entry(
        "a",
        "/web",
        &[&format!("unix:uid:{}", nix::unistd::getuid())],
    );
    server.change(|state| {
        state.watch = true;
        state.entries.insert("a".into(), made);
    });
    server
}

/// A port where nobody listens.
fn nobody() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn last_good(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("data/plastron-last-good.json")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_a_server_serves_what_is_still_valid_where_keys_may_be_stored() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let persist = "persist_workload_svids = true";
    let first = start(config_with(server.port, directory.path(), persist, "")).await;
    assert_eq!(first.ids().await, ["spiffe://example.org/web"]);
    first.stop().await;
    let second = start(config_with(nobody(), directory.path(), persist, "")).await;
    assert_eq!(second.ids().await, ["spiffe://example.org/web"]);
    let channel = proto::channel::connect_uds(&second.socket).await.unwrap();
    let request = JwtsvidRequest {
        audience: vec!["x".into()],
        spiffe_id: String::new(),
    };
    let status = SpiffeWorkloadApiClient::new(channel)
        .fetch_jwtsvid(with_header(request))
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    second.stop().await;
    assert_eq!(server.calls("AttestAgent"), 1);
    // The key is switched off again: what an earlier run stored does not stay.
    assert!(last_good(directory.path()).contains("\"key\":"));
    let third = start(config(nobody(), directory.path(), "")).await;
    assert!(!last_good(directory.path()).contains("\"key\":"));
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_workloads_are_not_stored_and_bundles_and_entries_are() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let first = start(config(server.port, directory.path(), "")).await;
    assert_eq!(first.ids().await, ["spiffe://example.org/web"]);
    first.stop().await;
    let stored = last_good(directory.path());
    assert!(!stored.contains("\"key\":"), "{stored}");
    assert!(stored.contains("spiffe://example.org/web"), "{stored}");
    let second = start(config(nobody(), directory.path(), "")).await;
    let channel = proto::channel::connect_uds(&second.socket).await.unwrap();
    let bundles = SpiffeWorkloadApiClient::new(channel)
        .fetch_x509_bundles(with_header(proto::workload::X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap()
        .bundles;
    assert!(bundles.contains_key("spiffe://example.org"), "{bundles:?}");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_does_not_hold_up_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let running = start(config(server.port, directory.path(), "")).await;
    let mut stream = running.stream().await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_component_measures_what_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let totals = Arc::new(Totals::default());
    let telemetry = Telemetry::new(Arc::<Totals>::clone(&totals));
    let config = config(server.port, directory.path(), "");
    let running = start_measured(Systemd::default(), config, telemetry).await;
    assert_eq!(running.ids().await.len(), 1);
    let count = |metric, labels: &[&str]| totals.count(metric, labels);
    let own = [sync::VERSION, "example.org"];
    assert_eq!(totals.gauge(metrics::STARTED.metric(), &own), Some(1.0));
    // The server's client, the sync task and the cache.
    let attested = metrics::NODE_ATTESTATION.metric();
    assert_eq!(totals.calls(attested, &[], "OK"), 1);
    let calls = metrics::SERVER_CALL.metric();
    assert_eq!(totals.calls(calls, &["AttestAgent"], "OK"), 1);
    assert!(totals.calls(calls, &["BatchNewX509SVID"], "OK") >= 1);
    assert_eq!(totals.calls(metrics::SVID_SYNC.metric(), &[], "OK"), 1);
    assert_eq!(totals.sum(metrics::SVID_BATCH.metric(), &[]), 1.0);
    let connected = metrics::SERVER_CONNECTED.metric();
    assert_eq!(totals.gauge(connected, &[]), Some(1.0));
    assert!(count(metrics::ENTRY_ADDED.metric(), &[]) >= 1);
    assert_eq!(totals.gauge(metrics::X509_SVIDS.metric(), &[]), Some(1.0));
    // The socket, the service, the gate and the attestor.
    let accepted = metrics::CONNECTIONS.metric();
    assert_eq!(count(accepted, &["workload_api"]), 1);
    let asked = metrics::WORKLOAD_API_CALL.metric();
    assert_eq!(totals.calls(asked, &["FetchX509SVID"], "OK"), 1);
    assert!(totals.calls(metrics::WORKLOAD_ATTESTATION.metric(), &[], "OK") >= 1);
    let attestor = metrics::WORKLOAD_ATTESTOR.metric();
    assert!(totals.calls(attestor, &["unix"], "OK") >= 1);
    assert!(totals.sum(metrics::DISCOVERED_SELECTORS.metric(), &[]) >= 1.0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_ends_the_agent_and_leaves_no_identity_behind() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let running = start(config(server.port, directory.path(), "")).await;
    running.ids().await;
    server.change(|state| state.verdict = Some(denied(Reason::AgentBanned)));
    let channel = proto::channel::connect_uds(&running.socket).await.unwrap();
    let request = JwtsvidRequest {
        audience: vec!["x".into()],
        spiffe_id: String::new(),
    };
    let mut client = SpiffeWorkloadApiClient::new(channel);
    client
        .fetch_jwtsvid(with_header(request))
        .await
        .unwrap_err();
    let fault = tokio::time::timeout(LONG, running.ended)
        .await
        .expect("in time")
        .unwrap()
        .unwrap_err();
    assert_eq!(fault.code, Code::AgentBanned);
    let kept: Vec<_> = std::fs::read_dir(directory.path().join("data"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !kept.contains(&"plastron-last-good.json".to_owned()),
        "{kept:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_workload_api_the_socket_still_answers_for_the_agents_health() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let mut config = config(server.port, directory.path(), "");
    config.workload_api = None;
    let running = start(config).await;
    assert!(running.is_serving(&running.socket).await);
    let refused = running.stream().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_socket_shows_the_agent_and_changes_its_log_level() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    let running = start(config(server.port, directory.path(), "")).await;
    assert_eq!(running.ids().await.len(), 1);
    assert!(running.is_serving(&running.admin()).await);
    let channel = proto::channel::connect_uds(running.admin()).await.unwrap();
    let info = DebugClient::new(channel.clone())
        .get_info(GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let own = info.svid_chain[0].id.clone().unwrap();
    assert!(own.path.starts_with("/spire/agent/"), "{own:?}");
    assert_eq!(info.cached_x509_svids_count, 1);
    assert!(info.last_sync_success > 0);
    let mut logger = LoggerClient::new(channel.clone());
    let set = |new_level| SetLogLevelRequest { new_level };
    let level = logger.set_log_level(set(6)).await.unwrap().into_inner();
    assert_eq!((level.current_level, level.launch_level), (6, 5));
    let unset = logger.set_log_level(set(0)).await.unwrap_err();
    assert_eq!(unset.code(), tonic::Code::InvalidArgument);
    let reset = logger
        .reset_log_level(ResetLogLevelRequest {})
        .await
        .unwrap();
    assert_eq!(reset.into_inner().current_level, 5);
    // What workloads may ask for is not on this socket, and what operators may is not on theirs.
    let mut workload = SpiffeWorkloadApiClient::new(channel);
    let refused = workload
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unimplemented);
    let public = proto::channel::connect_uds(&running.socket).await.unwrap();
    let refused = DebugClient::new(public).get_info(GetInfoRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unimplemented);
    running.stop().await;
}

#[tokio::test]
async fn a_token_that_is_refused_ends_the_agent_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = server().await;
    server.change(|state| state.tokens.clear());
    let running = start(config(server.port, directory.path(), "")).await;
    let fault = tokio::time::timeout(Duration::from_secs(3), running.ended)
        .await
        .expect("at once")
        .unwrap()
        .unwrap_err();
    assert_eq!(fault.code, Code::JoinTokenRefused);
    assert!(!running.socket.exists());
}

#[tokio::test]
async fn what_cannot_be_bound_is_reported_before_the_server_is_called() {
    let directory = tempfile::tempdir().unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let health = format!(
        "health_checks {{\n listener_enabled = true\n bind_address = \"127.0.0.1\"\n bind_port = {}\n }}",
        holder.local_addr().unwrap().port()
    );
    let taken = config(1, directory.path(), &health);
    assert_eq!(
        Agent::bind(taken).await.unwrap_err().code,
        Code::AddressInUse
    );
    let first = Agent::bind(config(1, directory.path(), "")).await.unwrap();
    let second = config(1, directory.path(), "");
    assert_eq!(
        Agent::bind(second).await.unwrap_err().code,
        Code::SocketInUse
    );
    drop(first);
    std::fs::write(directory.path().join("data/agent-data.json"), "{").unwrap();
    let damaged = config(1, directory.path(), "");
    assert_eq!(
        Agent::bind(damaged).await.unwrap_err().code,
        Code::AgentDataInvalid
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_say_when_the_agent_serves() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let health = format!(
        "health_checks {{\n listener_enabled = true\n bind_address = \"127.0.0.1\"\n bind_port = {port}\n }}"
    );
    let server = server().await;
    let running = start(config(server.port, directory.path(), &health)).await;
    running.ids().await;
    let status = async |path: &str| {
        reqwest::Client::builder()
            .build()
            .unwrap()
            .get(format!("http://127.0.0.1:{port}{path}"))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(status("/live").await, 200);
    assert_eq!(status("/ready").await, 200);
    assert_eq!(status("/other").await, 404);
    running.stop().await;
}

#[tokio::test]
async fn a_fault_that_only_an_operator_can_fix_makes_the_agent_unhealthy_while_it_lasts() {
    let (ready, is_ready) = watch::channel(false);
    let (sync_status, status) = watch::channel(SyncStatus::default());
    let healthy = watch::Sender::new(true);
    let mut seen = healthy.subscribe();
    let tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let watching = tokio::spawn(watch_health(healthy, is_ready, status, shutdown));
    let mut becomes = async |expected: bool| {
        tokio::time::timeout(LONG, seen.wait_for(|healthy| *healthy == expected))
            .await
            .expect("in time")
            .unwrap();
    };
    becomes(false).await;
    ready.send_replace(true);
    becomes(true).await;
    sync_status.send_modify(|status| status.broken = true);
    becomes(false).await;
    sync_status.send_modify(|status| status.broken = false);
    becomes(true).await;
    tasks.request_shutdown();
    watching.await.unwrap();
}

/// Plays systemd's file descriptor store: the name and the descriptor of the last `FDSTORE=1`, after which the service
/// is gone.
fn stored_descriptor(manager: &std::os::unix::net::UnixDatagram) -> (Vec<String>, i32) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd as _;
    let mut messages = Vec::new();
    let mut descriptor = None;
    let mut buffer = [0; 1024];
    loop {
        let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(manager.as_raw_fd(), &mut slices, Some(&mut space), flags)
        else {
            break;
        };
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(rights) = control {
                descriptor = rights.first().copied();
            }
        }
        let length = message.bytes;
        messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
    }
    (messages, descriptor.expect("a descriptor was stored"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_systemd_svids_outlive_a_restart_without_a_server_and_touch_no_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let systemd = || {
        let path = path.clone().into_os_string();
        Systemd::new(
            move |name| (name == "NOTIFY_SOCKET").then(|| path.clone()),
            1,
        )
    };
    let server = server().await;
    let first = start_under(systemd(), config(server.port, directory.path(), "")).await;
    assert_eq!(first.ids().await, ["spiffe://example.org/web"]);
    first.stop().await;
    let (messages, descriptor) = stored_descriptor(&manager);
    assert_eq!(
        messages,
        [
            "READY=1",
            "STOPPING=1",
            "FDSTORE=1\nFDNAME=plastron-svids\nFDPOLL=0"
        ]
    );
    assert!(!last_good(directory.path()).contains("\"key\":"));
    let stored = vec![(handover::NAME.to_owned(), descriptor)];
    let nobody = config(nobody(), directory.path(), "");
    let second = start_under(systemd().with_stored(stored), nobody).await;
    assert_eq!(second.ids().await, ["spiffe://example.org/web"]);
    second.stop().await;
    let (messages, descriptor) = stored_descriptor(&manager);
    assert_eq!(messages[0], "FDSTOREREMOVE=1\nFDNAME=plastron-svids");
    nix::unistd::close(descriptor).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_does_not_hold_up_the_stop() {
    let hangs = tokio::spawn(std::future::pending());
    last_write(hangs).await;
    let (done, written) = oneshot::channel();
    last_write(tokio::spawn(async move {
        tokio::time::sleep(LAST_WRITE / 2).await;
        done.send(()).unwrap();
    }))
    .await;
    written.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn plugins_are_stopped_when_all_else_has_ended() {
    let (say, said) = oneshot::channel();
    let mut tasks = Tasks::new();
    tasks.spawn("slow", async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        say.send(()).unwrap();
    });
    let mut stopped = false;
    stop(tasks, async {
        said.await.unwrap();
        stopped = true;
    })
    .await
    .unwrap();
    assert!(stopped);
}

#[tokio::test(start_paused = true)]
async fn an_agent_ends_whatever_hangs_and_with_its_first_fault() {
    let mut hanging = Tasks::new();
    hanging.spawn("disk", std::future::pending::<()>());
    let fault = stop(hanging, std::future::pending()).await.unwrap_err();
    assert!(fault.what.starts_with("disk did not stop"), "{fault}");
    let plugins = std::future::pending();
    let fault = stop(Tasks::new(), plugins).await.unwrap_err();
    assert_eq!(fault.code, Code::Internal);
    let mut banned = Tasks::new();
    let mut shutdown = banned.shutdown();
    banned.spawn("membership", async move {
        shutdown.requested().await;
        Err(Fault::new(Code::AgentBanned, "this node was banned"))
    });
    let fault = stop(banned, std::future::pending()).await.unwrap_err();
    assert_eq!(fault.code, Code::AgentBanned);
}
