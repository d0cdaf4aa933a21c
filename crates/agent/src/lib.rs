//! The SPIFFE node agent: attestation, identity cache and the Workload API.
