//! Key managers: in memory alone, and in a file.

mod disk;
mod memory;

pub use disk::DiskKeyManager;
pub use memory::MemoryKeyManager;

use spiffe::key::{KeyPair, KeyType};

use crate::error::{Error, ErrorKind};

/// Makes a key on a thread where it may take its time: RSA does.
async fn generate(plugin: &'static str, id: &str, ty: KeyType) -> Result<KeyPair, Error> {
    if id.is_empty() {
        return Err(Error::new(
            plugin,
            ErrorKind::Permanent,
            "a key needs a name",
        ));
    }
    tokio::task::spawn_blocking(move || KeyPair::generate(ty))
        .await
        .map_err(|_cancelled| Error::interrupted(plugin))?
        .map_err(|error| Error::from_source(plugin, ErrorKind::Internal, error))
}
