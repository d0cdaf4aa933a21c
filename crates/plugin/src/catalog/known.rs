//! The names of plugins: those that are here, and those that only SPIRE 1.15 has.

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Agent,
}

/// A plugin type with the names of its built-in plugins.
pub(super) struct PluginType {
    pub(super) name: &'static str,
    pub(super) supported: &'static [&'static str],
    pub(super) not_yet: &'static [&'static str],
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    pub(super) fn types(self) -> &'static [PluginType] {
        match self {
            Self::Server => SERVER,
            Self::Agent => AGENT,
        }
    }
}

const SERVER: &[PluginType] = &[
    PluginType {
        name: "DataStore",
        supported: &["sql"],
        not_yet: &[],
    },
    PluginType {
        name: "KeyManager",
        supported: &["disk", "memory"],
        not_yet: &["aws_kms", "azure_key_vault", "gcp_kms", "hashicorp_vault"],
    },
    PluginType {
        name: "NodeAttestor",
        supported: &["join_token"],
        not_yet: &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
            "x509pop",
        ],
    },
    PluginType {
        name: "UpstreamAuthority",
        supported: &["disk"],
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
    PluginType {
        name: "Notifier",
        supported: &[],
        not_yet: &["gcs_bundle", "k8sbundle"],
    },
    PluginType {
        name: "BundlePublisher",
        supported: &[],
        not_yet: &[
            "aws_rolesanywhere_trustanchor",
            "aws_s3",
            "azure_blob",
            "gcp_cloudstorage",
            "k8s_configmap",
        ],
    },
    PluginType {
        name: "CredentialComposer",
        supported: &[],
        not_yet: &["uniqueid"],
    },
];

const AGENT: &[PluginType] = &[
    PluginType {
        name: "KeyManager",
        supported: &["disk", "memory"],
        not_yet: &[],
    },
    PluginType {
        name: "NodeAttestor",
        supported: &["join_token"],
        not_yet: &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
            "x509pop",
        ],
    },
    PluginType {
        name: "WorkloadAttestor",
        supported: &["unix"],
        not_yet: &["docker", "k8s", "slurm", "systemd", "windows"],
    },
    PluginType {
        name: "SVIDStore",
        supported: &[],
        not_yet: &["aws_secretsmanager", "gcp_secretmanager"],
    },
];
