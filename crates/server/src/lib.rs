//! The SPIFFE identity server: registry, authorities, issuance and its gRPC services.

pub mod audit;
pub mod ca;
pub mod config;
pub mod datastore;
pub mod registry;
