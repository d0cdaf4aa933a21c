//! The `server` block, key by key.

use std::path::PathBuf;
use std::time::Duration;

use config::Section;
use config::fault::Code;
use plugin::catalog::ServerPlugins;
use spiffe::id::SpiffeId;
use spiffe::key::KeyType;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Subject;

use super::{
    Config, HealthConfig, LogConfig, Overrides, PruningConfig, RateLimitConfig, lifetimes,
    without_brackets,
};
use crate::ca::{IssuanceConfig, LostKeys};
use crate::datastore::{DEFAULT_STALENESS, DatastoreConfig, SMALLEST_STALENESS};

/// SPIRE: DefaultServerSocketPath.
const DEFAULT_SOCKET: &str = "/tmp/spire-server/private/api.sock";
const DEFAULT_ADDRESS: &str = "0.0.0.0";
const DEFAULT_PORT: u16 = 8081;
/// SPIRE: credtemplate's defaults.
const DEFAULT_CA_TTL: Duration = Duration::from_secs(24 * 3_600);
const DEFAULT_X509_SVID_TTL: Duration = Duration::from_secs(3_600);
const DEFAULT_JWT_SVID_TTL: Duration = Duration::from_secs(300);
/// SPIRE warns at this length, since a SPIFFE ID in some places may have no more than 255 bytes.
const LONG_TRUST_DOMAIN: usize = 255;
const KEY_TYPES: [&str; 4] = ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"];

/// The block without what other blocks say.
pub(super) struct ServerSection {
    trust_domain: TrustDomain,
    data_dir: PathBuf,
    bind_address: String,
    bind_port: u16,
    socket_path: PathBuf,
    admin_ids: Vec<SpiffeId>,
    issuance: IssuanceConfig,
    audit_log: bool,
    log: LogConfig,
    rate_limits: RateLimitConfig,
    pruning: Option<PruningConfig>,
    agent_id_as_selector: bool,
    require_pq_kem: bool,
    max_staleness: Duration,
    pub(super) notices: Vec<String>,
}

impl ServerSection {
    pub(super) fn with(
        self,
        health: Option<HealthConfig>,
        plugins: ServerPlugins,
        datastore: DatastoreConfig,
    ) -> Config {
        Config {
            trust_domain: self.trust_domain,
            data_dir: self.data_dir,
            bind_address: self.bind_address,
            bind_port: self.bind_port,
            socket_path: self.socket_path,
            admin_ids: self.admin_ids,
            audit_log: self.audit_log,
            issuance: self.issuance,
            log: self.log,
            rate_limits: self.rate_limits,
            pruning: self.pruning,
            agent_id_as_selector: self.agent_id_as_selector,
            require_pq_kem: self.require_pq_kem,
            health,
            datastore: DatastoreConfig {
                max_staleness: self.max_staleness,
                ..datastore
            },
            plugins,
            lost_keys: LostKeys::Refuse,
            notices: self.notices,
        }
    }
}

/// Reads the block. Nothing comes back when a fault was recorded that leaves a hole.
pub(super) fn read(root: &Section, flags: &Overrides) -> Option<ServerSection> {
    if !root.has("server") && root.has("agent") {
        root.raw("agent");
        root.fault_here(
            Code::MissingKey,
            "this is an agent's configuration: it has a block agent and no block server",
            "give the server its own file, or start the agent with this one",
        );
        return None;
    }
    if !root.has("server") {
        let hint =
            "server { trust_domain = \"example.org\" data_dir = \"/var/lib/plastron/server\" }";
        root.fault_here(Code::MissingKey, "the block server is missing", hint);
        return None;
    }
    read_block(&root.section("server")?, flags)
}

/// Reads the block itself, which is empty where there is no file.
pub(super) fn read_block(server: &Section, flags: &Overrides) -> Option<ServerSection> {
    let mut notices = Vec::new();
    refuse_unsupported(server);
    server.replaced(&[
        (
            "default_svid_ttl",
            "use default_x509_svid_ttl and default_jwt_svid_ttl",
        ),
        ("registration_uds_path", "use socket_path"),
        ("wit_key_type", "it belongs in experimental"),
    ]);
    let experimental = experimental(server, &mut notices);
    let trust_domain = trust_domain(server, flags, &mut notices);
    let data_dir = data_dir(server, flags);
    let bind_address = server
        .non_empty_string("bind_address")
        .unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
    let bind_port = server.port("bind_port").unwrap_or(DEFAULT_PORT);
    let socket_path = server
        .non_empty_string("socket_path")
        .map(PathBuf::from)
        .or_else(|| flags.default_socket_path.clone())
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let admin_ids = admin_ids(server);
    let log = LogConfig::read(server, &flags.log);
    let rate_limits = rate_limits(server);
    let pruning = pruning(server, &mut notices);
    let max_staleness = max_staleness(server, &mut notices);
    let issuance = issuance(server, &mut notices);
    let audit_log = server.boolean("audit_log_enabled").unwrap_or(false);
    let agent_id_as_selector = experimental
        .boolean("agent_spiffe_id_as_selector")
        .unwrap_or(false);
    let require_pq_kem = experimental.boolean("require_pq_kem").unwrap_or(false);
    // All has been read, so that what is missing now is not the only fault reported.
    let trust_domain = trust_domain?;
    Some(ServerSection {
        issuance: issuance(trust_domain.clone()),
        trust_domain,
        data_dir: data_dir?,
        bind_address: without_brackets(flags.bind_address.as_deref().unwrap_or(&bind_address)),
        bind_port: flags.server_port.unwrap_or(bind_port),
        socket_path: flags.socket_path.clone().unwrap_or(socket_path),
        admin_ids,
        audit_log,
        log: log?,
        rate_limits,
        pruning,
        agent_id_as_selector,
        require_pq_kem,
        max_staleness,
        notices,
    })
}

/// Keys that SPIRE has and this server has not yet.
fn refuse_unsupported(server: &Section) {
    server.unsupported(&[
        ("profiling_enabled", ""),
        ("profiling_port", ""),
        ("profiling_freq", ""),
        ("profiling_names", ""),
        (
            "proxy_protocol_trusted_cidrs",
            "let the load balancer keep the client's address, or pass TCP through",
        ),
    ]);
    if let Some(federation) = server.section("federation") {
        federation.unsupported(&[
            (
                "bundle_endpoint",
                "this server's bundle is not served over HTTPS yet",
            ),
            (
                "federates_with",
                "set a foreign bundle with `plastron server bundle set`",
            ),
        ]);
    }
}

fn experimental(server: &Section, notices: &mut Vec<String>) -> Section {
    let experimental = server.section_or_empty("experimental");
    experimental.unsupported(&[
        (
            "auth_opa_policy_engine",
            "calls are authorized by the built-in rules",
        ),
        ("wit_key_type", "WIT-SVIDs are not issued yet"),
        ("wit_issuer", "WIT-SVIDs are not issued yet"),
        ("named_pipe_name", "named pipes exist on Windows only"),
    ]);
    // They tune how SPIRE's caches catch up with its database. Here changes are pushed.
    for key in [
        "cache_reload_interval",
        "full_cache_reload_interval",
        "prune_events_older_than",
        "event_timeout",
        "sql_transaction_timeout",
    ] {
        if experimental.duration(key).is_some() {
            notices.push(format!(
                "experimental.{key} has no effect: there is no cache to reload"
            ));
        }
    }
    if experimental.has("event_timeout") && experimental.has("sql_transaction_timeout") {
        let what =
            "experimental.event_timeout and its former name sql_transaction_timeout are both set";
        experimental.fault(
            Code::ConflictingKeys,
            "sql_transaction_timeout",
            what,
            "take it out",
        );
    }
    if experimental.boolean("events_based_cache").is_some() {
        notices.push(
            "experimental.events_based_cache has no effect: there is no cache to reload".to_owned(),
        );
    }
    for flag in experimental
        .located_strings("feature_flags")
        .unwrap_or_default()
    {
        match flag.value.as_str() {
            "i_am_a_test_flag" => {}
            "wit-svid" => {
                let what = "the feature flag \"wit-svid\" is not yet supported";
                experimental.fault_on(
                    &flag,
                    Code::NotYetSupported,
                    what,
                    "WIT-SVIDs are not issued yet",
                );
            }
            _ => experimental.fault_on(
                &flag,
                Code::InvalidValue,
                "there is no such feature flag",
                "",
            ),
        }
    }
    experimental
}

/// A value that must be in the file or among the flags.
fn trust_domain(
    server: &Section,
    flags: &Overrides,
    notices: &mut Vec<String>,
) -> Option<TrustDomain> {
    let flag = flags.trust_domain.as_deref();
    let trust_domain =
        server.required_parsed("trust_domain", flag, "example.org", TrustDomain::parse)?;
    if trust_domain.as_str().len() > LONG_TRUST_DOMAIN {
        notices.push(
            "trust_domain is longer than 255 bytes: other implementations may not accept it"
                .to_owned(),
        );
    }
    Some(trust_domain)
}

/// The directory of everything that the server keeps.
fn data_dir(server: &Section, flags: &Overrides) -> Option<PathBuf> {
    match &flags.data_dir {
        Some(directory) => {
            // The file's value counts as read though the flag wins.
            drop(server.string("data_dir"));
            Some(directory.clone())
        }
        None => server
            .required_string("data_dir", "/var/lib/plastron/server")
            .map(PathBuf::from),
    }
}

fn admin_ids(server: &Section) -> Vec<SpiffeId> {
    let mut ids = Vec::new();
    for text in server.located_strings("admin_ids").unwrap_or_default() {
        match SpiffeId::parse(&text.value) {
            Ok(id) if id.has_path() => ids.push(id),
            Ok(_) => server.fault_on(
                &text,
                Code::InvalidValue,
                "admin_ids: a trust domain is not an administrator",
                "name one identity, such as spiffe://example.org/admin",
            ),
            Err(error) => {
                let hint = "such as spiffe://example.org/admin";
                server.fault_on(
                    &text,
                    Code::InvalidValue,
                    format!("admin_ids: {error}"),
                    hint,
                );
            }
        }
    }
    ids
}

fn rate_limits(server: &Section) -> RateLimitConfig {
    let block = server.section_or_empty("ratelimit");
    RateLimitConfig {
        attestation: block.boolean("attestation").unwrap_or(true),
        signing: block.boolean("signing").unwrap_or(true),
    }
}

fn pruning(server: &Section, notices: &mut Vec<String>) -> Option<PruningConfig> {
    let tofu_nodes = server.boolean("prune_tofu_nodes").unwrap_or(false);
    if server
        .integer_between("prune_attested_nodes_batch_size", 0, i64::from(i32::MAX))
        .is_some()
    {
        notices.push(
            "prune_attested_nodes_batch_size has no effect: the size is chosen by the store"
                .to_owned(),
        );
    }
    let expired_for = server.duration("prune_attested_nodes_expired_for");
    if tofu_nodes && expired_for.is_none() && !server.has("prune_attested_nodes_expired_for") {
        notices.push(
            "prune_tofu_nodes has no effect without prune_attested_nodes_expired_for".to_owned(),
        );
    }
    Some(PruningConfig {
        expired_for: expired_for.filter(|after| !after.is_zero())?,
        tofu_nodes,
    })
}

/// How long agents are served while the state in memory cannot be confirmed with the database.
/// SPIRE: the age of its cached nodes, and 0 asks the database in every call. Here memory follows the database by itself,
/// so what is bounded is the time without it.
fn max_staleness(server: &Section, notices: &mut Vec<String>) -> Duration {
    let Some(asked) = server.duration("max_attested_node_info_staleness") else {
        return DEFAULT_STALENESS;
    };
    if asked < SMALLEST_STALENESS && !asked.is_zero() {
        notices.push(format!(
            "max_attested_node_info_staleness is {} s, the smallest bound that can be kept",
            SMALLEST_STALENESS.as_secs()
        ));
    }
    asked.max(SMALLEST_STALENESS)
}

/// Reads all of it even when the trust domain has a fault, so that this is not the only one reported.
fn issuance(
    server: &Section,
    notices: &mut Vec<String>,
) -> impl FnOnce(TrustDomain) -> IssuanceConfig {
    let ca_ttl = positive(server, "ca_ttl").unwrap_or(DEFAULT_CA_TTL);
    let x509_svid_ttl = positive(server, "default_x509_svid_ttl").unwrap_or(DEFAULT_X509_SVID_TTL);
    let jwt_svid_ttl = positive(server, "default_jwt_svid_ttl").unwrap_or(DEFAULT_JWT_SVID_TTL);
    let agent_ttl = positive(server, "agent_ttl");
    let checked = [
        ("default_x509_svid_ttl", Some(x509_svid_ttl)),
        ("default_jwt_svid_ttl", Some(jwt_svid_ttl)),
        ("agent_ttl", agent_ttl),
    ];
    for (name, ttl) in checked {
        notices.extend(ttl.and_then(|ttl| lifetimes::notice(name, ttl, ca_ttl)));
    }
    let ca_key_type = key_type(server, "ca_key_type");
    let jwt_key_type = key_type(server, "jwt_key_type");
    let ca_key_type = ca_key_type.unwrap_or(KeyType::EcP256);
    let ca_subject = ca_subject(server, notices);
    let jwt_issuer = server.non_empty_string("jwt_issuer");
    let jwt_svids = !server.boolean("disable_jwt_svids").unwrap_or(false);
    move |trust_domain| IssuanceConfig {
        trust_domain,
        ca_key_type,
        jwt_key_type: jwt_key_type.unwrap_or(ca_key_type),
        ca_subject,
        ca_ttl,
        agent_ttl: agent_ttl.unwrap_or(x509_svid_ttl),
        x509_svid_ttl,
        jwt_svid_ttl,
        jwt_issuer,
        jwt_svids,
    }
}

/// A lifetime in whole seconds; an empty text counts as missing.
fn positive(server: &Section, key: &str) -> Option<Duration> {
    if server.string(key).is_some_and(|text| text.is_empty()) {
        return None;
    }
    let duration = server.duration(key)?;
    if duration < Duration::from_secs(1) {
        server.fault_at(key, format!("{key} must be at least 1s"), "");
        return None;
    }
    Some(duration)
}

fn key_type(server: &Section, key: &str) -> Option<KeyType> {
    if server.string(key).is_some_and(|text| text.is_empty()) {
        return None;
    }
    server
        .one_of(key, &KEY_TYPES)
        .and_then(|name| KeyType::parse(name).ok())
}

/// SPIRE: a block with any value replaces the default as a whole.
fn ca_subject(server: &Section, notices: &mut Vec<String>) -> Subject {
    let default = Subject {
        country: vec!["US".to_owned()],
        organization: vec!["SPIFFE".to_owned()],
        ..Subject::default()
    };
    let Some(block) = server.section("ca_subject") else {
        return default;
    };
    let subject = Subject {
        country: block.strings("country").unwrap_or_default(),
        organization: block.strings("organization").unwrap_or_default(),
        common_name: block.non_empty_string("common_name"),
        ..Subject::default()
    };
    if subject.is_empty() {
        notices.push("ca_subject is set but empty; the default is used".to_owned());
        return default;
    }
    subject
}
