//! Private keys for workloads, a few made ahead of time so that a first SVID does not wait for one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use spiffe::key::{KeyPair, KeyType};

/// How many keys are kept ready.
const READY: usize = 8;

/// A pool of fresh key pairs of one type. Each key is handed out once.
#[derive(Debug, Clone)]
pub(crate) struct KeyPool {
    key_type: KeyType,
    ready: Arc<Mutex<VecDeque<KeyPair>>>,
}

/// A key pair could not be made.
#[derive(Debug, thiserror::Error)]
#[error("private key could not be made: {0}")]
pub(crate) struct KeyPoolError(String);

impl KeyPool {
    pub(crate) fn new(key_type: KeyType) -> Self {
        Self {
            key_type,
            ready: Arc::default(),
        }
    }

    pub(crate) fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// `count` fresh keys, made on a thread that may block as far as the pool has none, and the pool filled again.
    ///
    /// # Errors
    /// When the random source or the key generation fails.
    pub(crate) async fn take(&self, count: usize) -> Result<Vec<KeyPair>, KeyPoolError> {
        let mut keys: Vec<KeyPair> = {
            let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
            let available = count.min(ready.len());
            ready.drain(..available).collect()
        };
        let missing = count - keys.len();
        if missing > 0 {
            let key_type = self.key_type;
            let made = tokio::task::spawn_blocking(move || {
                (0..missing)
                    .map(|_| generate(key_type))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await
            .map_err(|error| KeyPoolError(error.to_string()))??;
            keys.extend(made);
        }
        self.refill();
        Ok(keys)
    }

    /// Starts to fill the pool in the background.
    pub(crate) fn refill(&self) {
        let pool = self.clone();
        drop(tokio::task::spawn_blocking(move || {
            while pool.lock().len() < READY {
                let Ok(key) = generate(pool.key_type) else {
                    return;
                };
                pool.lock().push_back(key);
            }
        }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<KeyPair>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn generate(key_type: KeyType) -> Result<KeyPair, KeyPoolError> {
    KeyPair::generate(key_type).map_err(|error| KeyPoolError(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn no_key_is_handed_out_twice() {
        let pool = KeyPool::new(KeyType::EcP256);
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            for key in pool.take(5).await.unwrap() {
                assert!(seen.insert(key.public_key().spki_der().to_vec()));
            }
        }
        assert_eq!(seen.len(), 20);
    }
}
