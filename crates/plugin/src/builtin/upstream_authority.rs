//! Upstream authorities: a certificate and key in files.

mod disk;

pub use disk::{DiskUpstreamAuthority, DiskUpstreamConfig};
