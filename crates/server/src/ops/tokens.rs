//! Join tokens, each of which attests one node.

use std::sync::Arc;

use plugin::builtin::node_attestor::JOIN_TOKEN;
use spiffe::clock::{Clock, unix_seconds};
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;

use crate::datastore::{self, JoinToken, TokenError};
use crate::error::{Kind, OpError, failed, refused, write_failed};

/// The longest token that fits an ID's path segment with room to spare.
const MAX_TOKEN: usize = 255;

#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) tokens: datastore::Tokens,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A token that was made.
pub(crate) struct MadeToken {
    pub(crate) value: String,
    /// Unix seconds.
    pub(crate) expires_at: i64,
}

impl Tokens {
    /// Makes a token. Its node gets the ID `named` as well, if one is given. An empty `token` is replaced by a random one.
    ///
    /// # Errors
    /// InvalidArgument, or AlreadyExists for a token that is in use.
    pub(crate) async fn create(
        &self,
        ttl: i32,
        token: String,
        named: Option<SpiffeId>,
    ) -> Result<MadeToken, OpError> {
        if ttl < 1 {
            let what = "ttl is required, you must provide one";
            return Err(refused(Kind::InvalidArgument, what));
        }
        let value = if token.is_empty() {
            uuid::Uuid::new_v4().to_string()
        } else {
            token
        };
        if value.len() > MAX_TOKEN {
            let what = format!("token is too long (max {MAX_TOKEN} characters)");
            return Err(refused(Kind::InvalidArgument, what));
        }
        SpiffeId::from_segments(&self.trust_domain, &["spire", "agent", JOIN_TOKEN, &value])
            .map_err(|error| {
                let what = "token cannot be part of an agent ID";
                failed(Kind::InvalidArgument, what, error)
            })?;
        let expires_at = unix_seconds(self.clock.now()).saturating_add(i64::from(ttl));
        let made = JoinToken {
            token: value.clone(),
            expires_at,
            alias: named,
        };
        let created = self.tokens.create(made).await;
        created.map_err(|error| match error {
            TokenError::Taken => failed(Kind::AlreadyExists, "failed to create token", error),
            TokenError::Alias(error) => {
                let what = "failed to create join token registration entry";
                failed(Kind::InvalidArgument, what, error)
            }
            error => write_failed("failed to create token", &error),
        })?;
        Ok(MadeToken { value, expires_at })
    }
}
