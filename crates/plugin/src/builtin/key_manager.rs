//! Key managers: in memory alone, and in a file.

mod disk;
mod memory;

pub use disk::DiskKeyManager;
pub use memory::MemoryKeyManager;

use spiffe::key::{KeyPair, KeyType};

use crate::key_manager::Error;

/// Makes a key on a thread where it may take its time: RSA does.
async fn generate(ty: KeyType) -> Result<KeyPair, Error> {
    let made = tokio::task::spawn_blocking(move || KeyPair::generate(ty)).await;
    made.map_err(|_cancelled| Error::CutOff)?
        .map_err(Error::from)
}
