//! Generated gRPC types of SPIFFE, SPIRE and Envoy SDS, and the conversions between them and the SPIFFE types.
//!
//! Owns the wire: message shapes, the channel to a server, the repair of odd clients' requests, answers without
//! copies. Must not decide anything about identities: what a converted value means is for the layers above.

pub mod authority_filter;
pub mod capped;
pub mod channel;
pub mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod generated;
pub mod message_body;

pub use generated::{broker, envoy, go_plugin, plastron, spire, workload};

/// Descriptors of everything under `proto/` and its imports, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");

/// SPIRE: the Go names of gRPC's codes.
pub fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
