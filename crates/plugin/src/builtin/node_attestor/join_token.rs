//! Node attestation by a token that works once (SPIRE: `join_token`).
//!
//! The payload is the token, and there is no challenge. The token is a secret until it is redeemed: it is in no message
//! and no log. The redeeming is the server's, which alone knows the tokens ([`JoinTokens`]).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use config::fault::{Code, Fault};
use spiffe::id::SpiffeId;
use spiffe::secret::Secret;

use spiffe::trust_domain::TrustDomain;

use crate::error::{Error, ErrorKind};
use crate::join_token::{JoinTokens, TokenRefusal, TokenSource};
use crate::lifecycle::{HostServices, Lifecycle};
use crate::node_attestor::server::{AgentAttributes, Conversation};
use crate::node_attestor::{agent, server};

/// SPIRE: the attestor's name, the path segment and the attestation type are the same word.
pub const JOIN_TOKEN: &str = "join_token";
/// A token is a UUID; whatever an operator chooses stays far below this.
const MAX_TOKEN_FILE: u64 = 4 << 10;
/// SPIRE: this text, which agents match on.
const UNKNOWN: &str = "failed to attest: join token does not exist or has already been used";

/// The agent's half.
#[derive(Debug)]
pub struct JoinTokenProof {
    source: Option<TokenSource>,
}

impl JoinTokenProof {
    /// Without a source the node can only go on with a stored identity.
    pub fn new(source: Option<TokenSource>) -> Self {
        Self { source }
    }
}

#[async_trait]
impl Lifecycle for JoinTokenProof {
    type Config = ();

    async fn open((): (), host: &HostServices) -> Result<Self, Error> {
        Ok(Self::new(host.join_token.clone()))
    }
}

#[async_trait]
impl agent::NodeAttestor for JoinTokenProof {
    fn name(&self) -> &str {
        JOIN_TOKEN
    }

    fn is_repeatable(&self) -> bool {
        false
    }

    async fn start(&self) -> Result<Box<dyn agent::Attempt>, Error> {
        let token = match &self.source {
            None => return Err(no_token()),
            Some(TokenSource::Given(token)) => token.clone(),
            Some(TokenSource::File(path)) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read_token(&path))
                    .await
                    .map_err(|_cancelled| Error::interrupted(JOIN_TOKEN))??
            }
        };
        let payload = Secret::new(token.expose().clone().into_bytes());
        Ok(Box::new(agent::PayloadOnly::new(JOIN_TOKEN, payload)))
    }
}

fn no_token() -> Error {
    let what = "the node has not attested yet and has no join token";
    let fault = Fault::new(Code::NoJoinToken, what).hint(
        "on the server: plastron server token generate; then start the agent with that token",
    );
    Error::new(JOIN_TOKEN, ErrorKind::Permanent, what).with_fault(fault)
}

/// Reads the token alone; blanks around it are ignored. Blocks.
fn read_token(path: &Path) -> Result<Secret<String>, Error> {
    let unusable = |why: String| {
        let what = format!("the join token file {} {why}", path.display());
        let fault = Fault::new(Code::JoinTokenFileUnreadable, what.clone())
            .hint("on the server: plastron server token generate");
        Error::new(JOIN_TOKEN, ErrorKind::Permanent, what).with_fault(fault)
    };
    // Large enough not to grow, which would leave a copy behind.
    let limit = usize::try_from(MAX_TOKEN_FILE).unwrap_or(usize::MAX);
    let mut text = zeroize::Zeroizing::new(String::with_capacity(limit));
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text))
        .map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let token = Secret::new(text.trim().to_owned());
    if token.expose().is_empty() {
        return Err(unusable("is empty".to_owned()));
    }
    Ok(token)
}

/// The server's half.
#[derive(Debug)]
pub struct JoinTokenAttestor {
    trust_domain: TrustDomain,
    tokens: Arc<dyn JoinTokens>,
}

impl JoinTokenAttestor {
    pub fn new(trust_domain: TrustDomain, tokens: Arc<dyn JoinTokens>) -> Self {
        Self {
            trust_domain,
            tokens,
        }
    }
}

#[async_trait]
impl Lifecycle for JoinTokenAttestor {
    type Config = ();

    async fn open((): (), host: &HostServices) -> Result<Self, Error> {
        let tokens = host.join_tokens.clone().ok_or_else(|| {
            Error::new(
                JOIN_TOKEN,
                ErrorKind::Internal,
                "the host offers no join tokens",
            )
        })?;
        Ok(Self::new(host.trust_domain.clone(), tokens))
    }
}

#[async_trait]
impl server::NodeAttestor for JoinTokenAttestor {
    fn name(&self) -> &str {
        JOIN_TOKEN
    }

    async fn attest(&self, conversation: &mut Conversation<'_>) -> Result<AgentAttributes, Error> {
        let refused = |message| Error::new(JOIN_TOKEN, ErrorKind::Permanent, message);
        let Ok(token) = std::str::from_utf8(conversation.payload()) else {
            return Err(refused(UNKNOWN));
        };
        // Before the token is used up: one that cannot be a segment of an ID was never handed out.
        let segments = ["spire", "agent", JOIN_TOKEN, token];
        let Ok(agent_id) = SpiffeId::from_segments(&self.trust_domain, &segments) else {
            return Err(refused(UNKNOWN));
        };
        match self.tokens.redeem(token).await {
            Ok(()) => Ok(AgentAttributes {
                agent_id,
                selectors: Vec::new(),
                can_reattest: false,
            }),
            Err(TokenRefusal::Unknown) => Err(refused(UNKNOWN)),
            Err(TokenRefusal::Expired) => Err(refused("join token expired")),
            Err(error @ TokenRefusal::Unavailable(_)) => {
                Err(Error::from_source(JOIN_TOKEN, ErrorKind::Transient, error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
