//! The service over a real socket, with entries and SVIDs put into the cache by hand.

use std::time::Duration;

use daemon::tasks::Tasks;
use daemon::telemetry::Telemetry;
use daemon::telemetry::totals::Totals;
use futures_util::FutureExt as _;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{WitBundlesRequest, WitsvidRequest};
use spiffe::bundle::Bundle;
use spiffe::clock::{SystemClock, unix_seconds};
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::{JwsAlgorithm, KeyPair, KeyType};
use spiffe::random::SystemRandom;
use spiffe::svid::jwt::{JwtClaims, sign_jwt_svid};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use super::*;
use crate::attestor::Attestors;
use crate::cache::Cache;
use crate::cache::svids::{IssuedSvid, RotationRule};
use crate::cache::{CacheOptions, Delta};
use crate::config::{RateLimits, WorkloadApiConfig};
use crate::endpoints::router::Router;
use crate::endpoints::standard::{Health, Reflection};
use crate::endpoints::{Socket, budgets};
use crate::gate::{GateOptions, LogLimits, Outcome, RequestLog};
use crate::rate_limit::RateLimiter;
use crate::server_client::issued::facts_of;
use crate::sync::SyncStatus;
use crate::testing::{Authority, entry, id};

mod attestation;
mod freshness;
mod jwt;

const LONG: Duration = Duration::from_secs(10);

struct Fixture {
    context: Arc<Context>,
    health: Health,
    authority: Authority,
    path: std::path::PathBuf,
    requests: watch::Sender<Option<mpsc::Sender<JwtRequest>>>,
    status: watch::Sender<SyncStatus>,
    _tasks: Tasks,
    _directory: tempfile::TempDir,
}

#[derive(Default)]
struct FixtureOptions {
    allow_unauthenticated_verifiers: bool,
    limits: RateLimits,
    starting: bool,
    jwt_svid_cache_hit_timeout: Option<Duration>,
    /// The process without a rate.
    exempt: u32,
    telemetry: Telemetry,
    /// Beside `unix`.
    attestor: Option<Arc<dyn plugin::workload_attestor::WorkloadAttestor>>,
}

/// The selector that this test process has for certain.
fn own_uid() -> String {
    format!("unix:uid:{}", nix::unistd::getuid())
}

/// Serves on a socket of its own.
async fn serve(context: &Arc<Context>) -> (Health, std::path::PathBuf, Tasks, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("public/api.sock");
    let socket = Socket::bind(&path, daemon::socket::Modes::PUBLIC).unwrap();
    let tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let (health, [service]) = Health::new().await;
    let router = Router::new(vec![
        Box::new(WorkloadApi::new(Arc::clone(context))),
        service,
        Box::new(Reflection::default()),
    ]);
    tokio::spawn(socket.serve(router, budgets(&Telemetry::default()).0, shutdown));
    (health, path, tasks, directory)
}

async fn start(options: FixtureOptions) -> Fixture {
    let trust_domain = crate::testing::trust_domain();
    let authority = Authority::new(&trust_domain);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let cache_options = CacheOptions {
        trust_domain: trust_domain.clone(),
        x509_svids: 100,
        jwt_svids: 100,
        rotation: RotationRule::default(),
    };
    let cache = Cache::new(cache_options, Arc::clone(&clock), Arc::new(SystemRandom));
    let cache = Arc::new(cache);
    let mut bundle = Bundle::new(trust_domain.clone());
    bundle.add_x509_authority(authority.certificate.clone());
    bundle.jwt_authorities.push(spiffe::bundle::JwtAuthority {
        key_id: "k1".into(),
        public_key: authority.key.public_key().clone(),
        expires_at: None,
        tainted: false,
        source: spiffe::bundle::AuthoritySource::Unknown,
    });
    cache.apply(Delta {
        bundles: vec![bundle],
        ..Delta::default()
    });
    if !options.starting {
        cache.set_ready();
    }
    let unix = plugin::builtin::workload_attestor::UnixAttestor::new(
        plugin::builtin::workload_attestor::UnixConfig::default(),
        Arc::clone(&clock),
    );
    let attestors = options
        .attestor
        .into_iter()
        .chain([Arc::new(unix) as Arc<dyn plugin::workload_attestor::WorkloadAttestor>])
        .collect();
    let (requests_in, requests) = watch::channel(None);
    let (status_in, status) = watch::channel(SyncStatus::default());
    let gate = Arc::new(Gate {
        cache,
        attestors: Attestors::new(attestors).always_fresh(),
        limiter: RateLimiter::new(options.limits),
        status,
        clock: Arc::clone(&clock),
        random: Arc::new(SystemRandom),
        options: GateOptions {
            log_selectors: Vec::new(),
            exempt: options.exempt,
        },
        log_limits: LogLimits::default(),
        requests: RequestLog::default(),
        telemetry: options.telemetry,
        searched: std::sync::Mutex::default(),
    });
    let context = Arc::new(Context {
        trust_domain,
        gate,
        jwt: requests,
        jwt_turns: jwt_turns(),
        clock,
        config: WorkloadApiConfig {
            allow_unauthenticated_verifiers: options.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: vec!["jti".into()],
            jwt_svid_cache_hit_timeout: options.jwt_svid_cache_hit_timeout,
        },
    });
    let (health, path, tasks, directory) = serve(&context).await;
    Fixture {
        context,
        health,
        authority,
        path,
        requests: requests_in,
        status: status_in,
        _tasks: tasks,
        _directory: directory,
    }
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request
        .metadata_mut()
        .insert(SECURITY_HEADER, "true".parse().unwrap());
    request
}

impl Fixture {
    async fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(proto::channel::connect_uds(&self.path).await.unwrap())
    }

    fn entry(&self, entry_id: &str, path: &str) -> Arc<Entry> {
        let made = entry(entry_id, path, &[&own_uid()]);
        self.context.gate.cache.apply(Delta {
            entries: vec![Arc::clone(&made)],
            ..Delta::default()
        });
        made
    }

    fn issue(&self, entry: &Entry) {
        self.context.gate.cache.restore(vec![self.svid(entry)]);
    }

    fn svid(&self, entry: &Entry) -> IssuedSvid {
        let key = KeyPair::generate(KeyType::EcP256).unwrap();
        let leaf =
            self.authority
                .issue(&entry.spiffe_id, key.public_key(), Duration::from_secs(600));
        let facts = facts_of(std::slice::from_ref(&leaf)).unwrap();
        IssuedSvid {
            entry_id: Arc::clone(&entry.id),
            revision: entry.revision_number,
            spiffe_id: facts.spiffe_id,
            chain: vec![Arc::from(leaf.der())],
            key: Arc::new(spiffe::secret::Secret::new(
                key.to_pkcs8_der().unwrap().expose().clone(),
            )),
            not_before: facts.not_before,
            not_after: facts.not_after,
            issuers: facts.issuers,
        }
    }

    /// The server answers.
    fn connected(&self) {
        self.status.send_modify(|status| status.connected = true);
    }

    fn remove(&self, entry_id: &str) {
        self.context.gate.cache.apply(Delta {
            removed_entries: vec![entry_id.into()],
            ..Delta::default()
        });
    }

    fn token(&self, subject: &SpiffeId, audience: &[&str], kid: &str) -> String {
        let now = unix_seconds(SystemClock.now());
        let mut extra = serde_json::Map::new();
        extra.insert("color".into(), "red".into());
        let claims = JwtClaims {
            subject: subject.clone(),
            audience: audience.iter().map(|a| (*a).to_owned()).collect(),
            issued_at: now,
            expires_at: now + 300,
            issuer: None,
            jti: Some("j".into()),
            extra,
        };
        sign_jwt_svid(&claims, kid, JwsAlgorithm::ES256, &self.authority.key)
            .now_or_never()
            .unwrap()
            .unwrap()
            .expose()
            .clone()
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(LONG, stream.message())
        .await
        .expect("in time")?;
    Ok(message.expect("a message, not the end"))
}

#[tokio::test]
async fn we_04_requests_without_exactly_one_true_header_are_refused_on_every_method() {
    let f = start(FixtureOptions::default()).await;
    f.entry("a", "/a");
    let mut client = f.client().await;
    let headers: [&[&str]; 7] = [
        &[],
        &["True"],
        &["TRUE"],
        &["1"],
        &["false"],
        &[""],
        &["true", "true"],
    ];
    for values in headers {
        fn with<T>(message: T, values: &[&str]) -> tonic::Request<T> {
            let mut request = tonic::Request::new(message);
            for value in values {
                request
                    .metadata_mut()
                    .append(SECURITY_HEADER, value.parse().unwrap());
            }
            request
        }
        let outcomes = [
            client
                .fetch_x509svid(with(X509svidRequest {}, values))
                .await
                .err(),
            client
                .fetch_x509_bundles(with(X509BundlesRequest {}, values))
                .await
                .err(),
            client
                .fetch_jwt_bundles(with(JwtBundlesRequest {}, values))
                .await
                .err(),
            client
                .fetch_jwtsvid(with(JwtsvidRequest::default(), values))
                .await
                .err(),
            client
                .validate_jwtsvid(with(ValidateJwtsvidRequest::default(), values))
                .await
                .err(),
            client
                .fetch_witsvid(with(WitsvidRequest::default(), values))
                .await
                .err(),
            client
                .fetch_wit_bundles(with(WitBundlesRequest {}, values))
                .await
                .err(),
        ];
        for status in outcomes {
            let status = status.unwrap();
            assert_eq!(
                (status.code(), status.message()),
                (
                    Code::InvalidArgument,
                    "security header missing from request"
                ),
                "{values:?}"
            );
        }
    }
}

#[tokio::test]
async fn wa_28_wit_calls_and_unknown_methods_are_unimplemented() {
    let f = start(FixtureOptions::default()).await;
    let mut client = f.client().await;
    assert_eq!(
        client
            .fetch_witsvid(request(WitsvidRequest::default()))
            .await
            .unwrap_err()
            .code(),
        Code::Unimplemented
    );
    assert_eq!(
        client
            .fetch_wit_bundles(request(WitBundlesRequest {}))
            .await
            .unwrap_err()
            .code(),
        Code::Unimplemented
    );
}

#[tokio::test]
async fn we_12_a_caller_without_entries_is_denied_in_the_words_that_sdks_look_for() {
    let f = start(FixtureOptions::default()).await;
    let mut client = f.client().await;
    let statuses = [
        client
            .fetch_x509svid(request(X509svidRequest {}))
            .await
            .err(),
        client
            .fetch_x509_bundles(request(X509BundlesRequest {}))
            .await
            .err(),
        client
            .fetch_jwt_bundles(request(JwtBundlesRequest {}))
            .await
            .err(),
        client
            .fetch_jwtsvid(request(JwtsvidRequest {
                audience: vec!["a".into()],
                spiffe_id: String::new(),
            }))
            .await
            .err(),
    ];
    for status in statuses {
        let status = status.unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(
            status.message().starts_with("no identity issued"),
            "{}",
            status.message()
        );
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "PLA-2101");
        assert!(status.message().contains(&info.metadata["request"]));
    }
}

#[tokio::test]
async fn a_refused_call_can_be_looked_up_by_the_request_id_that_the_caller_received() {
    let f = start(FixtureOptions::default()).await;
    f.context.gate.cache.apply(Delta {
        entries: vec![entry("near", "/near", &[&own_uid(), "unix:path:/other"])],
        ..Delta::default()
    });
    let mut client = f.client().await;
    let refused = client.fetch_x509svid(request(X509svidRequest {})).await;
    let info = refused.unwrap_err().get_details_error_info().unwrap();
    let record = f.context.gate.requests.find(&info.metadata["request"]);
    let record = record.unwrap();
    assert_eq!(record.outcome, Outcome::NoEntry);
    assert_eq!(record.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(record.pid, i32::try_from(std::process::id()).unwrap());
    let own = record.selectors.iter().map(ToString::to_string);
    assert!(own.into_iter().any(|selector| selector == own_uid()));
    let nearest = record.nearest.unwrap();
    assert_eq!((&*nearest.id, nearest.lacks), ("near", 1));
}

#[tokio::test]
async fn wa_04_wa_12_wa_16_a_stream_gets_every_state_and_ends_when_the_entry_goes() {
    let f = start(FixtureOptions::default()).await;
    let (a, b) = (f.entry("a", "/a"), f.entry("b", "/b"));
    f.issue(&a);
    f.issue(&b);
    let mut stream = f
        .client()
        .await
        .fetch_x509svid(request(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(
        first
            .svids
            .iter()
            .map(|svid| svid.spiffe_id.as_str())
            .collect::<Vec<_>>(),
        ["spiffe://example.org/a", "spiffe://example.org/b"]
    );
    f.issue(&b);
    let second = next(&mut stream).await.unwrap();
    assert_eq!(first.svids[0], second.svids[0]);
    assert_ne!(first.svids[1].x509_svid_key, second.svids[1].x509_svid_key);
    f.remove("a");
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
    f.remove("b");
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().starts_with("no identity issued"));
}

#[tokio::test]
async fn wa_05_the_first_message_waits_for_the_server_and_then_comes_at_once() {
    let f = start(FixtureOptions::default()).await;
    let a = f.entry("a", "/a");
    let client = f.client().await;
    let waiting = tokio::spawn(async move {
        client
            .clone()
            .fetch_x509svid(request(X509svidRequest {}))
            .await
    });
    tokio::time::timeout(LONG, f.context.gate.cache.wanting())
        .await
        .unwrap();
    assert_eq!(f.context.gate.cache.take_wanted(10).len(), 1);
    f.issue(&a);
    let mut stream = tokio::time::timeout(LONG, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
}

#[tokio::test]
async fn wa_19_unauthenticated_verifiers_get_the_own_bundle_only_where_allowed() {
    let f = start(FixtureOptions {
        allow_unauthenticated_verifiers: true,
        ..FixtureOptions::default()
    })
    .await;
    let mut client = f.client().await;
    let mut x509 = client
        .fetch_x509_bundles(request(X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        next(&mut x509)
            .await
            .unwrap()
            .bundles
            .keys()
            .collect::<Vec<_>>(),
        ["spiffe://example.org"]
    );
    let mut jwt = client
        .fetch_jwt_bundles(request(JwtBundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut jwt).await.unwrap().bundles.len(), 1);
    assert_eq!(
        client
            .fetch_x509svid(request(X509svidRequest {}))
            .await
            .unwrap_err()
            .code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn a_bundle_stream_is_silent_about_svids() {
    let f = start(FixtureOptions::default()).await;
    let a = f.entry("a", "/a");
    let mut stream = f
        .client()
        .await
        .fetch_x509_bundles(request(X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await.unwrap();
    assert!(
        f.context.gate.cache.take_wanted(1).is_empty(),
        "bundles cause no issuance"
    );
    f.issue(&a);
    f.issue(&a);
    assert!(stream.message().now_or_never().is_none());
    let mut changed = Bundle::new(crate::testing::trust_domain());
    changed.add_x509_authority(Authority::new(&changed.trust_domain.clone()).certificate);
    f.context.gate.cache.apply(Delta {
        bundles: vec![changed],
        ..Delta::default()
    });
    next(&mut stream).await.unwrap();
}

#[tokio::test]
async fn over_its_rate_a_caller_is_told_to_wait() {
    let totals = Arc::new(Totals::default());
    let limits = RateLimits {
        fetch_x509_bundles: 1,
        ..RateLimits::default()
    };
    let f = start(FixtureOptions {
        limits,
        telemetry: Telemetry::new(Arc::<Totals>::clone(&totals)),
        ..FixtureOptions::default()
    })
    .await;
    f.entry("a", "/a");
    let mut client = f.client().await;
    let mut ask = async || {
        client
            .fetch_x509_bundles(request(X509BundlesRequest {}))
            .await
    };
    ask().await.unwrap();
    let refused = ask().await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "rate limit exceeded; try again later")
    );
    let limited = crate::metrics::RATE_LIMITED.metric();
    assert_eq!(totals.count(limited, &["FetchX509Bundles"]), 1);
    let asked = WORKLOAD_API_CALL.metric();
    assert_eq!(totals.calls(asked, &["FetchX509Bundles"], "Unavailable"), 1);
}

#[tokio::test]
async fn the_agents_own_process_has_no_rate() {
    let limits = RateLimits {
        fetch_x509_bundles: 1,
        ..RateLimits::default()
    };
    let f = start(FixtureOptions {
        limits,
        exempt: std::process::id(),
        ..FixtureOptions::default()
    })
    .await;
    f.entry("a", "/a");
    let mut client = f.client().await;
    for _ in 0..5 {
        client
            .fetch_x509_bundles(request(X509BundlesRequest {}))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn wa_33_a_starting_agent_is_unavailable() {
    let f = start(FixtureOptions {
        starting: true,
        ..FixtureOptions::default()
    })
    .await;
    let mut client = f.client().await;
    let status = client
        .fetch_x509svid(request(X509svidRequest {}))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

/// The client of these tests sends no credentials and speaks no TLS: the header is all.
#[tokio::test]
async fn we_05_we_09_a_plain_caller_is_known_by_its_socket_alone() {
    let f = start(FixtureOptions::default()).await;
    let entry = f.entry("a", "/a");
    f.issue(&entry);
    let mut stream = f
        .client()
        .await
        .fetch_x509svid(request(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.unwrap().svids.len(), 1);
}

#[test]
fn wa_02_we_14_the_standard_service_has_its_methods_and_no_others() {
    use prost::Message as _;
    let files = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let services = files.file.iter().flat_map(|file| &file.service);
    let standard: Vec<_> = services
        .filter(|service| service.name() == "SpiffeWorkloadAPI")
        .collect();
    assert_eq!(standard.len(), 1);
    let methods: Vec<_> = standard[0]
        .method
        .iter()
        .map(|method| method.name())
        .collect();
    assert_eq!(
        methods,
        [
            "FetchX509SVID",
            "FetchX509Bundles",
            "FetchJWTSVID",
            "FetchJWTBundles",
            "ValidateJWTSVID",
            "FetchWITSVID",
            "FetchWITBundles"
        ]
    );
}

#[tokio::test]
async fn we_15_health_and_reflection_need_no_header() {
    let f = start(FixtureOptions::default()).await;
    let channel = proto::channel::connect_uds(&f.path).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let check = tonic_health::pb::HealthCheckRequest {
        service: String::new(),
    };
    assert_eq!(
        health
            .check(check.clone())
            .await
            .unwrap()
            .into_inner()
            .status,
        2
    );
    f.health.serving(true).await;
    assert_eq!(health.check(check).await.unwrap().into_inner().status, 1);
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let list = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(list))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) =
        next(&mut answers).await.unwrap().message_response
    else {
        panic!("a list")
    };
    let mut names: Vec<_> = services
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "SpiffeWorkloadAPI",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection"
        ]
    );
}
