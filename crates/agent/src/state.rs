//! What survives a restart: `agent-data.json` in SPIRE's format, so that data directories can be exchanged with
//! SPIRE's in both directions, and beside it the last good state in a file of our own ([`last_good`]).
//!
//! Private keys of the node are not here: the key manager keeps them.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::fault::{Code, Fault};
use serde::{Deserialize, Serialize};
use spiffe::x509::Certificate;
use zeroize::Zeroizing;

pub(crate) mod last_good;
pub(crate) mod removal;

/// SPIRE: storage, dataPath.
const AGENT_DATA: &str = "agent-data.json";
/// No honest state file is larger.
const MAX_BYTES: u64 = 64 << 20;
/// How Go writes a time that was never set.
const GO_ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// The node's SVID and its trust bundle.
#[derive(Debug, Clone, Default)]
pub(crate) struct AgentData {
    pub(crate) svid: Vec<Certificate>,
    pub(crate) bundle: Vec<Certificate>,
    pub(crate) reattestable: bool,
    bootstrap: Bootstrap,
}

/// SPIRE's bookkeeping of bootstraps: kept as it was found.
#[derive(Debug, Clone)]
struct Bootstrap {
    usage: i64,
    start_time: String,
    connection_attempts: i64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            usage: 0,
            start_time: GO_ZERO_TIME.to_owned(),
            connection_attempts: 0,
        }
    }
}

/// The shape on disk. SPIRE: storageJSON; each certificate is the base64 of its PEM text.
#[derive(Debug, Serialize, Deserialize)]
struct AgentDataJson {
    #[serde(default)]
    svid: Option<Vec<String>>,
    #[serde(default)]
    bundle: Option<Vec<String>>,
    #[serde(default)]
    reattestable: bool,
    #[serde(default)]
    bootstrap_use: i64,
    #[serde(default)]
    bootstrap_start_time: String,
    #[serde(default)]
    connection_attempts: i64,
}

/// The directory that the agent keeps its state in.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Opens the directory and makes it when it is not there, for the owner alone.
    ///
    /// # Errors
    /// PLA-1305 when it can't be made or isn't a directory.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let unusable = |because: &dyn std::fmt::Display| {
            Fault::new(
                Code::DataDirUnusable,
                format!("data directory {} cannot be used", path.display()),
            )
            .because(because)
            .hint("set agent.data_dir to a directory that the agent may write to")
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| unusable(&error))?;
        if !fs::metadata(path)
            .map_err(|error| unusable(&error))?
            .is_dir()
        {
            return Err(unusable(&"it is not a directory"));
        }
        Ok(Self(path.to_owned()))
    }

    /// The node's SVID and bundle, empty when nothing was ever stored.
    ///
    /// # Errors
    /// PLA-1115 when the file is damaged or unreadable.
    pub(crate) fn load(&self) -> Result<AgentData, Fault> {
        let path = self.file(AGENT_DATA);
        let damaged = |because: &dyn std::fmt::Display| {
            Fault::new(
                Code::AgentDataInvalid,
                "the agent's stored identity cannot be read",
            )
            .at(path.display().to_string())
            .because(because)
            .hint(format!(
                "move {} away and join again with a new token",
                path.display()
            ))
        };
        let Some(text) = read_bounded(&path).map_err(|error| damaged(&error))? else {
            return Ok(AgentData::default());
        };
        let json: AgentDataJson = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
        Ok(AgentData {
            svid: certificates(json.svid).map_err(|error| damaged(&error))?,
            bundle: certificates(json.bundle).map_err(|error| damaged(&error))?,
            reattestable: json.reattestable,
            bootstrap: Bootstrap {
                usage: json.bootstrap_use,
                start_time: json.bootstrap_start_time,
                connection_attempts: json.connection_attempts,
            },
        })
    }

    /// Replaces the stored SVID and bundle, all or nothing.
    ///
    /// # Errors
    /// PLA-1305 or PLA-1315 when the file can't be written.
    pub(crate) fn store(&self, data: &AgentData) -> Result<(), Fault> {
        let encode = |certificates: &[Certificate]| {
            (!certificates.is_empty()).then(|| {
                certificates
                    .iter()
                    .map(|certificate| BASE64.encode(certificate.to_pem()))
                    .collect()
            })
        };
        let start_time = &data.bootstrap.start_time;
        let json = AgentDataJson {
            svid: encode(&data.svid),
            bundle: encode(&data.bundle),
            reattestable: data.reattestable,
            bootstrap_use: data.bootstrap.usage,
            bootstrap_start_time: if start_time.is_empty() {
                GO_ZERO_TIME.to_owned()
            } else {
                start_time.clone()
            },
            connection_attempts: data.bootstrap.connection_attempts,
        };
        let text = serde_json::to_vec(&json).map_err(|error| {
            Fault::new(Code::Internal, "the agent's state cannot be encoded").because(error)
        })?;
        self.write(AGENT_DATA, &text)
    }

    /// Forgets the node's SVID and the last good state; the bundle stays. SPIRE: DeleteSVID.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub(crate) fn forget_identity(&self) -> Result<(), Fault> {
        self.remove(last_good::FILE);
        let mut data = self.load()?;
        data.svid.clear();
        data.reattestable = false;
        self.store(&data)
    }

    /// The file of the node's SVID and trust bundle.
    pub(crate) fn agent_data_path(&self) -> PathBuf {
        self.file(AGENT_DATA)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Removes a file that may not be there. A failure is logged.
    fn remove(&self, name: &str) {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, file = %path.display(), "file cannot be removed");
            }
            _ => {}
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let path = self.file(name);
        config::private_file::replace(&path, bytes).map_err(|error| {
            let code = if error.kind() == std::io::ErrorKind::StorageFull {
                Code::DiskFull
            } else {
                Code::DataDirUnusable
            };
            Fault::new(code, format!("{} cannot be written", path.display()))
                .because(error)
                .hint(format!("df -h {0}; ls -ld {0}", self.0.display()))
        })
    }
}

/// The file's bytes, nothing when it does not exist.
fn read_bounded(path: &Path) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    match config::private_file::read(path, MAX_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn certificates(encoded: Option<Vec<String>>) -> Result<Vec<Certificate>, String> {
    let mut found = Vec::new();
    for text in encoded.unwrap_or_default() {
        let pem = BASE64.decode(text).map_err(|error| error.to_string())?;
        let pem = String::from_utf8(pem).map_err(|error| error.to_string())?;
        found.extend(Certificate::parse_pem_bundle(&pem).map_err(|error| error.to_string())?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
