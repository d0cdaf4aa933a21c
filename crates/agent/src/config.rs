//! The agent's configuration: what the file and the flags say, checked once and complete.
//!
//! [`Config::from_document`] reads every key of SPIRE's `agent.conf` (SPIRE: agent run.go): a key is used, or refused by
//! name and position. Past it nothing is optional that has a default.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use config::Document;
use config::fault::Faults;
use plugin::catalog::AgentPlugins;
use plugin::join_token::TokenSource;
use spiffe::key::KeyType;
use spiffe::trust_domain::TrustDomain;

mod agent_section;
mod trust;

/// The agent's configuration, validated: a part for each component.
#[derive(Debug)]
pub struct Config {
    /// Where the node's SVID, bundle and last good state are kept.
    pub data_dir: PathBuf,
    /// The Workload API's socket, open to everybody.
    pub socket_path: PathBuf,
    /// The administration socket, for the owner and the group.
    pub admin_socket_path: Option<PathBuf>,
    pub node: NodeConfig,
    /// Where the token of a node that attests with one comes from.
    pub join_token: Option<TokenSource>,
    pub sync: SyncConfig,
    pub cache: CacheConfig,
    pub gate: GateConfig,
    /// None: the Workload API is not served.
    pub workload_api: Option<WorkloadApiConfig>,
    pub log: LogConfig,
    pub health: Option<HealthConfig>,
    pub plugins: AgentPlugins,
}

/// Which node this is, and how it finds and verifies its server.
#[derive(Debug)]
pub struct NodeConfig {
    pub trust_domain: TrustDomain,
    pub server: ServerConfig,
    pub bootstrap: BootstrapConfig,
    pub workload_keys: WorkloadKeys,
}

/// The server, as the agent reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// As written: an IPv6 address may be in brackets.
    pub address: String,
    pub port: u16,
    /// Refuse key exchanges that are not post-quantum.
    pub require_pq_kem: bool,
}

/// What the node authenticates its server with when it attests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapConfig {
    pub source: TrustSource,
    pub format: BundleFormat,
}

/// How the agent follows its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncConfig {
    /// How often a server without our stream is asked.
    pub interval: Duration,
    pub workload_key_type: KeyType,
}

/// How many SVIDs are held, and when they are renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    pub x509_svids: usize,
    pub jwt_svids: usize,
    /// Renew X509-SVIDs so early that at least this much life is left.
    pub availability_target: Option<Duration>,
}

/// What callers may ask for, and what of them is logged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateConfig {
    pub rate_limits: RateLimits,
    /// Prefixes of selectors that may be logged, such as `k8s:ns`.
    pub log_selectors: Vec<String>,
}

/// What the Workload API answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadApiConfig {
    /// Bundles of the agent's own trust domain are given to callers without an identity too.
    pub allow_unauthenticated_verifiers: bool,
    /// Claims that stay in the answer when a token of another trust domain is validated.
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// How long a caller waits for a new token while the cached one is still valid; half a second where nothing is set.
    pub jwt_svid_cache_hit_timeout: Option<Duration>,
}

/// Where the private keys of workloads may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkloadKeys {
    #[default]
    InMemory,
    /// Also in `data_dir`, so that a restart without a server serves the SVIDs: `persist_workload_svids`.
    OnDisk,
}

/// Where the bootstrap bundle comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSource {
    Path(PathBuf),
    /// Asked over TLS, or over a Unix socket without.
    Url {
        url: String,
        unix_socket: Option<PathBuf>,
    },
    /// The Workload API socket of an agent above.
    WorkloadApi(PathBuf),
    Insecure,
}

/// The form of the bootstrap bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleFormat {
    Pem,
    Spiffe,
}

pub use daemon::http_probes::HealthConfig;
pub use daemon::log_config::{LogConfig, LogFlags};
pub use plugin::catalog::KeyStorage;

/// Calls per second and set of selectors; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    pub fetch_x509_svid: u32,
    pub fetch_jwt_svid: u32,
    pub fetch_x509_bundles: u32,
    pub fetch_jwt_bundles: u32,
}

/// Flags of the command line; each wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    pub join_token: Option<String>,
    pub join_token_file: Option<PathBuf>,
    pub log: LogFlags,
    pub server_address: Option<String>,
    pub server_port: Option<u16>,
    pub socket_path: Option<PathBuf>,
    pub trust_bundle_path: Option<PathBuf>,
    pub trust_bundle_url: Option<String>,
    pub trust_bundle_format: Option<String>,
    pub trust_domain: Option<String>,
    pub insecure_bootstrap: Option<bool>,
    pub allow_unauthenticated_verifiers: Option<bool>,
    pub rebootstrap_mode: Option<String>,
    pub rebootstrap_delay: Option<String>,
    pub disable_workload_api: Option<bool>,
    pub disable_sds_api: Option<bool>,
    /// Not a flag: where the socket is when neither file nor flag says; SPIRE's path when absent.
    pub default_socket_path: Option<PathBuf>,
    /// Not a flag: the data directory when neither file nor flag names one; SPIRE's, the working directory, when absent.
    pub default_data_dir: Option<PathBuf>,
    /// Not a flag: where the admin socket is when the Workload API's is at its default and the file names neither;
    /// no admin socket when absent.
    pub default_admin_socket_path: Option<PathBuf>,
}

impl Config {
    /// Reads the configuration, all of its faults at once.
    ///
    /// # Errors
    /// Every fault found, with its position: PLA-12xx.
    pub fn from_document(document: &Document, overrides: &Overrides) -> Result<Self, Faults> {
        let root = document.root();
        root.unsupported(&[("telemetry", "metrics are not there yet; remove the block")]);
        let health = HealthConfig::read(&root);
        let plugins = AgentPlugins::from_section(&root);
        let config = agent_section::read(&root, overrides, health, plugins);
        document.check()?;
        config.ok_or_else(|| Faults(document.faults()))
    }

    /// The configuration of an agent that has no file: what the flags say, and defaults.
    ///
    /// # Errors
    /// Every fault found: PLA-12xx.
    pub fn without_file(overrides: &Overrides, keys: KeyStorage) -> Result<Self, Faults> {
        let plugins = AgentPlugins::without_file(keys);
        let document = Document::without_file("the command line");
        let block = document.root().section_or_empty("agent");
        let config = agent_section::read_block(&block, overrides, None, Some(plugins));
        document.check()?;
        config.ok_or_else(|| Faults(document.faults()))
    }
}

impl ServerConfig {
    /// The server's name or address, an IPv6 address without the brackets that it may be written with.
    pub fn host(&self) -> &str {
        self.address
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .filter(|host| host.parse::<Ipv6Addr>().is_ok())
            .unwrap_or(&self.address)
    }

    /// `host:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self.host().parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host(), self.port),
        }
    }
}

#[cfg(test)]
mod tests;
