//! The SPIFFE identity server: registry, authorities, issuance and its gRPC services.
//!
//! [`Server::bind`] wires everything from a [`Config`] and returns once the server can serve; [`Bound::run`]
//! serves until it is stopped. No module decides by itself which caller may do what: that is `authz`.

pub mod audit;
pub mod ca;
pub mod config;
pub mod datastore;
pub mod registry;

mod api;
mod attest;
mod authz;
mod budget;
mod caller;
mod endpoints;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod health;
mod metrics;
mod ops;
mod principal;
mod prune;
mod ratelimit;
mod server;
mod source;
mod status;
#[cfg(test)]
mod testing;
mod watch;

pub use self::config::Config;
pub use daemon::log_control::LogControl;
pub use server::{Bound, Environment, Server};
