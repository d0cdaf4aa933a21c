//! Who signs the server's own authorities, when they are not self-signed.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use spiffe::bundle::JwtAuthority;
use spiffe::csr::CsrError;
use spiffe::x509::{BuildError, Certificate};

use config::fault::{Code, Fault};

/// What an upstream authority gives for a signing request.
#[derive(Debug, Clone)]
pub struct MintedCa {
    /// The new signing certificate first, then those that lead towards a root; the root itself need not be there.
    pub chain: Vec<Certificate>,
    /// The roots to be trusted, in the trust domain's bundle, from now on.
    pub roots: Vec<Certificate>,
}

/// Signs signing certificates for this trust domain.
#[async_trait]
pub trait UpstreamAuthority: Send + Sync + std::fmt::Debug {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// Signs the request, a DER-encoded PKCS#10. The lifetime is a wish; zero leaves it to the upstream authority.
    async fn mint_x509_ca(
        &self,
        csr_der: &[u8],
        preferred_ttl: Duration,
    ) -> Result<MintedCa, Error>;

    /// Makes a key known in the upstream bundle and gives all keys of that bundle. Few can.
    async fn publish_jwt_key(&self, _key: &JwtAuthority) -> Result<Vec<JwtAuthority>, Error> {
        Err(Error::NotOffered)
    }
}

/// Why an upstream authority could not sign.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("publishing upstream is unsupported")]
    NotOffered,
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
    #[error("the signing was cut off by the shutdown")]
    CutOff,
}

impl Error {
    /// The same for an operator.
    pub fn to_fault(&self) -> Fault {
        match self {
            Self::NotOffered | Self::CutOff | Self::Csr(_) | Self::CsrContent(_) => {
                Fault::new(Code::Internal, self.to_string())
            }
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
