//! Why a command failed, and how that is said: SPIRE's line on the shims, the house form natively.

use std::fmt;

use plugin::fault::{Code, Fault, Faults};
use tonic::Status;

use super::spec::Program;

/// A failed command.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Wrong use of the command; nothing was sent.
    Usage(String),
    /// The peer refused or failed; `context` is what SPIRE's CLI writes before the status, may be empty.
    Status {
        context: String,
        status: Box<Status>,
    },
    /// A fault that has a code.
    Fault(Box<Fault>),
    /// Everything wrong with a configuration.
    Faults(Box<Faults>),
    /// Said already; only the exit code is left.
    Silent,
    /// Anything else, in the words that SPIRE's CLI uses.
    Failed(String),
    /// Checked and found wanting (an unhealthy daemon): exit code 7 natively.
    Check(String),
}

impl CliError {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    pub(crate) fn status(context: impl Into<String>, status: Status) -> Self {
        Self::Status {
            context: context.into(),
            status: Box::new(status),
        }
    }

    /// The native exit code (user-experience: 0 ok, 1 internal, 2 usage, 3 not found, 4 denied, 5 conflict,
    /// 6 unreachable, 7 check failed, 8 timeout).
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Status { status, .. } => status_exit_code(status.code()),
            Self::Fault(fault) => fault.exit_code(),
            Self::Faults(faults) => faults.exit_code(),
            Self::Failed(_) | Self::Silent => 1,
            Self::Check(_) => 7,
        }
    }

    /// The house form: `error[PLA-nnnn]: what` and its `at:`, `because:` and `hint:` lines.
    pub(crate) fn house(&self, program: Program) -> String {
        match self {
            Self::Fault(fault) => fault.to_string(),
            Self::Faults(faults) => faults.to_string(),
            Self::Silent => String::new(),
            Self::Usage(text) | Self::Failed(text) | Self::Check(text) => format!("error: {text}"),
            Self::Status { context, status } => {
                let what = if context.is_empty() {
                    status.message().to_owned()
                } else {
                    format!("{context}: {}", status.message())
                };
                match status_code(status.code()) {
                    Some(code) => Fault::new(code, what).to_string(),
                    None => Fault::new(Code::Internal, what)
                        .hint(format!("see the log of the {}", program.word()))
                        .to_string(),
                }
            }
        }
    }
}

impl From<Fault> for CliError {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

/// SPIRE's wording: a status reads `rpc error: code = NotFound desc = agent not found`.
impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::Check(text) => f.write_str(text),
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Faults(faults) => write!(f, "{faults}"),
            Self::Silent => Ok(()),
            Self::Status { context, status } => {
                if !context.is_empty() {
                    write!(f, "{context}: ")?;
                }
                write!(
                    f,
                    "rpc error: code = {:?} desc = {}",
                    status.code(),
                    status.message()
                )
            }
        }
    }
}

fn status_exit_code(code: tonic::Code) -> u8 {
    use tonic::Code as C;
    match code {
        C::InvalidArgument | C::OutOfRange => 2,
        C::NotFound => 3,
        C::PermissionDenied | C::Unauthenticated => 4,
        C::AlreadyExists | C::FailedPrecondition | C::Aborted => 5,
        C::Unavailable => 6,
        C::DeadlineExceeded => 8,
        _ => 1,
    }
}

fn status_code(code: tonic::Code) -> Option<Code> {
    use tonic::Code as C;
    match code {
        C::NotFound => Some(Code::NotFound),
        C::PermissionDenied | C::Unauthenticated => Some(Code::PermissionDenied),
        C::AlreadyExists | C::FailedPrecondition => Some(Code::AlreadyExists),
        C::DeadlineExceeded => Some(Code::TimedOut),
        C::Unavailable => Some(Code::ServerUnreachable),
        C::InvalidArgument => Some(Code::InvalidArgument),
        _ => None,
    }
}
