//! Keys that are gone when the process exits.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use spiffe::key::{KeyType, Signer};

use crate::error::Error;
use crate::key_manager::KeyManager;
use crate::lifecycle::{HostServices, Lifecycle};

/// After a restart the server has new authorities, and an agent has to attest again.
#[derive(Debug, Default)]
pub struct MemoryKeyManager {
    keys: RwLock<BTreeMap<String, Arc<dyn Signer>>>,
}

impl MemoryKeyManager {
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Lifecycle for MemoryKeyManager {
    type Config = ();

    async fn open((): (), _host: &HostServices) -> Result<Self, Error> {
        Ok(Self::new())
    }
}

#[async_trait]
impl KeyManager for MemoryKeyManager {
    fn is_persistent(&self) -> bool {
        false
    }

    async fn generate_key(&self, id: &str, ty: KeyType) -> Result<Arc<dyn Signer>, Error> {
        let key: Arc<dyn Signer> = Arc::new(super::generate("memory", id, ty).await?);
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(id.to_owned(), Arc::clone(&key));
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.get(id).map(Arc::clone))
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys
            .iter()
            .map(|(id, key)| (id.clone(), Arc::clone(key)))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        crate::key_manager::contract::all(&MemoryKeyManager::new()).await;
    }
}
