//! Workload attestors: the operating system's view of a process.

mod unix;

pub use unix::{UnixAttestor, UnixConfig};
