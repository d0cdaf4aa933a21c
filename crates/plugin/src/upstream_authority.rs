//! Who signs the server's own authorities, when they are not self-signed.
//!
//! An upstream authority is a subscription: what it trusts, its roots and its JWT keys, changes while the server runs.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use spiffe::bundle::{JwtAuthority, X509Authority};
use spiffe::x509::Certificate;

use crate::error::{Error, ErrorKind};

/// What an upstream authority gives for a signing request.
#[derive(Debug, Clone)]
pub struct MintedCa {
    /// The new signing certificate first, then those that lead towards a root; the root itself need not be there.
    pub chain: Vec<Certificate>,
    /// The roots to be trusted, in the trust domain's bundle, from now on.
    pub roots: Vec<X509Authority>,
}

/// What an upstream authority trusts as it changes: each item is the whole list. The end says that nothing more comes, an
/// error that the subscription was lost; neither takes anything back.
pub type Updates<T> = BoxStream<'static, Result<Vec<T>, Error>>;

/// Signs signing certificates for this trust domain.
#[async_trait]
pub trait UpstreamAuthority: Send + Sync + std::fmt::Debug {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// Signs the request, a DER-encoded PKCS#10. The lifetime is a wish; zero leaves it to the upstream authority. The
    /// roots that change after this come as updates (SPIRE: MintX509CAAndSubscribe).
    async fn mint_x509_ca(
        &self,
        csr_der: &[u8],
        preferred_ttl: Duration,
    ) -> Result<(MintedCa, Updates<X509Authority>), Error>;

    /// The roots without a signature, beginning with what they are now: for a server that goes on with a CA which it has
    /// (SPIRE: SubscribeToLocalBundle).
    async fn subscribe_roots(&self) -> Result<Updates<X509Authority>, Error> {
        let message = "fetching upstream trust bundle is unsupported";
        Err(Error::new(
            self.name().to_owned(),
            ErrorKind::NotOffered,
            message,
        ))
    }

    /// Makes a key known in the upstream bundle and gives all keys of that bundle, which change as the updates say. Few can
    /// (SPIRE: PublishJWTKeyAndSubscribe).
    async fn publish_jwt_key(
        &self,
        _key: &JwtAuthority,
    ) -> Result<(Vec<JwtAuthority>, Updates<JwtAuthority>), Error> {
        let message = "publishing upstream is unsupported";
        Err(Error::new(
            self.name().to_owned(),
            ErrorKind::NotOffered,
            message,
        ))
    }
}
