//! The `agent` and `health_checks` blocks, key by key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::Section;
use config::fault::Code;
use plugin::catalog::AgentPlugins;
use plugin::join_token::TokenSource;
use spiffe::key::KeyType;
use spiffe::secret::Secret;
use spiffe::trust_domain::TrustDomain;

use super::{
    CacheConfig, Config, GateConfig, HealthConfig, LogConfig, NodeConfig, Overrides, RateLimits,
    ServerConfig, SyncConfig, WorkloadApiConfig, WorkloadKeys, trust,
};

/// SPIRE: DefaultAgentSocketPath.
const DEFAULT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// SPIRE: DefaultX509SVIDCacheMaxSize, DefaultJWTSVIDCacheMaxSize.
const DEFAULT_CACHE: usize = 1000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads the `agent` block. Nothing comes back when a fault was recorded that leaves a hole.
pub(super) fn read(
    root: &Section,
    flags: &Overrides,
    health: Option<HealthConfig>,
    plugins: Option<AgentPlugins>,
) -> Option<Config> {
    if !root.has("agent") {
        no_agent_block(root);
        return None;
    }
    read_block(&root.section("agent")?, flags, health, plugins)
}

/// Reads the block itself, which is empty where there is no file.
pub(super) fn read_block(
    agent: &Section,
    flags: &Overrides,
    health: Option<HealthConfig>,
    plugins: Option<AgentPlugins>,
) -> Option<Config> {
    refuse_unsupported(agent);
    rebootstrap(agent, flags);
    sds(agent, flags);
    let experimental = agent.section_or_empty("experimental");
    let node = node(agent, &experimental, flags);
    let (socket_path, admin_socket_path) = sockets(agent, flags);
    let log = LogConfig::read(agent, &flags.log);
    let data_dir = flags
        .data_dir
        .clone()
        .or(path(agent, "data_dir"))
        .or_else(|| flags.default_data_dir.clone())
        .unwrap_or_else(|| PathBuf::from("."));
    let config = Config {
        data_dir,
        socket_path,
        admin_socket_path,
        join_token: join_token(agent, flags),
        sync: SyncConfig {
            interval: sync_interval(&experimental),
            workload_key_type: workload_key_type(agent),
        },
        cache: CacheConfig {
            x509_svids: cache_size(agent, "x509_svid_cache_max_size"),
            jwt_svids: cache_size(agent, "jwt_svid_cache_max_size"),
            availability_target: availability_target(agent),
        },
        gate: GateConfig {
            rate_limits: rate_limits(&experimental),
            log_selectors: agent.strings("log_selectors").unwrap_or_default(),
        },
        workload_api: workload_api(agent, &experimental, flags),
        health,
        node: node?,
        log: log?,
        plugins: plugins?,
    };
    Some(config)
}

fn node(agent: &Section, experimental: &Section, flags: &Overrides) -> Option<NodeConfig> {
    let bootstrap = trust::read(agent, flags);
    let trust_domain = flags.trust_domain.as_deref();
    let trust_domain = agent.required_parsed(
        "trust_domain",
        trust_domain,
        "example.org",
        TrustDomain::parse,
    );
    let address = flags.server_address.as_deref();
    let address = agent.required_of("server_address", address, "10.0.0.5");
    let port = server_port(agent, flags);
    let require_pq_kem = experimental.boolean("require_pq_kem").unwrap_or(false);
    let workload_keys = match agent.boolean("persist_workload_svids") {
        Some(true) => WorkloadKeys::OnDisk,
        _ => WorkloadKeys::InMemory,
    };
    Some(NodeConfig {
        trust_domain: trust_domain?,
        server: ServerConfig {
            address: address?,
            port: port?,
            require_pq_kem,
        },
        bootstrap: bootstrap?,
        workload_keys,
    })
}

/// None when it is disabled; its keys are read and checked then too.
fn workload_api(
    agent: &Section,
    experimental: &Section,
    flags: &Overrides,
) -> Option<WorkloadApiConfig> {
    let allow = agent.boolean("allow_unauthenticated_verifiers");
    let claims = agent.strings("allowed_foreign_jwt_claims");
    let config = WorkloadApiConfig {
        allow_unauthenticated_verifiers: flags
            .allow_unauthenticated_verifiers
            .or(allow)
            .unwrap_or(false),
        allowed_foreign_jwt_claims: claims.unwrap_or_default(),
        jwt_svid_cache_hit_timeout: cache_hit_timeout(experimental),
    };
    let disabled = agent.boolean("disable_workload_api");
    let disabled = flags.disable_workload_api.or(disabled).unwrap_or(false);
    (!disabled).then_some(config)
}

/// Keys that SPIRE has and this agent has not yet.
fn refuse_unsupported(agent: &Section) {
    agent.unsupported(&[
        ("sds", "Envoy's SDS is not served yet"),
        (
            "authorized_delegates",
            "the delegated identity API is not served yet",
        ),
        ("profiling_enabled", ""),
        ("profiling_port", ""),
        ("profiling_freq", ""),
        ("profiling_names", ""),
    ]);
    let experimental = agent.section_or_empty("experimental");
    experimental.unsupported(&[
        ("broker", "the SPIFFE Broker API is not served yet"),
        ("feature_flags", ""),
        ("named_pipe_name", "named pipes exist on Windows only"),
        ("admin_named_pipe_name", "named pipes exist on Windows only"),
    ]);
    // The sync calls are used with every server that lacks our stream, so only switching them off can't be had.
    if experimental.boolean("use_sync_authorized_entries") == Some(false) {
        experimental.fault(
            Code::NotYetSupported,
            "use_sync_authorized_entries",
            "agent.experimental.use_sync_authorized_entries = false is not yet supported",
            "remove the key",
        );
    }
}

const REBOOTSTRAP_MODES: [&str; 3] = ["never", "auto", "always"];

/// `rebootstrap_mode` and `rebootstrap_delay`: read and checked, and only the default can be had.
fn rebootstrap(agent: &Section, flags: &Overrides) {
    let written = agent.one_of("rebootstrap_mode", &REBOOTSTRAP_MODES);
    let mode = match flags.rebootstrap_mode.as_deref() {
        Some(mode) if !REBOOTSTRAP_MODES.contains(&mode) => {
            return agent.fault_of_value(
                "rebootstrap_mode",
                true,
                format!("rebootstrap_mode is \"{mode}\""),
                "one of never, auto, always",
            );
        }
        flag => flag.or(written),
    };
    if let Some(mode) = mode.filter(|mode| *mode != "never") {
        agent.fault(
            Code::NotYetSupported,
            "rebootstrap_mode",
            format!("agent.rebootstrap_mode \"{mode}\" is not yet supported"),
            "a node whose server was re-created has to be joined again; leave it at \"never\"",
        );
    }
    let written = agent.duration("rebootstrap_delay").is_some();
    if let Some(delay) = &flags.rebootstrap_delay
        && config::parse_duration(delay).is_err()
    {
        agent.fault_of_value(
            "rebootstrap_delay",
            true,
            format!("rebootstrap_delay is \"{delay}\""),
            "a duration such as 10m",
        );
    }
    if (written || flags.rebootstrap_delay.is_some()) && mode.is_none_or(|mode| mode == "never") {
        tracing::debug!("rebootstrap_delay has no effect while rebootstrap_mode is never");
    }
}

/// SDS is not served, so only `disable_sds_api = true` is supported.
fn sds(agent: &Section, flags: &Overrides) {
    let written = agent.boolean("disable_sds_api");
    if flags.disable_sds_api.or(written) == Some(false) {
        agent.fault(
            Code::NotYetSupported,
            "disable_sds_api",
            "agent.disable_sds_api = false is not yet supported",
            "Envoy's SDS is not served yet",
        );
    }
}

fn server_port(agent: &Section, flags: &Overrides) -> Option<u16> {
    let written = agent.integer_between("server_port", 1, i64::from(u16::MAX));
    if let Some(port) = flags.server_port {
        return Some(port);
    }
    if !agent.has("server_port") {
        agent.fault(
            Code::MissingKey,
            "server_port",
            "agent.server_port is missing",
            "server_port = 8081",
        );
    }
    written.and_then(|port| u16::try_from(port).ok())
}

fn path(agent: &Section, key: &str) -> Option<PathBuf> {
    agent.non_empty_string(key).map(PathBuf::from)
}

/// Where the Workload API and the admin API are served.
fn sockets(agent: &Section, flags: &Overrides) -> (PathBuf, Option<PathBuf>) {
    let socket = flags
        .socket_path
        .clone()
        .or(path(agent, "socket_path"))
        .or_else(|| flags.default_socket_path.clone())
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let default_admin = flags
        .default_admin_socket_path
        .clone()
        .filter(|_path| flags.default_socket_path.as_ref() == Some(&socket));
    let admin = admin_socket(agent, &socket).or(default_admin);
    (socket, admin)
}

/// SPIRE: the administration socket must not lie where workloads may reach it.
fn admin_socket(agent: &Section, socket: &Path) -> Option<PathBuf> {
    let admin = path(agent, "admin_socket_path")?;
    let public = socket.parent().unwrap_or(Path::new("/"));
    if admin.starts_with(public) {
        agent.fault_at(
            "admin_socket_path",
            "the admin socket cannot be in the same directory or a subdirectory as the Workload API socket",
            format!("choose a directory outside of {}", public.display()),
        );
    }
    Some(admin)
}

/// A file is read when the node attests: once it has, the file may be gone.
fn join_token(agent: &Section, flags: &Overrides) -> Option<TokenSource> {
    let written = agent.non_empty_string("join_token");
    let written_file = path(agent, "join_token_file");
    if written.is_some() && written_file.is_some() {
        agent.fault(
            Code::ConflictingKeys,
            "join_token_file",
            "only one of join_token and join_token_file may be set",
            "remove one",
        );
    }
    let token = flags.join_token.clone().filter(|token| !token.is_empty());
    let file = flags.join_token_file.clone();
    match (token, file, written, written_file) {
        (Some(token), ..) | (None, None, Some(token), _) => {
            Some(TokenSource::Given(Secret::new(token)))
        }
        (None, Some(file), ..) | (None, None, None, Some(file)) => Some(TokenSource::File(file)),
        (None, None, None, None) => None,
    }
}

fn no_agent_block(root: &Section) {
    let (what, hint) = if root.raw("server").is_some() {
        (
            "this is a server's configuration: it has a block server and no block agent",
            "give the agent its own file, or start the server with this one",
        )
    } else {
        (
            "the agent block is missing",
            "agent { trust_domain = \"example.org\" … }",
        )
    };
    root.fault_here(Code::MissingKey, what, hint);
}

fn workload_key_type(agent: &Section) -> KeyType {
    match agent.one_of(
        "workload_x509_svid_key_type",
        &["ec-p256", "ec-p384", "rsa-2048"],
    ) {
        Some("rsa-2048") => KeyType::Rsa2048,
        Some("ec-p384") => KeyType::EcP384,
        _ => KeyType::EcP256,
    }
}

fn availability_target(agent: &Section) -> Option<Duration> {
    let target = agent.duration("availability_target")?;
    if target < DAY {
        agent.fault_at(
            "availability_target",
            "availability_target must be at least 24h",
            "availability_target = \"24h\"",
        );
    }
    Some(target)
}

fn cache_size(agent: &Section, key: &str) -> usize {
    match agent.integer_between(key, 0, 10_000_000) {
        // SPIRE: 0 stands for the default.
        None | Some(0) => DEFAULT_CACHE,
        Some(size) => usize::try_from(size).unwrap_or(DEFAULT_CACHE),
    }
}

fn sync_interval(experimental: &Section) -> Duration {
    match experimental.duration("sync_interval") {
        Some(Duration::ZERO) => {
            experimental.fault_at(
                "sync_interval",
                "sync_interval must be longer than 0",
                "sync_interval = \"5s\"",
            );
            DEFAULT_SYNC_INTERVAL
        }
        Some(interval) => interval,
        None => DEFAULT_SYNC_INTERVAL,
    }
}

fn cache_hit_timeout(experimental: &Section) -> Option<Duration> {
    let timeout = experimental.duration("jwt_svid_cache_hit_timeout")?;
    // SPIRE: the same bounds.
    if timeout < Duration::from_secs(5) || timeout >= Duration::from_secs(30) {
        experimental.fault_at(
            "jwt_svid_cache_hit_timeout",
            "jwt_svid_cache_hit_timeout must be at least 5s and less than 30s",
            "jwt_svid_cache_hit_timeout = \"5s\"",
        );
    }
    Some(timeout)
}

fn rate_limits(experimental: &Section) -> RateLimits {
    let limits = experimental.section_or_empty("ratelimit");
    limits.unsupported(&[
        ("stream_secrets", "Envoy's SDS is not served yet"),
        ("fetch_secrets", "Envoy's SDS is not served yet"),
    ]);
    let limit = |key| {
        limits
            .integer_between(key, 0, i64::from(u32::MAX))
            .and_then(|limit| u32::try_from(limit).ok())
            .unwrap_or(0)
    };
    RateLimits {
        fetch_x509_svid: limit("fetch_x509_svid"),
        fetch_jwt_svid: limit("fetch_jwt_svid"),
        fetch_x509_bundles: limit("fetch_x509_bundles"),
        fetch_jwt_bundles: limit("fetch_jwt_bundles"),
    }
}
