//! Why the node has no identity any more, so that a restart can say it. The file is ours; SPIRE ignores it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use spiffe::clock::{from_unix, unix_seconds};
use spiffe::id::SpiffeId;

use super::{StateDir, read_bounded};
use config::fault::{Code, Fault};

const FILE: &str = "plastron-identity-removed.json";

/// What the server said that cost the node its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    Banned,
    /// The server does not know the node any more.
    MustReattest,
}

/// An identity that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) agent_id: SpiffeId,
    pub(crate) reason: Reason,
    pub(crate) at: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Json {
    agent_id: SpiffeId,
    reason: Reason,
    at: i64,
}

impl StateDir {
    /// The last removal, if no identity came after it. A file that cannot be read says nothing.
    pub(crate) fn removal(&self) -> Option<Removal> {
        let path = self.file(FILE);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "cannot read why the node's identity was removed");
                return None;
            }
        };
        let json: Json = serde_json::from_slice(&bytes)
            .inspect_err(|error| {
                tracing::warn!(%error, file = %path.display(), "cannot read why the node's identity was removed");
            })
            .ok()?;
        Some(Removal {
            agent_id: json.agent_id,
            reason: json.reason,
            at: from_unix(json.at),
        })
    }

    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn store_removal(&self, removal: &Removal) -> Result<(), Fault> {
        let json = Json {
            agent_id: removal.agent_id.clone(),
            reason: removal.reason,
            at: unix_seconds(removal.at),
        };
        let text = serde_json::to_vec(&json).map_err(|error| {
            Fault::new(Code::Internal, "the agent's state cannot be encoded").because(error)
        })?;
        self.write(FILE, &text)
    }

    /// The node has an identity again.
    pub(crate) fn clear_removal(&self) {
        self.remove(FILE);
    }
}
