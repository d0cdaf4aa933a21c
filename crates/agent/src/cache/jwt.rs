//! JWT-SVIDs kept for reuse: one per SPIFFE ID and set of audiences, least recently used out first, renewed at half life.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::id::SpiffeId;
use spiffe::secret::Secret;

/// What a kept token is found by. Audiences are compared as sets.
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
pub(crate) struct JwtCache {
    capacity: usize,
    tick: u64,
    tokens: HashMap<JwtKey, (u64, Arc<JwtToken>)>,
    by_use: BTreeMap<u64, JwtKey>,
}

impl JwtCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            tick: 0,
            tokens: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    /// Looks a token up and counts that as a use.
    pub(crate) fn get(&mut self, key: &JwtKey, now: SystemTime) -> Cached {
        let Some((used, token)) = self.tokens.get_mut(key) else {
            return Cached::Absent;
        };
        if now >= token.expires_at {
            self.remove(key);
            return Cached::Absent;
        }
        let token = Arc::clone(token);
        self.tick += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.tick, key.clone());
        *used = self.tick;
        if now < half_life(&token) {
            Cached::Fresh(token)
        } else {
            Cached::Aging(token)
        }
    }

    /// Keeps a token; over capacity, the least recently used one goes.
    pub(crate) fn put(&mut self, key: JwtKey, token: Arc<JwtToken>) {
        self.remove(&key);
        self.tick += 1;
        self.by_use.insert(self.tick, key.clone());
        self.tokens.insert(key, (self.tick, token));
        while self.tokens.len() > self.capacity {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            self.tokens.remove(&oldest);
        }
    }

    /// Forgets the tokens that `drop` says.
    pub(crate) fn forget(&mut self, drop: impl Fn(&SpiffeId, &JwtToken) -> bool) {
        self.tokens.retain(|key, (used, token)| {
            let gone = drop(&key.spiffe_id, token);
            if gone {
                self.by_use.remove(used);
            }
            !gone
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    fn remove(&mut self, key: &JwtKey) {
        if let Some((used, _)) = self.tokens.remove(key) {
            self.by_use.remove(&used);
        }
    }
}

fn half_life(token: &JwtToken) -> SystemTime {
    let life = token
        .expires_at
        .duration_since(token.issued_at)
        .unwrap_or(Duration::ZERO);
    token.issued_at + life / 2
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

    #[test]
    fn order_and_repetition_of_audiences_do_not_matter() {
        assert_eq!(key("/a", &["x", "y"]), key("/a", &["y", "x", "y"]));
        assert_ne!(key("/a", &["x"]), key("/a", &["x", "y"]));
        assert_ne!(key("/a", &["x"]), key("/b", &["x"]));
    }

    #[test]
    fn a_token_ages_at_half_life_and_is_gone_at_its_end() {
        let mut cache = JwtCache::new(10);
        cache.put(key("/a", &["x"]), token(100, 200));
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
        assert_eq!((cache.len(), cache.by_use.len()), (0, 0));
    }

    #[test]
    fn the_least_recently_used_token_leaves_first() {
        let mut cache = JwtCache::new(2);
        cache.put(key("/a", &["x"]), token(0, 100));
        cache.put(key("/b", &["x"]), token(0, 100));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Fresh(_)
        ));
        cache.put(key("/c", &["x"]), token(0, 100));
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
        cache.put(key("/a", &["x"]), token(0, 100));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Absent
        ));
    }

    #[test]
    fn tokens_of_a_withdrawn_key_are_forgotten() {
        let mut cache = JwtCache::new(5);
        cache.put(key("/a", &["x"]), token(0, 100));
        cache.forget(|who, _| *who == id("/a"));
        assert!(matches!(
            cache.get(&key("/a", &["x"]), at(1)),
            Cached::Absent
        ));
        assert!(cache.by_use.is_empty());
    }
}
