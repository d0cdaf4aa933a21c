//! Node attestation: how a node proves to a server who it is.
//!
//! A conversation between two plugins of the same name. The agent's half ([`agent::NodeAttestor`]) gives a payload and
//! answers challenges; the server's half ([`server::NodeAttestor`]) asks them and, when it is convinced, says which agent
//! this is. Neither half knows the wire: the daemons carry the messages. Both sides bound what a conversation may cost.

pub mod agent;
pub mod server;

use std::time::Duration;

/// The largest message of a conversation, either way. SPIRE has no limit but gRPC's 4 MiB; a payload is a few KiB, and an
/// attestation document of a cloud or a certificate chain of a TPM stays below this.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Challenges of one conversation. SPIRE's attestors ask at most two.
pub const MAX_CHALLENGES: u32 = 8;
/// How long one conversation may take, from the first message to the last.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);
