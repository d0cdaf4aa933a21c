//! Why a command failed. The shims print `Display`, which is SPIRE's line; natively `native/error_report.rs` writes it in the error form.

use std::fmt;

use config::fault::{Code, Fault, Faults};
use tonic::Status;

use super::context::error_text;

/// A failed command.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Wrong use of the command; nothing was sent.
    Usage { spire: String, native: String },
    /// A value that cannot be, of a kind that has a code of its own; `text` is SPIRE's line.
    Wrong {
        code: Code,
        value: String,
        text: String,
    },
    /// The peer refused or failed; `context` is what SPIRE's CLI writes before the status, may be empty.
    Status {
        context: String,
        status: Box<Status>,
    },
    /// Items of a batch failed.
    Batch(Box<Batch>),
    /// A file of the user's; `action` is what SPIRE's CLI says was tried.
    File {
        code: Code,
        action: String,
        path: String,
        because: String,
    },
    /// A fault that has a code.
    Fault(Box<Fault>),
    /// Everything wrong with a configuration.
    Faults(Box<Faults>),
    /// Said already; only the exit code is left.
    Silent,
    /// Ctrl-C.
    Interrupted,
    /// Anything else, in the words that SPIRE's CLI uses.
    Failed(String),
    /// Checked and found wanting, such as an unhealthy daemon or a token that is not valid.
    Check { code: Code, text: String },
}

/// The failed items of a batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// SPIRE's line.
    pub(crate) text: String,
    pub(crate) items: Vec<FailedItem>,
}

/// One item that the server refused.
#[derive(Debug)]
pub(crate) struct FailedItem {
    /// The object: an entry's SPIFFE ID, an ID, a trust domain.
    pub(crate) object: String,
    pub(crate) code: tonic::Code,
    pub(crate) message: String,
    /// What SPIRE writes about it before its line; may be empty.
    pub(crate) paragraph: String,
}

impl CliError {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::Usage {
            spire: text.clone(),
            native: text,
        }
    }

    /// The same where the text names flags, which have other names natively.
    pub(crate) fn usage_of(spire: impl Into<String>, native: impl Into<String>) -> Self {
        Self::Usage {
            spire: spire.into(),
            native: native.into(),
        }
    }

    pub(crate) fn wrong(code: Code, value: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Wrong {
            code,
            value: value.into(),
            text: text.into(),
        }
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

    pub(crate) fn file(
        code: Code,
        action: impl Into<String>,
        path: impl fmt::Display,
        error: &std::io::Error,
    ) -> Self {
        Self::File {
            code,
            action: action.into(),
            path: path.to_string(),
            because: error_text(error),
        }
    }

    /// The same with words of SPIRE's CLI before it; only what is printed as text has room for them.
    pub(crate) fn within(self, words: &str) -> Self {
        match self {
            Self::File {
                code,
                action,
                path,
                because,
            } => Self::File {
                code,
                action: format!("{words}: {action}"),
                path,
                because,
            },
            Self::Wrong { code, value, text } => Self::Wrong {
                code,
                value,
                text: format!("{words}: {text}"),
            },
            other => other,
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
            Self::Usage { spire: text, .. }
            | Self::Wrong { text, .. }
            | Self::Failed(text)
            | Self::Check { text, .. } => f.write_str(text),
            Self::Batch(batch) => f.write_str(&batch.text),
            Self::File {
                action,
                path,
                because,
                ..
            } => write!(f, "{action} {path}: {because}"),
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Faults(faults) => write!(f, "{faults}"),
            Self::Silent | Self::Interrupted => Ok(()),
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
