//! Certificates and tokens that the server issued, read for what the agent has to know of them.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use spiffe::id::SpiffeId;
use spiffe::key::PublicKey;
use spiffe::x509::Certificate;

use super::ClientError;

/// What the agent needs of a chain.
#[derive(Debug, Clone)]
pub(crate) struct ChainFacts {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) public_key: PublicKey,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// The key identifiers of those who signed it, leaf's issuer first.
    pub(crate) issuers: Vec<Vec<u8>>,
}

/// Reads a chain, leaf first. The error is a text for the log.
pub(crate) fn chain_facts(chain: &[Vec<u8>]) -> Result<ChainFacts, String> {
    let certificates: Vec<Certificate> = chain
        .iter()
        .map(|der| Certificate::from_der(der))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    facts_of(&certificates)
}

/// The same of certificates that were parsed before.
pub(crate) fn facts_of(chain: &[Certificate]) -> Result<ChainFacts, String> {
    let leaf = chain.first().ok_or("certificate chain is empty")?;
    let uris = leaf.uris();
    let [uri] = uris else {
        return Err(format!("certificate has {} URI names, not one", uris.len()));
    };
    let spiffe_id = SpiffeId::parse(uri).map_err(|error| error.to_string())?;
    Ok(ChainFacts {
        spiffe_id,
        public_key: leaf.public_key().clone(),
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
        issuers: chain
            .iter()
            .filter_map(|certificate| certificate.authority_key_id())
            .map(Into::into)
            .collect(),
    })
}

/// The node's own SVID.
#[derive(Debug, Clone)]
pub(crate) struct AgentSvid {
    pub(crate) chain: Vec<Certificate>,
    pub(crate) facts: ChainFacts,
    /// Whether the node may attest again in place of renewing.
    pub(crate) reattestable: bool,
}

impl AgentSvid {
    pub(crate) fn new(chain: &[Vec<u8>], reattestable: bool) -> Result<Self, ClientError> {
        let chain: Vec<Certificate> = chain
            .iter()
            .map(|der| Certificate::from_der(der))
            .collect::<Result<_, _>>()
            .map_err(ClientError::malformed)?;
        Self::of(chain, reattestable).map_err(ClientError::malformed)
    }

    /// From stored certificates.
    pub(crate) fn of(chain: Vec<Certificate>, reattestable: bool) -> Result<Self, String> {
        let facts = facts_of(&chain)?;
        Ok(Self {
            chain,
            facts,
            reattestable,
        })
    }
}

/// The `kid` in a token's header. The token was given by the server and is not verified here.
pub(crate) fn jwt_key_id(token: &str) -> Option<String> {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
    header.get("kid")?.as_str().map(str::to_owned)
}
