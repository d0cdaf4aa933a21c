//! What the server's refusals mean to a node.

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use proto::spire::api::types::PermissionDeniedDetails;
use proto::spire::api::types::permission_denied_details::Reason;
use rustls::AlertDescription;
use rustls_pki_types::UnixTime;
use tonic::{Code, Status};

use crate::timefmt::rfc3339;
use config::rough_duration_text;
use daemon::telemetry::CallError;

/// Why a call to the server brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The node is banned: nothing will ever work again for it.
    #[error("the server has banned this node")]
    Banned,
    /// The server does not know the node, or not under this SVID any more: it has to attest again.
    #[error("the node has to attest again: {0}")]
    MustReattest(String),
    /// The server does not offer the call.
    #[error("the server does not offer this call: {0}")]
    Unimplemented(String),
    /// What answers is not the server that the bundle speaks of.
    #[error("server not trusted: {0}")]
    NotTrusted(String),
    /// The server's certificate is out of date by this node's clock.
    #[error("{0}")]
    ClocksDiffer(ClockGap),
    /// The server refused this node's certificate, in TLS or because it is expired by its clock. The server itself was
    /// verified before.
    #[error("the server refused the node's certificate: {0:?}")]
    SvidRefused(AlertDescription),
    /// The server understood and refused.
    #[error("{1}")]
    Refused(Refusal, String),
    /// The server can't be reached, or is not able to answer now.
    #[error("server unavailable: {0}")]
    Unavailable(String),
    /// The server's answer makes no sense.
    #[error("server's answer is not usable: {0}")]
    Malformed(String),
}

impl CallError for ClientError {
    fn status(&self) -> &'static str {
        match self {
            Self::Banned | Self::MustReattest(_) => "PermissionDenied",
            Self::Unimplemented(_) => "Unimplemented",
            Self::NotTrusted(_) | Self::ClocksDiffer(_) | Self::SvidRefused(_) => "Unauthenticated",
            Self::Refused(refusal, _) => match refusal {
                Refusal::NotFound => "NotFound",
                Refusal::InvalidArgument => "InvalidArgument",
                Refusal::PermissionDenied => "PermissionDenied",
                Refusal::Other => "Unknown",
            },
            Self::Unavailable(_) => "Unavailable",
            Self::Malformed(_) => "Internal",
        }
    }
}

/// The time by this node's clock, and the date of the server's certificate that it lies beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockGap {
    pub(crate) here: SystemTime,
    pub(crate) limit: SystemTime,
}

impl ClockGap {
    fn new(here: UnixTime, limit: UnixTime) -> Self {
        let time = |unix: UnixTime| SystemTime::UNIX_EPOCH + Duration::from_secs(unix.as_secs());
        Self {
            here: time(here),
            limit: time(limit),
        }
    }
}

impl fmt::Display for ClockGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (here, limit) = (rfc3339(self.here), rfc3339(self.limit));
        match self.here.duration_since(self.limit) {
            Ok(gap) => write!(
                f,
                "this node's clock is ahead of the server's by at least {}: it says {here}, but the server's certificate expired at {limit}",
                rough_duration_text(gap)
            ),
            Err(gap) => write!(
                f,
                "this node's clock is behind the server's by at least {}: it says {here}, but the server's certificate is valid only from {limit}",
                rough_duration_text(gap.duration())
            ),
        }
    }
}

/// The kinds of refusal that the agent tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotFound,
    InvalidArgument,
    PermissionDenied,
    Other,
}

impl ClientError {
    pub(crate) fn malformed(because: impl fmt::Display) -> Self {
        Self::Malformed(because.to_string())
    }

    pub(crate) fn timed_out() -> Self {
        Self::Unavailable("no answer in time".to_owned())
    }

    /// Whether the call did not reach a server that takes this node's calls.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::NotTrusted(_)
                | Self::ClocksDiffer(_)
                | Self::SvidRefused(_)
        )
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        if let Some(failed) = handshake_failure(&status) {
            return failed;
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => match denied_reason(&status) {
                Some(Reason::AgentBanned) => Self::Banned,
                // A matter of clocks, as in TLS: the server's may be wrong, and that must not cost the node its identity.
                Some(Reason::AgentExpired) => {
                    Self::SvidRefused(AlertDescription::CertificateExpired)
                }
                Some(
                    Reason::AgentNotAttested | Reason::AgentNotActive | Reason::AgentMustReattest,
                ) => Self::MustReattest(message),
                _ => Self::Refused(Refusal::PermissionDenied, message),
            },
            Code::Unimplemented => Self::Unimplemented(message),
            Code::NotFound => Self::Refused(Refusal::NotFound, message),
            Code::InvalidArgument => Self::Refused(Refusal::InvalidArgument, message),
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
            | Code::Internal
            | Code::Unknown => Self::Unavailable(with_causes(&status)),
            _ => Self::Refused(Refusal::Other, message),
        }
    }
}

/// SPIRE puts `PermissionDeniedDetails` into the details of a `google.rpc.Status`.
fn denied_reason(status: &Status) -> Option<Reason> {
    let details = tonic_types::pb::Status::decode(status.details()).ok()?;
    details
        .details
        .iter()
        .filter(|any| {
            any.type_url
                .ends_with("/spire.api.types.PermissionDeniedDetails")
        })
        .find_map(|any| PermissionDeniedDetails::decode(any.value.as_slice()).ok())
        .map(|denied| denied.reason())
}

/// Why TLS did not take the server's certificate, or the server not ours, if that is why the call failed.
fn handshake_failure(status: &Status) -> Option<ClientError> {
    use rustls::CertificateError as Invalid;
    let mut cause: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(error) = cause {
        match rustls_error(error) {
            Some(rustls::Error::InvalidCertificate(Invalid::ExpiredContext {
                time,
                not_after,
            })) => return Some(ClientError::ClocksDiffer(ClockGap::new(*time, *not_after))),
            Some(rustls::Error::InvalidCertificate(Invalid::NotValidYetContext {
                time,
                not_before,
            })) => return Some(ClientError::ClocksDiffer(ClockGap::new(*time, *not_before))),
            Some(rustls::Error::InvalidCertificate(because)) => {
                return Some(ClientError::NotTrusted(because.to_string()));
            }
            _ => {}
        }
        if let Some(alert) = certificate_alert(&error.to_string()) {
            return Some(ClientError::SvidRefused(alert));
        }
        cause = error.source();
    }
    None
}

/// With TLS 1.3 the server's refusal comes when HTTP/2 reads first, and h2 keeps only the text of what it met.
fn certificate_alert(error: &str) -> Option<AlertDescription> {
    let (_, name) = error.rsplit_once("received fatal alert: ")?;
    CERTIFICATE_ALERTS
        .into_iter()
        .find(|alert| format!("{alert:?}") == name)
}

/// The alerts by which a server says that it does not take the client's certificate.
const CERTIFICATE_ALERTS: [AlertDescription; 7] = [
    AlertDescription::BadCertificate,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
];

/// A rustls error, also where an I/O error wraps it.
pub(crate) fn rustls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref::<rustls::Error>().or_else(|| {
        error
            .downcast_ref::<std::io::Error>()?
            .get_ref()?
            .downcast_ref::<rustls::Error>()
    })
}

/// The message, with the innermost cause where it does not say that already: "transport error" alone says nothing.
fn with_causes(status: &Status) -> String {
    let mut innermost = None;
    let mut cause = status.source();
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    let message = status.message();
    match innermost {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(reason: i32) -> Status {
        let details = tonic_types::pb::Status {
            code: 7,
            message: "denied".into(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
                value: PermissionDeniedDetails { reason }.encode_to_vec(),
            }],
        };
        Status::with_details(
            Code::PermissionDenied,
            "denied",
            details.encode_to_vec().into(),
        )
    }

    #[test]
    fn a_ban_is_distinguished_from_an_eviction_and_from_other_refusals() {
        assert!(matches!(ClientError::from(denied(4)), ClientError::Banned));
        let expired = Reason::AgentExpired as i32;
        assert!(matches!(
            ClientError::from(denied(expired)),
            ClientError::SvidRefused(AlertDescription::CertificateExpired)
        ));
        for reason in [
            Reason::AgentNotAttested,
            Reason::AgentNotActive,
            Reason::AgentMustReattest,
        ]
        .map(|reason| reason as i32)
        {
            assert!(
                matches!(
                    ClientError::from(denied(reason)),
                    ClientError::MustReattest(_)
                ),
                "{reason}"
            );
        }
        for reason in [0, 99] {
            assert!(
                matches!(
                    ClientError::from(denied(reason)),
                    ClientError::Refused(Refusal::PermissionDenied, _)
                ),
                "{reason}"
            );
        }
        assert!(matches!(
            ClientError::from(Status::permission_denied("x")),
            ClientError::Refused(Refusal::PermissionDenied, _)
        ));
        let garbage = Status::with_details(Code::PermissionDenied, "x", vec![1, 2, 3].into());
        assert!(matches!(
            ClientError::from(garbage),
            ClientError::Refused(Refusal::PermissionDenied, _)
        ));
    }

    #[test]
    fn only_what_may_recover_by_itself_is_transient() {
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
            Code::Internal,
            Code::Unknown,
        ] {
            assert!(
                ClientError::from(Status::new(code, "x")).is_transient(),
                "{code}"
            );
        }
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::PermissionDenied,
            Code::Unimplemented,
            Code::FailedPrecondition,
            Code::Unauthenticated,
        ] {
            assert!(
                !ClientError::from(Status::new(code, "x")).is_transient(),
                "{code}"
            );
        }
    }

    #[test]
    fn a_certificate_that_was_not_trusted_is_found_below_transport_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        let status = Status::from_error(Box::new(io));
        assert!(matches!(
            ClientError::from(status),
            ClientError::NotTrusted(_)
        ));
        let unix = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for (error, text) in [
            (
                rustls::CertificateError::ExpiredContext {
                    time: unix(1_800_007_300),
                    not_after: unix(1_800_000_000),
                },
                "ahead of the server's by at least 2h1m: it says 2027-01-15T10:01:40Z, but the server's certificate expired at 2027-01-15T08:00:00Z",
            ),
            (
                rustls::CertificateError::NotValidYetContext {
                    time: unix(1_800_000_000),
                    not_before: unix(1_800_007_300),
                },
                "behind the server's by at least 2h1m",
            ),
        ] {
            let tls = rustls::Error::InvalidCertificate(error);
            let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
            let error = ClientError::from(Status::from_error(Box::new(io)));
            assert!(matches!(error, ClientError::ClocksDiffer(_)), "{error:?}");
            assert!(error.to_string().contains(text), "{error}");
        }
        for (alert, refused) in [
            (AlertDescription::CertificateExpired, true),
            (AlertDescription::BadCertificate, true),
            (AlertDescription::HandshakeFailure, false),
            (AlertDescription::InternalError, false),
        ] {
            let io = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                rustls::Error::AlertReceived(alert),
            );
            let error = ClientError::from(Status::from_error(Box::new(io)));
            assert_eq!(
                matches!(error, ClientError::SvidRefused(_)),
                refused,
                "{error:?}"
            );
        }
        let other = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "no");
        assert!(matches!(
            ClientError::from(Status::from_error(Box::new(other))),
            ClientError::Unavailable(_)
        ));
    }
}
