//! Join tokens: made once, redeemed once.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::clock::unix_seconds;
use spiffe::entry::Entry;

use super::codec::hex_sha256;
use super::entries::{EntryWriteError, create};
use super::{Datastore, DatastoreError};
use crate::registry::{JoinTokenRecord, Kind, Object};

/// A join token to create. `Debug` keeps the token to itself.
#[derive(Clone)]
pub struct JoinToken {
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// The entry that gives the joining node another agent's name, created in the same transaction.
    pub alias: Option<Entry>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("token", &"[redacted]")
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

/// Why a token was not made or not redeemed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("join token does not exist or has already been used")]
    Unknown,
    #[error("join token expired")]
    Expired,
    #[error("a join token of this value already exists")]
    Taken,
    #[error("the join token's alias entry: {0}")]
    Alias(EntryWriteError),
    #[error(transparent)]
    Store(#[from] DatastoreError),
}

impl Datastore {
    /// Makes a token, with its alias entry or not at all.
    ///
    /// # Errors
    /// [`TokenError::Taken`], [`TokenError::Alias`], or the store could not write.
    pub async fn create_join_token(&self, token: JoinToken) -> Result<(), TokenError> {
        let record = Arc::new(JoinTokenRecord {
            digest: hex_sha256(token.token.as_bytes()),
            expires_at: token.expires_at,
        });
        let alias = token.alias.map(|alias| Arc::new(self.completed(alias)));
        if let Some(alias) = &alias {
            let valid = alias.validate(self.registry().trust_domain());
            valid.map_err(|error| TokenError::Alias(EntryWriteError::Invalid(error)))?;
        }
        self.submit(2, move |draft| {
            if draft.get(Kind::JoinToken, &record.digest).is_some() {
                return Err(TokenError::Taken);
            }
            if let Some(alias) = &alias {
                create(draft, alias).map_err(TokenError::Alias)?;
            }
            draft.put(Object::JoinToken(Arc::clone(&record)));
            Ok(())
        })
        .await?
    }

    /// Uses a token up. Of any number of callers on any number of servers one at most is told `Ok`. An expired
    /// token is gone after the attempt, too.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], [`TokenError::Expired`], or the store could not write.
    pub async fn redeem_join_token(&self, token: &str, now: SystemTime) -> Result<(), TokenError> {
        let digest = hex_sha256(token.as_bytes());
        let now = unix_seconds(now);
        self.submit(1, move |draft| {
            let Some(Object::JoinToken(record)) = draft.get(Kind::JoinToken, &digest) else {
                return Err(TokenError::Unknown);
            };
            draft.delete(Kind::JoinToken, &digest);
            if record.expires_at < now {
                Err(TokenError::Expired)
            } else {
                Ok(())
            }
        })
        .await?
    }

    /// Deletes tokens that expired before `now`; returns how many.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn prune_join_tokens(&self, now: SystemTime) -> Result<usize, DatastoreError> {
        let now = unix_seconds(now);
        if !self
            .registry()
            .read()
            .tokens
            .values()
            .any(|token| token.expires_at < now)
        {
            return Ok(0);
        }
        self.submit(1, move |draft| {
            let expired = draft
                .committed()
                .tokens
                .values()
                .filter(|token| token.expires_at < now);
            let digests: Vec<String> = expired.map(|token| token.digest.clone()).collect();
            let pruned = digests
                .iter()
                .filter(|digest| draft.get(Kind::JoinToken, digest).is_some())
                .count();
            for digest in digests {
                draft.delete(Kind::JoinToken, &digest);
            }
            pruned
        })
        .await
    }
}
