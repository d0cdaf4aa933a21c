//! Who signs the server's own authorities, when they are not self-signed.

use std::time::Duration;

use async_trait::async_trait;
use spiffe::bundle::JwtAuthority;
use spiffe::x509::Certificate;

use crate::error::{Error, ErrorKind};

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
        let message = "publishing upstream is unsupported";
        Err(Error::new(
            self.name().to_owned(),
            ErrorKind::NotOffered,
            message,
        ))
    }
}
