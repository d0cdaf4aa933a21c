//! The plugin interfaces, their catalog and lifecycle, and the built-in plugins. Knows no daemon.

pub mod blocking;
pub mod builtin;
pub mod catalog;
pub mod error;
pub mod join_token;
pub mod key_manager;
pub mod lifecycle;
pub mod node_attestor;
pub mod upstream_authority;
pub mod workload_attestor;

pub use error::{Error, ErrorKind};
