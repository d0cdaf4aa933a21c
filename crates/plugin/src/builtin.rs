//! The plugins that ship with Plastron, each a direct implementation of its trait.

pub mod key_manager;
pub mod node_attestor;
pub mod upstream_authority;
pub mod workload_attestor;
