//! The SPIFFE identity server: registry, authorities, issuance and its gRPC services.

pub mod datastore;
pub mod registry;
