//! What can be wrong with the files of an upstream authority.

use std::path::PathBuf;

use config::fault::{Code, Fault};
use spiffe::csr::CsrError;
use spiffe::x509::BuildError;

use crate::error::{Error, ErrorKind};

/// What is wrong with the files or with the CSR.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("unable to load {what} {path}: {source}")]
    Read {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("unable to load {what} {path}: {why}")]
    Content {
        what: &'static str,
        path: PathBuf,
        why: String,
    },
    /// SPIRE: these texts.
    #[error("with no bundle_file_path configured only self-signed CAs are supported")]
    NotSelfSigned,
    #[error("unable to load upstream CA: certificate and private key do not match")]
    KeyMismatch,
    #[error("unable to load upstream CA: certificate is not a certificate authority's")]
    NoAuthority,
    #[error(
        "unable to load upstream CA: certificate cannot be validated with the provided bundle or is not self-signed"
    )]
    NoPath,
    #[error("unable to load upstream CA: certificate is not valid at this time")]
    NotValidNow,
    #[error("unable to sign CSR: {0}")]
    Csr(#[from] CsrError),
    #[error("unable to sign CSR: {0}")]
    CsrContent(String),
    #[error("unable to sign CSR: {0}")]
    Build(#[from] BuildError),
}

impl Problem {
    /// The same for an operator.
    fn to_fault(&self) -> Fault {
        match self {
            Self::Csr(_) | Self::CsrContent(_) => Fault::new(Code::Internal, self.to_string()),
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Fault::new(Code::KeyFileUnreadable, self.to_string())
                    .hint("the file must be readable for the server's user")
            }
            Self::NotSelfSigned => Fault::new(Code::UpstreamInvalid, self.to_string())
                .hint("set bundle_file_path to the roots that the upstream certificate chains to"),
            Self::KeyMismatch => Fault::new(Code::UpstreamInvalid, self.to_string()).hint(
                "the first certificate in cert_file_path must be that of the key in key_file_path",
            ),
            _ => Fault::new(Code::UpstreamInvalid, self.to_string()),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let kind = match problem {
            Problem::Build(_) => ErrorKind::Internal,
            _ => ErrorKind::Permanent,
        };
        let fault = problem.to_fault();
        Self::from_source(super::NAME, kind, problem).with_fault(fault)
    }
}
