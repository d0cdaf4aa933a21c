//! The plugins of a daemon that has no configuration file.

use std::path::PathBuf;

use super::{AgentPlugins, ServerPlugins, table, with_join_token};
use crate::builtin::key_manager::{DiskKeyManager, MemoryKeyManager};
use crate::builtin::node_attestor::{JOIN_TOKEN, JoinTokenProof};
use crate::builtin::workload_attestor::{UnixAttestor, UnixConfig};
use crate::key_manager::KeyManager;
use crate::lifecycle::{Configured, PluginSpec};
use crate::node_attestor::agent;
use crate::workload_attestor::WorkloadAttestor;

/// Where keys are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStorage {
    Memory,
    File(PathBuf),
}

impl ServerPlugins {
    /// Nodes attest with join tokens, and there is no upstream authority.
    pub fn without_file(keys: KeyStorage) -> Self {
        Self {
            key_manager: key_manager(keys),
            upstream_authority: None,
            node_attestors: with_join_token(Vec::new()),
        }
    }
}

impl AgentPlugins {
    /// The node attests with a join token, and workloads are known by what the system says of their process.
    pub fn without_file(keys: KeyStorage) -> Self {
        let join_token = PluginSpec::<JoinTokenProof, dyn agent::NodeAttestor> {
            config: (),
            read: table::no_keys,
            as_kind: |plugin| plugin,
        };
        let unix = PluginSpec::<UnixAttestor, dyn WorkloadAttestor> {
            config: UnixConfig {
                discover_workload_path: true,
                ..UnixConfig::default()
            },
            read: |data| Some(UnixConfig::read(data)),
            as_kind: |plugin| plugin,
        };
        Self {
            key_manager: key_manager(keys),
            node_attestor: Configured::of(JOIN_TOKEN, join_token),
            workload_attestors: vec![Configured::of("unix", unix)],
        }
    }
}

fn key_manager(keys: KeyStorage) -> Configured<dyn KeyManager> {
    match keys {
        KeyStorage::Memory => Configured::of(
            "memory",
            PluginSpec::<MemoryKeyManager, dyn KeyManager> {
                config: (),
                read: table::no_keys,
                as_kind: |plugin| plugin,
            },
        ),
        // It has no file that it could be read from again.
        KeyStorage::File(path) => Configured::of(
            "disk",
            PluginSpec::<DiskKeyManager, dyn KeyManager> {
                config: path,
                read: |_data| None,
                as_kind: |plugin| plugin,
            },
        ),
    }
}
