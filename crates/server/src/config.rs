//! The server's configuration: what the file and the flags say, checked once and complete.
//!
//! [`Config::from_document`] reads every key of SPIRE's `server.conf` (SPIRE: server run.go): a key is used, or refused
//! by name and position, or, where SPIRE tunes a mechanism that is not needed here, answered with a notice. Past it
//! nothing is optional that has a default. It opens no file and no socket.

mod data_store;
mod lifetimes;
mod server_section;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use config::fault::Faults;
use config::{Document, Section};
use plugin::catalog::ServerPlugins;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use crate::ca::{IssuanceConfig, LostKeys};
use crate::datastore::{DatastoreConfig, Environment};

/// The server's configuration, validated.
#[derive(Debug, Clone)]
pub struct Config {
    pub trust_domain: TrustDomain,
    /// For what the server keeps on disk beyond the files that plugins name.
    pub data_dir: PathBuf,
    /// A name or an IP address, without brackets.
    pub bind_address: String,
    /// 0: the kernel chooses.
    pub bind_port: u16,
    /// The administration socket.
    pub socket_path: PathBuf,
    /// Callers who are administrators by their ID, of this trust domain or a federated one.
    pub admin_ids: Vec<SpiffeId>,
    pub issuance: IssuanceConfig,
    pub audit_log: bool,
    pub log: LogConfig,
    pub rate_limits: RateLimitConfig,
    pub pruning: Option<PruningConfig>,
    /// An agent's own ID becomes one of its selectors, as `spiffe_id:<id>`.
    pub agent_id_as_selector: bool,
    /// Refuse key exchanges that are not post-quantum.
    pub require_pq_kem: bool,
    pub health: Option<HealthConfig>,
    pub datastore: DatastoreConfig,
    pub plugins: ServerPlugins,
    /// Set by the command line alone, for one start.
    pub lost_keys: LostKeys,
    /// What an operator should know about this configuration; to be logged as warnings at the start.
    pub notices: Vec<String>,
}

/// Which calls are limited in their rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitConfig {
    pub attestation: bool,
    pub signing: bool,
}

/// When attested nodes that are gone are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruningConfig {
    /// How long their SVID must have been expired.
    pub expired_for: Duration,
    /// Also nodes that cannot attest again by themselves.
    pub tofu_nodes: bool,
}

pub use daemon::http_probes::HealthConfig;
pub use daemon::log_config::{LogConfig, LogFlags};
pub use plugin::catalog::KeyStorage;

/// Flags of the command line; each wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub bind_address: Option<String>,
    pub server_port: Option<u16>,
    pub data_dir: Option<PathBuf>,
    pub log: LogFlags,
    pub trust_domain: Option<String>,
    pub socket_path: Option<PathBuf>,
    /// What to do when keys of active authorities are lost.
    pub lost_keys: LostKeys,
    /// Not a flag: where the socket is when neither file nor flag says; SPIRE's path when absent.
    pub default_socket_path: Option<PathBuf>,
}

impl Config {
    /// Reads the configuration, all of its faults at once.
    ///
    /// # Errors
    /// Every fault found, with its position: PLA-12xx.
    pub fn from_document(document: &Document, overrides: &Overrides) -> Result<Self, Faults> {
        let root = document.root();
        refuse_telemetry(&root);
        let health = HealthConfig::read(&root);
        let plugins = ServerPlugins::from_section(&root);
        let datastore = ServerPlugins::data_store(&root)
            .and_then(|data| data_store::read(&data, Environment::of_process()));
        let config = server_section::read(&root, overrides);
        document.check()?;
        let complete = config.zip(plugins).zip(datastore).map(
            |((mut config, plugins), (datastore, notices))| {
                config.notices.extend(notices);
                let mut config = config.with(health, plugins, datastore);
                config.lost_keys = overrides.lost_keys;
                config
            },
        );
        complete.ok_or_else(|| Faults(document.faults()))
    }

    /// The configuration of a server that has no file: what the flags say, and defaults.
    ///
    /// # Errors
    /// Every fault found: PLA-12xx.
    pub fn without_file(
        overrides: &Overrides,
        keys: KeyStorage,
        datastore: DatastoreConfig,
    ) -> Result<Self, Faults> {
        let document = Document::without_file("the command line");
        let block = document.root().section_or_empty("server");
        let config = server_section::read_block(&block, overrides);
        document.check()?;
        let config = config.ok_or_else(|| Faults(document.faults()))?;
        Ok(Self {
            lost_keys: overrides.lost_keys,
            ..config.with(None, ServerPlugins::without_file(keys), datastore)
        })
    }
}

/// Metrics are not there yet. An empty block asks for nothing.
fn refuse_telemetry(root: &Section) {
    const SINKS: [&str; 5] = ["Prometheus", "DogStatsd", "Statsd", "M3", "InMem"];
    const GENERAL: [&str; 8] = [
        "MetricPrefix",
        "EnableTrustDomainLabel",
        "EnableHostnameLabel",
        "AllowedPrefixes",
        "BlockedPrefixes",
        "AllowedLabels",
        "BlockedLabels",
        "ServiceName",
    ];
    let Some(telemetry) = root.section("telemetry") else {
        return;
    };
    for key in SINKS.into_iter().chain(GENERAL) {
        telemetry.unsupported(&[(key, "metrics are not exported yet; remove the block")]);
    }
}

/// IPv6 addresses may be written in brackets (SPIRE: the same).
fn without_brackets(address: &str) -> String {
    address.trim_matches(['[', ']']).to_owned()
}
