//! SVIDs: the two documents that prove a SPIFFE ID, and nothing else that might.

pub mod jwt;
pub mod x509;
