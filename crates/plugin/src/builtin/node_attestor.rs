//! Node attestors.

mod join_token;

pub use join_token::{JOIN_TOKEN, JoinTokenAttestor, JoinTokenProof};
