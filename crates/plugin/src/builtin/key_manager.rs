//! Key managers: in memory alone, and in a file.

mod disk;
mod memory;

pub use disk::DiskKeyManager;
pub use memory::MemoryKeyManager;

use std::path::PathBuf;

use config::Section;
use spiffe::key::{KeyPair, KeyType};

use crate::error::{Error, ErrorKind};

/// The key file of a server's key manager.
pub(crate) fn read_keys_path(data: &Section) -> Option<PathBuf> {
    let path = data.required_string("keys_path", "/var/lib/plastron/server/keys.json");
    path.map(PathBuf::from)
}

/// The key file of an agent's key manager, which names its directory alone.
pub(crate) fn read_directory(data: &Section) -> Option<PathBuf> {
    let directory = data.required_string("directory", "/var/lib/plastron/agent");
    directory.map(|directory| PathBuf::from(directory).join("keys.json"))
}

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
