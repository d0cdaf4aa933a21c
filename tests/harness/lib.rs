//! Starts the programs under test and their peers, and talks to them.
//!
//! Owns processes, ports, directories and databases of a test; everything is stopped and removed when its value is
//! dropped. Knows the programs by their command line, files and sockets alone. What a test asserts is the test's own.

pub mod agent;
pub mod clients;
pub mod deployment;
pub mod postgres;
pub mod postgres_server;
pub mod process;
pub mod rpc;
pub mod server;
pub mod subject;
pub mod wait;

pub use agent::{Agent, AgentOptions, Bootstrap};
pub use deployment::Deployment;
pub use postgres_server::PostgresServer;
pub use process::{Process, Ran};
pub use server::{Database, Entry, Server, ServerOptions};
pub use subject::{Role, Subject};

/// The trust domain of every test that does not need two.
pub const TRUST_DOMAIN: &str = "example.org";

/// `spiffe://example.org` followed by `path`.
pub fn id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}{path}")
}
