//! The table of plugins: the kinds of each daemon with the number that may be configured, the plugins that are built in,
//! and the names that only SPIRE 1.15 has.
//!
//! To add a plugin is to add a row here and take its name out of `not_yet`.

use std::sync::Arc;

use config::Section;

use crate::builtin::key_manager::{self, DiskKeyManager, MemoryKeyManager};
use crate::builtin::node_attestor::{JoinTokenAttestor, JoinTokenProof};
use crate::builtin::upstream_authority::{DiskUpstreamAuthority, DiskUpstreamConfig};
use crate::builtin::workload_attestor::{UnixAttestor, UnixConfig};
use crate::key_manager::KeyManager;
use crate::lifecycle::{Open, PluginSpec};
use crate::node_attestor::{agent, server};
use crate::upstream_authority::UpstreamAuthority;
use crate::workload_attestor::WorkloadAttestor;

/// A daemon and the plugin kinds of its configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    /// `server` or `agent`.
    pub(super) name: &'static str,
    pub(super) kinds: &'static [Kind],
}

/// A kind of plugin.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) count: Count,
    /// The built-in plugins.
    pub(super) built_in: &'static [&'static str],
    /// Those of SPIRE that are not.
    pub(super) not_yet: &'static [&'static str],
}

/// How many plugins of a kind may be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Any,
    AtMostOne,
    AtLeastOne(Example),
    ExactlyOne(Example),
}

/// What to add when there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Example(pub(super) &'static str);

/// What opens a plugin; nothing when its configuration has a fault.
type Opener<T> = Option<Arc<dyn Open<T>>>;

/// A built-in plugin that is a `T`.
pub(super) struct Row<T: ?Sized> {
    pub(super) name: &'static str,
    /// Reads and checks `plugin_data`, and touches nothing outside.
    pub(super) read: fn(&Section) -> Opener<T>,
}

macro_rules! row {
    ($name:literal, $plugin:ty as $kind:ty, $read:expr) => {
        Row::<$kind> {
            name: $name,
            read: |data| {
                Some(Arc::new(PluginSpec::<$plugin, $kind> {
                    config: $read(data)?,
                    read: $read,
                    as_kind: |plugin| plugin,
                }))
            },
        }
    };
}

/// A plugin without keys of its own.
pub(super) fn no_keys(_data: &Section) -> Option<()> {
    Some(())
}

pub(super) const SERVER_KEY_MANAGERS: &[Row<dyn KeyManager>] = &[
    row!(
        "disk",
        DiskKeyManager as dyn KeyManager,
        key_manager::read_keys_path
    ),
    row!("memory", MemoryKeyManager as dyn KeyManager, no_keys),
];

pub(super) const AGENT_KEY_MANAGERS: &[Row<dyn KeyManager>] = &[
    row!(
        "disk",
        DiskKeyManager as dyn KeyManager,
        key_manager::read_directory
    ),
    row!("memory", MemoryKeyManager as dyn KeyManager, no_keys),
];

pub(super) const SERVER_NODE_ATTESTORS: &[Row<dyn server::NodeAttestor>] = &[row!(
    "join_token",
    JoinTokenAttestor as dyn server::NodeAttestor,
    no_keys
)];

pub(super) const AGENT_NODE_ATTESTORS: &[Row<dyn agent::NodeAttestor>] = &[row!(
    "join_token",
    JoinTokenProof as dyn agent::NodeAttestor,
    no_keys
)];

pub(super) const UPSTREAM_AUTHORITIES: &[Row<dyn UpstreamAuthority>] = &[row!(
    "disk",
    DiskUpstreamAuthority as dyn UpstreamAuthority,
    DiskUpstreamConfig::read
)];

pub(super) const WORKLOAD_ATTESTORS: &[Row<dyn WorkloadAttestor>] = &[row!(
    "unix",
    UnixAttestor as dyn WorkloadAttestor,
    |data: &Section| Some(UnixConfig::read(data))
)];

/// The kind that the server reads and opens itself.
pub(super) const DATA_STORE: &str = "DataStore";

pub(super) const SERVER: Side = Side {
    name: "server",
    kinds: &[
        Kind {
            name: DATA_STORE,
            count: Count::ExactlyOne(Example("sql")),
            built_in: &["sql"],
            not_yet: &[],
        },
        Kind {
            name: "KeyManager",
            count: Count::ExactlyOne(Example("disk")),
            built_in: &["disk", "memory"],
            not_yet: &["aws_kms", "azure_key_vault", "gcp_kms", "hashicorp_vault"],
        },
        Kind {
            name: "NodeAttestor",
            count: Count::Any,
            built_in: &["join_token"],
            not_yet: NODE_ATTESTORS_NOT_YET,
        },
        Kind {
            name: "UpstreamAuthority",
            count: Count::AtMostOne,
            built_in: &["disk"],
            not_yet: &[
                "aws_pca",
                "awssecret",
                "cert-manager",
                "ejbca",
                "gcp_cas",
                "spire",
                "vault",
            ],
        },
        Kind {
            name: "Notifier",
            count: Count::Any,
            built_in: &[],
            not_yet: &["gcs_bundle", "k8sbundle"],
        },
        Kind {
            name: "BundlePublisher",
            count: Count::Any,
            built_in: &[],
            not_yet: &[
                "aws_rolesanywhere_trustanchor",
                "aws_s3",
                "azure_blob",
                "gcp_cloudstorage",
                "k8s_configmap",
            ],
        },
        Kind {
            name: "CredentialComposer",
            count: Count::Any,
            built_in: &[],
            not_yet: &["uniqueid"],
        },
    ],
};

pub(super) const AGENT: Side = Side {
    name: "agent",
    kinds: &[
        Kind {
            name: "KeyManager",
            count: Count::ExactlyOne(Example("disk")),
            built_in: &["disk", "memory"],
            not_yet: &[],
        },
        Kind {
            name: "NodeAttestor",
            count: Count::ExactlyOne(Example("join_token")),
            built_in: &["join_token"],
            not_yet: NODE_ATTESTORS_NOT_YET,
        },
        Kind {
            name: "WorkloadAttestor",
            count: Count::AtLeastOne(Example("unix")),
            built_in: &["unix"],
            not_yet: &["docker", "k8s", "slurm", "systemd", "windows"],
        },
        Kind {
            name: "SVIDStore",
            count: Count::Any,
            built_in: &[],
            not_yet: &["aws_secretsmanager", "gcp_secretmanager"],
        },
    ],
};

const NODE_ATTESTORS_NOT_YET: &[&str] = &[
    "aws_iid",
    "azure_imds",
    "azure_msi",
    "gcp_iit",
    "http_challenge",
    "k8s_psat",
    "sshpop",
    "tpm_devid",
    "x509pop",
];
