//! What both daemons need: tasks and shutdown, sockets, health probes, log control, systemd. Knows neither daemon, and no
//! identities.

pub mod http_probes;
pub mod log_config;
pub mod log_control;
pub mod log_limit;
pub mod runtime_dir;
pub mod socket;
pub mod state_dir;
pub mod systemd;
pub mod tasks;
pub mod telemetry;
pub mod trusted_dir;
