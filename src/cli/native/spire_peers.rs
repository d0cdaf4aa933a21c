//! What a refusal means that comes without a code of ours. SPIRE's servers and agents send no `google.rpc.ErrorInfo`, and
//! the items of a batch have no room for one: status, object and SPIRE's English have to do. The only file that matches
//! texts of a peer.

use config::fault::Code;
use tonic::Code as Status;

use crate::cli::command::{Command, Endpoint, Object};

/// The code for a refusal of the peer; what kind of object it is about follows from the command.
pub(super) fn code(status: Status, message: &str, command: &Command) -> Code {
    let object = command.object;
    if message.contains("find federated bundle") {
        return Code::UnknownFederatedTrustDomain;
    }
    match status {
        Status::NotFound => match object {
            Object::Entry => Code::EntryNotFound,
            Object::Agent => Code::AgentNotFound,
            Object::Bundle => Code::BundleNotFound,
            Object::Other => Code::NotFound,
        },
        Status::PermissionDenied if message.starts_with("no identity issued") => {
            Code::NoIdentityIssued
        }
        Status::PermissionDenied | Status::Unauthenticated => Code::PermissionDenied,
        Status::AlreadyExists if message.contains("similar entry") => Code::SimilarEntry,
        Status::AlreadyExists if object == Object::Entry => Code::EntryIdTaken,
        _ if message.contains("cannot delete bundle; federated with") => Code::BundleInUse,
        Status::AlreadyExists | Status::FailedPrecondition | Status::Aborted => Code::AlreadyExists,
        Status::DeadlineExceeded => Code::TimedOut,
        Status::Unavailable => match command.endpoint() {
            Some(Endpoint::Workload) => Code::AgentNotReady,
            _ => Code::ConnectionLost,
        },
        Status::ResourceExhausted => Code::TooManyRequests,
        Status::Unimplemented => Code::NotOfferedByPeer,
        Status::InvalidArgument | Status::OutOfRange => match object {
            Object::Entry => Code::InvalidEntry,
            _ => Code::InvalidArgument,
        },
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::code;
    use crate::cli::command::Command;
    use config::fault::Code;
    use tonic::Code as Status;

    fn command(words: &[&str]) -> Command {
        crate::cli::commands()
            .into_iter()
            .find(|command| command.words() == words)
            .unwrap()
    }

    #[test]
    fn a_refusal_has_the_code_of_the_object_that_the_command_is_about() {
        let entry = command(&["server", "entry", "show"]);
        let agent = command(&["server", "agent", "show"]);
        let fetch = command(&["agent", "api", "fetch", "x509"]);
        let logger = command(&["server", "logger", "get"]);
        for (command, status, message, expected) in [
            (
                &entry,
                Status::NotFound,
                "entry not found",
                Code::EntryNotFound,
            ),
            (
                &agent,
                Status::NotFound,
                "agent not found",
                Code::AgentNotFound,
            ),
            (&logger, Status::NotFound, "", Code::NotFound),
            (
                &entry,
                Status::AlreadyExists,
                "similar entry already exists",
                Code::SimilarEntry,
            ),
            (
                &entry,
                Status::AlreadyExists,
                "an entry with ID \"a\" already exists",
                Code::EntryIdTaken,
            ),
            (
                &entry,
                Status::Internal,
                "unable to find federated bundle \"a\"",
                Code::UnknownFederatedTrustDomain,
            ),
            (&entry, Status::InvalidArgument, "bad", Code::InvalidEntry),
            (
                &agent,
                Status::InvalidArgument,
                "bad",
                Code::InvalidArgument,
            ),
            (&agent, Status::PermissionDenied, "", Code::PermissionDenied),
            (
                &fetch,
                Status::PermissionDenied,
                "no identity issued",
                Code::NoIdentityIssued,
            ),
            (&fetch, Status::Unavailable, "", Code::AgentNotReady),
            (&entry, Status::Unavailable, "", Code::ConnectionLost),
            (&entry, Status::DeadlineExceeded, "", Code::TimedOut),
            (&entry, Status::ResourceExhausted, "", Code::TooManyRequests),
            (&entry, Status::Unimplemented, "", Code::NotOfferedByPeer),
            (&entry, Status::DataLoss, "", Code::Internal),
        ] {
            assert_eq!(
                code(status, message, command),
                expected,
                "{status:?} {message}"
            );
        }
    }
}
