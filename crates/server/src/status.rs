//! The one place where this server's failures become gRPC statuses.
//!
//! Codes and the leading words are those that SPIRE's clients match on; what follows the colon may say more. It must not
//! hold secrets: a status travels to the caller and into logs.

use std::fmt::Display;

use proto::spire::api::types;
use tonic::{Code, Status};
use tonic_types::pb;

/// `what: because`, in the given code, and one line in the log: callers see what operators see.
pub(crate) fn failed(code: Code, what: &str, because: impl Display) -> Status {
    let status = Status::new(code, format!("{what}: {because}"));
    log(&status);
    status
}

/// A refusal with no cause beyond its own words.
pub(crate) fn refused(code: Code, what: impl Into<String>) -> Status {
    let status = Status::new(code, what);
    log(&status);
    status
}

/// A denial for somebody unknown, who may cause as many as he likes: a line only for whoever debugs.
pub(crate) fn stranger_denied(what: impl Into<String>) -> Status {
    let status = Status::new(Code::PermissionDenied, what);
    tracing::debug!(code = ?status.code(), "{}", status.message());
    status
}

/// Our own faults are an operator's business; a caller's mistakes are worth a line only to whoever debugs them.
fn log(status: &Status) {
    match status.code() {
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable => {
            tracing::error!(code = ?status.code(), "{}", status.message());
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            tracing::warn!(code = ?status.code(), "{}", status.message());
        }
        _ => tracing::debug!(code = ?status.code(), "{}", status.message()),
    }
}

/// The status of a batch item that went well. SPIRE: the message is the code's name.
pub(crate) fn item_ok() -> types::Status {
    types::Status {
        code: Code::Ok as i32,
        message: "OK".to_owned(),
    }
}

/// The status of a batch item that did not.
pub(crate) fn item(status: &Status) -> types::Status {
    types::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
    }
}

/// Why an agent's credentials no longer count. Agents act on the detail, not on the text.
pub(crate) fn agent_denied(
    reason: types::permission_denied_details::Reason,
    message: impl Into<String>,
) -> Status {
    let message = message.into();
    let details = types::PermissionDeniedDetails {
        reason: reason as i32,
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".to_owned(),
        value: prost::Message::encode_to_vec(&details),
    };
    let encoded = prost::Message::encode_to_vec(&pb::Status {
        code: Code::PermissionDenied as i32,
        message: message.clone(),
        details: vec![any],
    });
    let status = Status::with_details(Code::PermissionDenied, message, encoded.into());
    log(&status);
    status
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// Counts what an operator would read.
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            if *event.metadata().level() <= Level::WARN {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn lets_no_stranger_fill_the_log() {
        let warnings = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
            drop(stranger_denied("the caller showed no X509-SVID"));
            assert_eq!(warnings.load(Ordering::Relaxed), 0);
            drop(refused(Code::PermissionDenied, "agent is banned"));
            assert_eq!(warnings.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn carries_the_reason_in_the_details_of_a_denial() {
        let status = agent_denied(
            types::permission_denied_details::Reason::AgentBanned,
            "agent \"spiffe://td/x\" is banned",
        );
        let decoded: pb::Status = prost::Message::decode(status.details()).unwrap();
        assert_eq!(decoded.code, Code::PermissionDenied as i32);
        let details: types::PermissionDeniedDetails =
            prost::Message::decode(decoded.details[0].value.as_slice()).unwrap();
        assert_eq!(
            details.reason(),
            types::permission_denied_details::Reason::AgentBanned
        );
    }

    #[test]
    fn joins_what_and_because() {
        assert_eq!(
            failed(Code::InvalidArgument, "malformed CSR", "short").message(),
            "malformed CSR: short"
        );
    }
}
