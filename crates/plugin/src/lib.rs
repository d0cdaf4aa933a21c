//! What a plugin is, the plugins that ship with Plastron, and the configuration language.

pub mod config;
pub mod fault;
