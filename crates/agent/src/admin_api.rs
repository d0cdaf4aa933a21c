//! The services of the administration socket beside health: one file a service.

use std::sync::Arc;

use daemon::log_control::LogLevels;
use proto::spire::agent::debug::v1::debug_server::DebugServer;
use proto::spire::api::agent::logger::v1::logger_server::LoggerServer;
use spiffe::clock::Clock;
use tokio::sync::watch;

mod debug;
mod logger;

pub(crate) use debug::NodeState;

use crate::endpoints::router::{Generated, Service};
use crate::gate::Gate;

/// The log level, to look at and to change.
pub(crate) fn logger(levels: LogLevels) -> Box<dyn Service> {
    Generated::new(LoggerServer::new(logger::Logger(levels)))
}

/// What the agent is and how much it holds.
pub(crate) fn debug(
    gate: Arc<Gate>,
    clock: Arc<dyn Clock>,
    node: watch::Receiver<NodeState>,
) -> Box<dyn Service> {
    Generated::new(DebugServer::new(debug::Debug::new(gate, clock, node)))
}
