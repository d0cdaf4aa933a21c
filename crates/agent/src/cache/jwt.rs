//! JWT-SVIDs kept for reuse: one per SPIFFE ID and set of audiences, least recently used out first, renewed at half life.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::id::SpiffeId;
use spiffe::rotation::half_life;
use spiffe::secret::Secret;

/// What a cached token is found by. Audiences are compared as sets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct JwtKey {
    spiffe_id: SpiffeId,
    audience: Vec<String>,
}

impl JwtKey {
    /// The key of a token for this identity and these audiences, in any order.
    pub(crate) fn new(spiffe_id: &SpiffeId, audience: &[String]) -> Self {
        let mut audience = audience.to_vec();
        audience.sort_unstable();
        audience.dedup();
        Self {
            spiffe_id: spiffe_id.clone(),
            audience,
        }
    }
}

/// A token and the time it is good for.
#[derive(Debug)]
pub(crate) struct JwtToken {
    pub(crate) token: Secret<String>,
    pub(crate) issued_at: SystemTime,
    pub(crate) expires_at: SystemTime,
    pub(crate) key_id: Option<String>,
}

impl JwtToken {
    /// Whether one of these keys signed it.
    pub(super) fn is_signed_by(&self, key_ids: &BTreeSet<String>) -> bool {
        self.key_id
            .as_ref()
            .is_some_and(|key_id| key_ids.contains(key_id))
    }
}

/// What the cache has for a key.
#[derive(Debug, Clone)]
pub(crate) enum Cached {
    /// Less than half of its life is over.
    Fresh(Arc<JwtToken>),
    /// Still valid, but to be renewed.
    Aging(Arc<JwtToken>),
    /// Nothing usable.
    Absent,
}

#[derive(Debug)]
pub(super) struct JwtCache {
    capacity: usize,
    uses: u64,
    tokens: HashMap<Arc<JwtKey>, (u64, Arc<JwtToken>)>,
    by_use: BTreeMap<u64, Arc<JwtKey>>,
}

impl JwtCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            uses: 0,
            tokens: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    /// Looks a token up and counts that as a use.
    pub(super) fn get(&mut self, key: &JwtKey, now: SystemTime) -> Cached {
        let Some((used, token)) = self.tokens.get_mut(key) else {
            return Cached::Absent;
        };
        if now >= token.expires_at {
            return Cached::Absent;
        }
        let token = Arc::clone(token);
        self.uses += 1;
        if let Some(key) = self.by_use.remove(used) {
            self.by_use.insert(self.uses, key);
        }
        *used = self.uses;
        if now < half_life(token.issued_at, token.expires_at) {
            Cached::Fresh(token)
        } else {
            Cached::Aging(token)
        }
    }

    /// Caches a token. Over capacity, the least recently used ones go; their keys are returned.
    pub(super) fn put(&mut self, key: Arc<JwtKey>, token: Arc<JwtToken>) -> Vec<Arc<JwtKey>> {
        self.remove(&key);
        self.uses += 1;
        self.by_use.insert(self.uses, Arc::clone(&key));
        self.tokens.insert(key, (self.uses, token));
        let mut evicted = Vec::new();
        while self.tokens.len() > self.capacity {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.tokens.remove(&oldest);
            evicted.push(oldest);
        }
        evicted
    }

    /// Forgets the tokens that `drop` names and returns their keys.
    pub(super) fn forget(
        &mut self,
        drop: impl Fn(&SpiffeId, &JwtToken) -> bool,
    ) -> Vec<Arc<JwtKey>> {
        let forgotten: Vec<Arc<JwtKey>> = self
            .tokens
            .iter()
            .filter(|(key, (_, token))| drop(&key.spiffe_id, token))
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in &forgotten {
            self.remove(key);
        }
        forgotten
    }

    pub(super) fn remove(&mut self, key: &JwtKey) {
        if let Some((used, _)) = self.tokens.remove(key) {
            self.by_use.remove(&used);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, id};

    fn token(from: u64, to: u64) -> Arc<JwtToken> {
        Arc::new(JwtToken {
            token: Secret::new("t".to_owned()),
            issued_at: at(from),
            expires_at: at(to),
            key_id: None,
        })
    }

    fn key(path: &str, audience: &[&str]) -> JwtKey {
        JwtKey::new(
            &id(path),
            &audience.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(),
        )
    }

    fn shared(path: &str, audience: &[&str]) -> Arc<JwtKey> {
        Arc::new(key(path, audience))
    }

    #[test]
    fn order_and_repetition_of_audiences_do_not_matter() {
        assert_eq!(key("/a", &["x", "y"]), key("/a", &["y", "x", "y"]));
        assert_ne!(key("/a", &["x"]), key("/a", &["x", "y"]));
        assert_ne!(key("/a", &["x"]), key("/b", &["x"]));
    }

    #[test]
    fn a_token_ages_at_half_life_and_is_not_given_out_once_expired() {
        let mut cache = JwtCache::new(10);
        cache.put(shared("/a", &["x"]), token(100, 200));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(149)),
            Cached::Fresh(_)
        ));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(150)),
            Cached::Aging(_)
        ));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(200)),
            Cached::Absent
        ));
        cache.remove(&key("/a", &["x"]));
        assert_eq!((cache.len(), cache.by_use.len()), (0, 0));
    }

    #[test]
    fn the_least_recently_used_token_leaves_first() {
        let mut cache = JwtCache::new(2);
        cache.put(shared("/a", &["x"]), token(0, 100));
        cache.put(shared("/b", &["x"]), token(0, 100));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Fresh(_)
        ));
        let evicted = cache.put(shared("/c", &["x"]), token(0, 100));
        assert_eq!(evicted, [shared("/b", &["x"])]);
        assert!(matches!(
            cache.get(&key("/b", &["x"]), at(1)),
            Cached::Absent
        ));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Fresh(_)
        ));
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn a_cache_of_size_zero_keeps_nothing() {
        let mut cache = JwtCache::new(0);
        cache.put(shared("/a", &["x"]), token(0, 100));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Absent
        ));
    }

    #[test]
    fn tokens_of_a_withdrawn_key_are_forgotten() {
        let mut cache = JwtCache::new(5);
        cache.put(shared("/a", &["x"]), token(0, 100));
        let forgotten = cache.forget(|who, _| *who == id("/a"));
        assert_eq!(forgotten, [shared("/a", &["x"])]);
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Absent
        ));
        assert!(cache.by_use.is_empty());
    }
}
