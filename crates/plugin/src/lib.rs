//! What a plugin is, the plugins that ship with Plastron, and the configuration language.

pub mod builtin;
pub mod catalog;
pub mod config;
pub mod fault;
pub mod key_manager;
pub mod private_file;
pub mod upstream_authority;
pub mod workload_attestor;
