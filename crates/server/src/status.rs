//! The one place where this server's failures become gRPC statuses.
//!
//! Codes and the leading words are those that SPIRE's clients match on; what follows the colon may say more. It must not
//! hold secrets: a status travels to the caller and into logs.

use config::fault;
use proto::spire::api::types;
use tonic::{Code, Request, Status};
use tonic_types::pb;

use crate::audit::Outcome;
use crate::caller::Caller;
use crate::error::{self, AgentRefusal, Kind, OpError};

/// The status of a batch item that went well. SPIRE: the message is the code's name.
pub(crate) fn item_ok() -> types::Status {
    types::Status {
        code: Code::Ok as i32,
        message: "OK".to_owned(),
    }
}

/// The status of a batch item that did not, and its line in the log.
pub(crate) fn item(error: &OpError) -> types::Status {
    error.log();
    types::Status {
        code: grpc_code(error.kind()) as i32,
        message: error.message().to_owned(),
    }
}

impl Caller {
    /// The caller that `api` put beside the request when it let it in.
    ///
    /// # Errors
    /// Internal, when a request reaches a handler without having been authorized, which is a fault of this server.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, OpError> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| {
            error::refused(
                Kind::Internal,
                "the call was not authorized; this is a fault of the server",
            )
        })
    }
}

impl From<&Status> for Outcome {
    /// For what reaches the boundary as a status: the message is the one that the caller receives.
    fn from(status: &Status) -> Self {
        Self::Error {
            code: proto::code_name(status.code()),
            message: status.message().to_owned(),
        }
    }
}

impl From<OpError> for Status {
    /// The error on the wire, and its line in the log.
    fn from(error: OpError) -> Self {
        error.log();
        let code = grpc_code(error.kind());
        let details: Vec<prost_types::Any> = error
            .agent_refusal()
            .map(denial)
            .into_iter()
            .chain(error.fault_code().map(error_info))
            .collect();
        if details.is_empty() {
            return Self::new(code, error.message());
        }
        let encoded = prost::Message::encode_to_vec(&pb::Status {
            code: code as i32,
            message: error.message().to_owned(),
            details,
        });
        Self::with_details(code, error.message(), encoded.into())
    }
}

fn grpc_code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Internal,
    }
}

/// SPIRE's agents look for this message among the details and act on its reason.
fn denial(refusal: AgentRefusal) -> prost_types::Any {
    use types::permission_denied_details::Reason;
    let reason = match refusal {
        AgentRefusal::Expired => Reason::AgentExpired,
        AgentRefusal::NotAttested => Reason::AgentNotAttested,
        AgentRefusal::NotActive => Reason::AgentNotActive,
        AgentRefusal::Banned => Reason::AgentBanned,
        AgentRefusal::MustReattest => Reason::AgentMustReattest,
    };
    any(
        "spire.api.types.PermissionDeniedDetails",
        &types::PermissionDeniedDetails {
            reason: reason as i32,
        },
    )
}

/// The domain of the codes in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "plastron";

/// The code of the error, so that no client has to match English.
fn error_info(code: fault::Code) -> prost_types::Any {
    any(
        "google.rpc.ErrorInfo",
        &pb::ErrorInfo {
            reason: code.as_str().to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: Default::default(),
        },
    )
}

fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(status: &Status) -> pb::Status {
        prost::Message::decode(status.details()).unwrap()
    }

    #[test]
    fn carries_the_reason_in_the_details_of_a_denial() {
        let error = error::refused(Kind::PermissionDenied, "agent \"spiffe://td/x\" is banned");
        let status = Status::from(
            error
                .agent(AgentRefusal::Banned)
                .with_code(fault::Code::AgentBanned),
        );
        let decoded = details(&status);
        assert_eq!(decoded.code, Code::PermissionDenied as i32);
        assert_eq!(decoded.message, status.message());
        let details: types::PermissionDeniedDetails =
            prost::Message::decode(decoded.details[0].value.as_slice()).unwrap();
        assert_eq!(
            details.reason(),
            types::permission_denied_details::Reason::AgentBanned
        );
        let info: pb::ErrorInfo =
            prost::Message::decode(decoded.details[1].value.as_slice()).unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("PLA-1114", "plastron")
        );
        assert_eq!(
            decoded.details[1].type_url,
            "type.googleapis.com/google.rpc.ErrorInfo"
        );
    }

    #[test]
    fn an_error_without_a_code_has_no_details() {
        let status = Status::from(error::refused(Kind::NotFound, "entry not found"));
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "entry not found")
        );
        assert!(status.details().is_empty());
    }
}
