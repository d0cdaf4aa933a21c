//! Join tokens: made once, redeemed once.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::clock::unix_seconds;
use spiffe::digest::sha256_hex;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use super::entries::{EntryWriteError, create};
use super::write_queue::WriteQueue;
use super::{DatastoreError, PRUNE_BATCH};
use crate::registry::{JoinTokenRecord, Kind, Object};

/// A join token to create. `Debug` keeps the token to itself.
#[derive(Clone)]
pub struct JoinToken {
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// Another SPIFFE ID for the node that attests with it; redeeming the token creates the entry for it.
    pub alias: Option<SpiffeId>,
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

/// The ID of the node that attests with a token.
fn token_node(trust_domain: &TrustDomain, token: &str) -> Option<SpiffeId> {
    SpiffeId::from_segments(trust_domain, &["spire", "agent", "join_token", token]).ok()
}

/// The entry that gives a token's node the asked ID as well. SPIRE: its parent and its one selector name the node.
fn alias_entry(named: SpiffeId, trust_domain: &TrustDomain, token: &str) -> Option<Entry> {
    Some(alias_of(named, token_node(trust_domain, token)?))
}

fn alias_of(named: SpiffeId, node: SpiffeId) -> Entry {
    let selectors = Selector::new("spiffe_id", node.as_str()).into_iter();
    Entry::new(
        "",
        named,
        node,
        SelectorSet::from(selectors.collect::<Vec<_>>()),
    )
}

/// The handle by which join tokens are made and redeemed.
#[derive(Debug, Clone)]
pub struct Tokens(pub(super) Arc<WriteQueue>);

impl Tokens {
    /// Makes a token. Nothing of it is stored in clear, so that neither a copy of the store nor a listing of entries
    /// redeems it: its alias waits in the token's own record.
    ///
    /// # Errors
    /// [`TokenError::Taken`], [`TokenError::Alias`], or the store could not write.
    pub async fn create(&self, token: JoinToken) -> Result<(), TokenError> {
        let record = Arc::new(JoinTokenRecord {
            digest: sha256_hex(token.token.as_bytes()),
            expires_at: token.expires_at,
            alias: token.alias.clone(),
        });
        if let Some(named) = token.alias {
            let trust_domain = self.0.registry.trust_domain();
            let alias =
                alias_entry(named, trust_domain, &token.token).ok_or(TokenError::Unknown)?;
            let valid = alias.validate(trust_domain);
            valid.map_err(|error| TokenError::Alias(EntryWriteError::Invalid(error)))?;
        }
        self.0
            .submit(1, move |draft| {
                if draft.get(Kind::JoinToken, &record.digest).is_some() {
                    return Err(TokenError::Taken);
                }
                draft.put(Object::JoinToken(Arc::clone(&record)));
                Ok(())
            })
            .await?
    }

    /// Uses a token up, and makes its alias entry in the same transaction. Of any number of callers on any number of servers at most one gets `Ok`. An expired
    /// token is gone after the attempt, too.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], [`TokenError::Expired`], or the store could not write.
    pub async fn redeem(&self, token: &str, now: SystemTime) -> Result<(), TokenError> {
        let digest = sha256_hex(token.as_bytes());
        let blank = token_node(self.0.registry.trust_domain(), token)
            .map(|node| self.0.completed(alias_of(node.clone(), node)));
        let now = unix_seconds(now);
        self.0
            .submit(2, move |draft| {
                let Some(Object::JoinToken(record)) = draft.get(Kind::JoinToken, &digest) else {
                    return Err(TokenError::Unknown);
                };
                draft.delete(Kind::JoinToken, &digest);
                if record.is_expired(now) {
                    return Err(TokenError::Expired);
                }
                if let (Some(named), Some(blank)) = (&record.alias, &blank) {
                    let alias = Arc::new(Entry {
                        spiffe_id: named.clone(),
                        ..blank.clone()
                    });
                    match create(draft, &alias) {
                        // A node of this token's name was here before, with the same alias.
                        Ok(_) | Err(EntryWriteError::Similar(_)) => {}
                        Err(error) => return Err(TokenError::Alias(error)),
                    }
                }
                Ok(())
            })
            .await?
    }

    /// Deletes tokens that have expired at `now`, not more than a batch of them; returns how many. Call again while there
    /// are any.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn prune(&self, now: SystemTime) -> Result<usize, DatastoreError> {
        let now = unix_seconds(now);
        // Most of the time there is nothing to do, and looking costs no transaction.
        if self.0.registry.read().tokens.expired(now).next().is_none() {
            return Ok(0);
        }
        self.0
            .submit(1, move |draft| {
                let expired = draft.committed().tokens.expired(now).take(PRUNE_BATCH);
                let mut pruned = 0;
                for digest in expired {
                    if draft.get(Kind::JoinToken, digest).is_some() {
                        draft.delete(Kind::JoinToken, digest);
                        pruned += 1;
                    }
                }
                pruned
            })
            .await
    }
}
