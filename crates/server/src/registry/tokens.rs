//! The join tokens that wait, by digest and by expiry.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::records::JoinTokenRecord;

#[derive(Debug, Default)]
pub(crate) struct TokenTable {
    by_digest: HashMap<Arc<str>, Arc<JoinTokenRecord>>,
    by_expiry: BTreeSet<(i64, Arc<str>)>,
}

impl TokenTable {
    pub(crate) fn get(&self, digest: &str) -> Option<&Arc<JoinTokenRecord>> {
        self.by_digest.get(digest)
    }

    pub(crate) fn put(&mut self, token: Arc<JoinTokenRecord>) -> Option<Arc<JoinTokenRecord>> {
        let digest: Arc<str> = Arc::from(token.digest.as_str());
        let former = self.remove(&digest);
        self.by_expiry
            .insert((token.expires_at, Arc::clone(&digest)));
        self.by_digest.insert(digest, token);
        former
    }

    pub(crate) fn remove(&mut self, digest: &str) -> Option<Arc<JoinTokenRecord>> {
        let (digest, token) = self.by_digest.remove_entry(digest)?;
        self.by_expiry.remove(&(token.expires_at, digest));
        Some(token)
    }

    /// The digests of those that have expired at `now`, the first to expire first.
    pub(crate) fn expired(&self, now: i64) -> impl Iterator<Item = &Arc<str>> {
        let due = self
            .by_expiry
            .iter()
            .take_while(move |(expiry, _)| *expiry <= now);
        due.map(|(_, digest)| digest)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<JoinTokenRecord>> {
        let all = self.by_expiry.iter();
        all.filter_map(|(_, digest)| self.by_digest.get(digest))
    }
}
