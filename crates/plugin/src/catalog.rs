//! Which plugins a daemon's configuration asks for, and their making.
//!
//! [`ServerPlugins`] and [`AgentPlugins`] are what the `plugins` block says, checked without touching anything outside;
//! their `open_…` methods then make the plugins. A plugin of SPIRE's that is not there yet is refused by its name.

mod known;
mod plugin_block;

use std::path::PathBuf;
use std::sync::Arc;

use spiffe::clock::Clock;
use spiffe::random::Random;
use spiffe::trust_domain::TrustDomain;

use crate::builtin::key_manager::{DiskKeyManager, MemoryKeyManager};
use crate::builtin::upstream_authority::{DiskUpstreamAuthority, DiskUpstreamConfig};
use crate::builtin::workload_attestor::{UnixAttestor, UnixConfig};
use crate::key_manager::KeyManager;
use crate::upstream_authority::UpstreamAuthority;
use crate::workload_attestor::WorkloadAttestor;
use config::Section;
use config::fault::{Code, Fault};
use known::Side;
use plugin_block::{Entry, entries};

const DATA_STORE: &str = "DataStore";

/// Where keys are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyManagerPlugin {
    Memory,
    /// The file.
    Disk(PathBuf),
}

/// How a node proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeAttestorPlugin {
    JoinToken,
}

/// Who signs the server's authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamAuthorityPlugin {
    Disk(DiskUpstreamConfig),
}

/// Who looks at workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkloadAttestorPlugin {
    Unix(UnixConfig),
}

/// The server's plugins.
#[derive(Debug, Clone)]
pub struct ServerPlugins {
    pub key_manager: KeyManagerPlugin,
    pub upstream_authority: Option<UpstreamAuthorityPlugin>,
    /// Each at most once.
    pub node_attestors: Vec<NodeAttestorPlugin>,
}

/// The agent's plugins.
#[derive(Debug, Clone)]
pub struct AgentPlugins {
    pub key_manager: KeyManagerPlugin,
    pub node_attestor: NodeAttestorPlugin,
    /// At least one.
    pub workload_attestors: Vec<WorkloadAttestorPlugin>,
}

impl ServerPlugins {
    /// `plugin_data` of the DataStore `sql`, for the server to read; nothing when it is not configured, which
    /// [`Self::from_section`] reports.
    pub fn data_store(root: &Section) -> Option<Section> {
        let types: Vec<_> = Side::Server
            .types()
            .iter()
            .filter(|one| one.name == DATA_STORE)
            .collect();
        let entries = entries(&root.section("plugins")?, Side::Server, &types);
        let entry = entries.iter().find(|entry| entry.is("sql"))?;
        Some(entry.data().clone())
    }

    /// Reads the `plugins` block at the top level of a server's configuration. What is wrong is recorded on the
    /// document; nothing comes back when something that is needed is missing.
    pub fn from_section(root: &Section) -> Option<Self> {
        let plugins = plugins_block(root)?;
        let entries = all_entries(&plugins, Side::Server);
        let data_store = exactly_one(&plugins, &entries, DATA_STORE, "sql");
        let key_manager = exactly_one(&plugins, &entries, "KeyManager", "disk");
        let upstream = at_most_one(&plugins, &entries, "UpstreamAuthority");
        let node_attestors =
            of_type(&entries, "NodeAttestor").filter(|entry| entry.is("join_token"));
        let node_attestors = node_attestors
            .map(|_| NodeAttestorPlugin::JoinToken)
            .collect();
        let asked_for_upstream = upstream.is_some();
        let upstream_authority = upstream
            .filter(|entry| entry.is("disk"))
            .and_then(|entry| DiskUpstreamConfig::read(entry.data()))
            .map(UpstreamAuthorityPlugin::Disk);
        let key_manager = key_manager.and_then(|entry| match entry.name.as_str() {
            "memory" => Some(KeyManagerPlugin::Memory),
            _ => {
                let path = entry
                    .data()
                    .required_string("keys_path", "/var/lib/plastron/server/keys.json");
                Some(KeyManagerPlugin::Disk(path?.into()))
            }
        });
        data_store?;
        if asked_for_upstream && upstream_authority.is_none() {
            return None;
        }
        Some(Self {
            key_manager: key_manager?,
            upstream_authority,
            node_attestors,
        })
    }

    /// Reads the key file, if there is one. Blocks.
    pub fn open_key_manager(&self) -> Result<Arc<dyn KeyManager>, Fault> {
        open_key_manager(&self.key_manager)
    }

    /// Reads the upstream authority's files, if there is one. Blocks.
    pub fn open_upstream_authority(
        &self,
        trust_domain: &TrustDomain,
        clock: &Arc<dyn Clock>,
        random: &Arc<dyn Random>,
    ) -> Result<Option<Arc<dyn UpstreamAuthority>>, Fault> {
        let Some(UpstreamAuthorityPlugin::Disk(config)) = &self.upstream_authority else {
            return Ok(None);
        };
        let (clock, random) = (Arc::clone(clock), Arc::clone(random));
        match DiskUpstreamAuthority::open(config.clone(), trust_domain.clone(), clock, random) {
            Ok(authority) => Ok(Some(Arc::new(authority))),
            Err(error) => Err(error.to_fault()),
        }
    }
}

impl AgentPlugins {
    /// Reads the `plugins` block at the top level of an agent's configuration; see [`ServerPlugins::from_section`].
    pub fn from_section(root: &Section) -> Option<Self> {
        let plugins = plugins_block(root)?;
        let entries = all_entries(&plugins, Side::Agent);
        let key_manager = exactly_one(&plugins, &entries, "KeyManager", "disk");
        let node_attestor = exactly_one(&plugins, &entries, "NodeAttestor", "join_token");
        let attestors: Vec<&Entry> = of_type(&entries, "WorkloadAttestor").collect();
        if attestors.is_empty() {
            let what = "at least one WorkloadAttestor plugin is needed";
            plugins.fault_here(
                Code::PluginCount,
                what,
                "add WorkloadAttestor \"unix\" { plugin_data {} }",
            );
        }
        let workload_attestors: Vec<_> = attestors
            .iter()
            .filter(|entry| entry.is("unix"))
            .map(|entry| WorkloadAttestorPlugin::Unix(UnixConfig::read(entry.data())))
            .collect();
        let key_manager = key_manager.and_then(|entry| match entry.name.as_str() {
            "memory" => Some(KeyManagerPlugin::Memory),
            _ => {
                let directory = entry
                    .data()
                    .required_string("directory", "/var/lib/plastron/agent");
                Some(KeyManagerPlugin::Disk(
                    PathBuf::from(directory?).join("keys.json"),
                ))
            }
        });
        node_attestor.filter(|_| !workload_attestors.is_empty())?;
        Some(Self {
            key_manager: key_manager?,
            node_attestor: NodeAttestorPlugin::JoinToken,
            workload_attestors,
        })
    }

    /// Reads the key file, if there is one. Blocks.
    pub fn open_key_manager(&self) -> Result<Arc<dyn KeyManager>, Fault> {
        open_key_manager(&self.key_manager)
    }

    /// Makes the workload attestors, in the order of the configuration.
    pub fn open_workload_attestors(
        &self,
        clock: &Arc<dyn Clock>,
    ) -> Vec<Arc<dyn WorkloadAttestor>> {
        let make = |plugin: &WorkloadAttestorPlugin| match plugin {
            WorkloadAttestorPlugin::Unix(config) => {
                Arc::new(UnixAttestor::new(*config, Arc::clone(clock))) as Arc<dyn WorkloadAttestor>
            }
        };
        self.workload_attestors.iter().map(make).collect()
    }
}

fn open_key_manager(plugin: &KeyManagerPlugin) -> Result<Arc<dyn KeyManager>, Fault> {
    match plugin {
        KeyManagerPlugin::Memory => Ok(Arc::new(MemoryKeyManager::new())),
        KeyManagerPlugin::Disk(path) => match DiskKeyManager::open(path) {
            Ok(manager) => Ok(Arc::new(manager)),
            Err(error) => Err(error.to_fault()),
        },
    }
}

fn plugins_block(root: &Section) -> Option<Section> {
    let block = root.section("plugins");
    if block.is_none() && !root.has("plugins") {
        root.fault_here(
            Code::MissingKey,
            "the block plugins is missing",
            "add plugins { KeyManager \"memory\" { } … }",
        );
    }
    block
}

/// All plugins; those without keys of their own are opened too, so that a key that is there is told as unknown. The
/// data store is the server's to open.
fn all_entries(plugins: &Section, side: Side) -> Vec<Entry> {
    let types: Vec<_> = side.types().iter().collect();
    let entries = entries(plugins, side, &types);
    for entry in entries
        .iter()
        .filter(|entry| entry.supported && entry.plugin_type != DATA_STORE)
    {
        entry.data();
    }
    entries
}

fn of_type<'a>(entries: &'a [Entry], plugin_type: &'static str) -> impl Iterator<Item = &'a Entry> {
    entries
        .iter()
        .filter(move |entry| entry.plugin_type == plugin_type)
}

fn exactly_one<'a>(
    plugins: &Section,
    entries: &'a [Entry],
    plugin_type: &'static str,
    example: &str,
) -> Option<&'a Entry> {
    let found = at_most_one(plugins, entries, plugin_type);
    if found.is_none() {
        let what = format!("exactly one {plugin_type} plugin is needed");
        plugins.fault_here(
            Code::PluginCount,
            what,
            format!("add {plugin_type} {example:?} {{ plugin_data {{ … }} }}"),
        );
    }
    found.filter(|entry| entry.supported)
}

/// Those that are refused for another reason count too: their absence is not what is wrong.
fn at_most_one<'a>(
    plugins: &Section,
    entries: &'a [Entry],
    plugin_type: &'static str,
) -> Option<&'a Entry> {
    let mut found = of_type(entries, plugin_type);
    let first = found.next();
    for more in found {
        let what = format!("only one {plugin_type} plugin may be configured");
        plugins.fault_on(
            &more.label,
            Code::PluginCount,
            what,
            "take one out, or give it enabled = false",
        );
    }
    first
}

#[cfg(test)]
mod tests;
