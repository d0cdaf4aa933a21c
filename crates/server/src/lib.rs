//! The SPIFFE identity server: registry, authorities, issuance and its gRPC services.
