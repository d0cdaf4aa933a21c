//! Keys in one JSON file, as SPIRE writes it: `{"keys": {NAME: base64 of PKCS#8}}`.
//!
//! Either program can take the file over from the other. The file is read once, at the start, and written whole at
//! every new key.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use spiffe::key::{KeyPair, KeyType, Signer};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, ErrorKind};
use crate::key_manager::KeyManager;
use crate::lifecycle::{HostServices, Lifecycle};
use config::fault::{Code, Fault};
use config::private_file;

const NAME: &str = "disk";

/// A server has six keys, an agent two: this is far beyond either.
const MAX_BYTES: u64 = 1 << 20;

/// Keys that survive a restart.
#[derive(Debug)]
pub struct DiskKeyManager {
    path: PathBuf,
    keys: RwLock<BTreeMap<String, Arc<KeyPair>>>,
    /// Held over making and writing a key, so that two do not write each other's file.
    writing: tokio::sync::Mutex<()>,
    /// Keeps other processes from the file for as long as this lives.
    _lock: Option<File>,
}

impl DiskKeyManager {
    /// Reads the file; one that does not exist has no keys. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or another process uses it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let lock = lock(path)?;
        let keys = match private_file::read(path, MAX_BYTES) {
            Ok(bytes) => decode(path, &bytes)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                check_directory(path)?;
                BTreeMap::new()
            }
            Err(source) => return Err(unreadable(path, source)),
        };
        Ok(Self {
            path: path.to_owned(),
            keys: RwLock::new(keys),
            writing: tokio::sync::Mutex::new(()),
            _lock: lock,
        })
    }

    fn snapshot(&self) -> BTreeMap<String, Arc<KeyPair>> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl Lifecycle for DiskKeyManager {
    type Config = PathBuf;

    async fn open(path: PathBuf, _host: &HostServices) -> Result<Self, Error> {
        tokio::task::spawn_blocking(move || Self::open(&path))
            .await
            .map_err(|_cancelled| Error::interrupted(NAME))?
    }
}

#[async_trait]
impl KeyManager for DiskKeyManager {
    async fn generate_key(&self, id: &str, ty: KeyType) -> Result<Arc<dyn Signer>, Error> {
        let key = Arc::new(super::generate(NAME, id, ty).await?);
        let _writing = self.writing.lock().await;
        let mut keys = self.snapshot();
        keys.insert(id.to_owned(), Arc::clone(&key));
        let path = self.path.clone();
        // Once started, the write completes even if the caller goes away.
        let written = tokio::task::spawn_blocking(move || -> Result<_, Error> {
            let text = encode(&keys)?;
            private_file::replace(&path, &text).map_err(|source| unwritable(&path, source))?;
            Ok(keys)
        });
        let keys = written
            .await
            .map_err(|_cancelled| Error::interrupted(NAME))??;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.get(id).map(|key| Arc::clone(key) as Arc<dyn Signer>))
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, Error> {
        Ok(self
            .snapshot()
            .into_iter()
            .map(|(id, key)| (id, key as Arc<dyn Signer>))
            .collect())
    }
}

/// Locks the file's neighbour `<file>.lock`: the file itself is replaced at every new key. Two processes with one file would
/// overwrite each other's keys. Where no lock can be made the file cannot be written either, and nothing is at risk.
fn lock(path: &Path) -> Result<Option<File>, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(name);
    let Ok(file) = opened else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        // A file system without locks.
        Err(TryLockError::Error(error)) => {
            tracing::warn!(%error, path = %path.display(), "the key file cannot be locked");
            Ok(None)
        }
    }
}

fn in_use(path: &Path) -> Error {
    let path = path.display();
    let what = format!("the key file {path} is in use by another process");
    let fault = Fault::new(Code::KeyFileInUse, what.clone()).hint(format!(
        "stop the other process (fuser {path}.lock), or give this one a file of its own"
    ));
    Error::new(NAME, ErrorKind::Permanent, what).with_fault(fault)
}

/// Reported at the start rather than when the first key is due.
fn check_directory(path: &Path) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(unwritable(path, io::ErrorKind::NotADirectory.into())),
        Err(source) => Err(unwritable(path, source)),
    }
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    let path = path.display();
    let what = format!("cannot read the key file {path}");
    let fault = Fault::new(Code::KeyFileUnreadable, what)
        .because(&source)
        .hint(format!(
            "the file must be readable for the daemon's user: ls -l {path}"
        ));
    let message = format!("cannot read the key file {path}: {source}");
    Error::new(NAME, ErrorKind::Permanent, message)
        .with_source(source)
        .with_fault(fault)
}

/// `why` shows nothing of the content.
fn damaged(path: &Path, why: &str) -> Error {
    let path = path.display();
    let fault = Fault::new(
        Code::KeyFileInvalid,
        format!("the key file {path} is damaged"),
    )
    .because(why)
    .hint("restore it from a backup, or move it aside; new keys are then generated");
    let message = format!("the key file {path} is damaged: {why}");
    Error::new(NAME, ErrorKind::Permanent, message).with_fault(fault)
}

/// Transient: a disk that is full or a directory that is missing can be mended while the daemon runs.
fn unwritable(path: &Path, source: io::Error) -> Error {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    let path = path.display();
    let code = match source.kind() {
        StorageFull | QuotaExceeded => Code::DiskFull,
        _ => Code::KeyFileUnwritable,
    };
    let fault = Fault::new(code, format!("cannot write the key file {path}"))
        .because(&source)
        .hint("its directory must exist and be writable for the daemon's user");
    let message = format!("cannot write the key file {path}: {source}");
    Error::new(NAME, ErrorKind::Transient, message)
        .with_source(source)
        .with_fault(fault)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Arc<KeyPair>>, Error> {
    #[derive(serde::Deserialize)]
    struct File {
        keys: Option<BTreeMap<String, String>>,
    }
    let damaged = |why: String| damaged(path, &why);
    // serde_json's own message may quote the content.
    let file: File = serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        damaged(format!(
            "it is not the JSON of a key file (line {line}, column {column})"
        ))
    })?;
    let mut keys = BTreeMap::new();
    for (id, mut text) in file.keys.unwrap_or_default() {
        let der = STANDARD.decode(text.as_bytes()).map(Zeroizing::new);
        text.zeroize();
        let der = der.map_err(|_undecodable| damaged(format!("the key {id:?} is not base64")))?;
        let key = KeyPair::from_pkcs8_der(&der)
            .map_err(|error| damaged(format!("the key {id:?}: {error}")))?;
        keys.insert(id, Arc::new(key));
    }
    Ok(keys)
}

/// Indented by tabs, as SPIRE does.
fn encode(keys: &BTreeMap<String, Arc<KeyPair>>) -> Result<Zeroizing<Vec<u8>>, Error> {
    #[derive(Serialize)]
    struct File<'a> {
        keys: BTreeMap<&'a str, &'a str>,
    }
    let mut texts: Vec<(&str, Zeroizing<String>)> = Vec::with_capacity(keys.len());
    for (id, key) in keys {
        let der = key.to_pkcs8_der().map_err(unencodable)?;
        texts.push((id, Zeroizing::new(STANDARD.encode(der.expose()))));
    }
    let file = File {
        keys: texts
            .iter()
            .map(|(id, text)| (*id, text.as_str()))
            .collect(),
    };
    // Large enough not to grow, which would leave copies behind.
    let size = texts
        .iter()
        .map(|(id, text)| 6 * id.len() + text.len() + 16)
        .sum::<usize>()
        + 64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(size));
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut *bytes, formatter);
    // A map of strings into memory: neither half can fail.
    file.serialize(&mut serializer).map_err(unencodable)?;
    Ok(bytes)
}

fn unencodable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_source(NAME, ErrorKind::Internal, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spiffe::key::SignatureScheme;
    use std::os::unix::fs::PermissionsExt;

    fn refusal(content: &[u8]) -> Error {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        std::fs::write(&path, content).unwrap();
        DiskKeyManager::open(&path).expect_err("must be refused")
    }

    #[tokio::test]
    async fn keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let manager = DiskKeyManager::open(&directory.path().join("keys.json")).unwrap();
        crate::key_manager::contract::all(&manager).await;
    }

    #[tokio::test]
    async fn keys_survive_a_restart_in_a_private_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let manager = DiskKeyManager::open(&path).unwrap();
        for (id, ty) in [
            ("a", KeyType::EcP256),
            ("b", KeyType::EcP384),
            ("c", KeyType::Rsa2048),
        ] {
            manager.generate_key(id, ty).await.unwrap();
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let before = manager.keys().await.unwrap();
        drop(manager);
        let again = DiskKeyManager::open(&path).unwrap();
        let after = again.keys().await.unwrap();
        assert_eq!(before.len(), after.len());
        for ((id, before), (_, after)) in before.iter().zip(&after) {
            assert_eq!(before.public_key(), after.public_key(), "{id}");
        }
    }

    #[tokio::test]
    async fn the_file_has_the_form_that_spire_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let manager = DiskKeyManager::open(&path).unwrap();
        let key = manager
            .generate_key("x509-CA-A", KeyType::EcP256)
            .await
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("{\n\t\"keys\": {\n\t\t\"x509-CA-A\": \""),
            "{}",
            text.len()
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let der = STANDARD
            .decode(value["keys"]["x509-CA-A"].as_str().unwrap())
            .unwrap();
        assert_eq!(
            KeyPair::from_pkcs8_der(&der).unwrap().public_key(),
            key.public_key()
        );
        key.sign(SignatureScheme::EcdsaSha256, b"m").await.unwrap();
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_stored_is_not_given_out() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("data");
        std::fs::create_dir(&inner).unwrap();
        let path = inner.join("keys.json");
        let manager = DiskKeyManager::open(&path).unwrap();
        let former = manager.generate_key("a", KeyType::EcP256).await.unwrap();
        std::fs::remove_dir_all(&inner).unwrap();
        let error = manager
            .generate_key("a", KeyType::EcP256)
            .await
            .unwrap_err();
        assert_eq!(error.to_fault().code, Code::KeyFileUnwritable);
        let found = manager.key("a").await.unwrap().unwrap();
        assert_eq!(found.public_key(), former.public_key());
    }

    #[test]
    fn a_file_that_another_uses_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let first = DiskKeyManager::open(&path).unwrap();
        let second = DiskKeyManager::open(&path).unwrap_err();
        assert_eq!(second.to_fault().code, Code::KeyFileInUse);
        DiskKeyManager::open(&directory.path().join("other.json")).unwrap();
        drop(first);
        DiskKeyManager::open(&path).unwrap();
    }

    #[test]
    fn files_without_keys_are_read_as_empty() {
        for content in [
            "{}",
            "{\"keys\": {}}",
            "{\"keys\": null}",
            "{\"keys\": {}, \"other\": 1}",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("keys.json");
            std::fs::write(&path, content).unwrap();
            let manager = DiskKeyManager::open(&path).unwrap();
            assert!(manager.snapshot().is_empty(), "{content}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_without_showing_it() {
        for content in [
            "",
            "{",
            "[]",
            "hunter2",
            "{\"keys\": \"hunter2\"}",
            "{\"keys\": {\"a\": 1}}",
            "{\"keys\": {\"a\": \"hunter2!\"}}",
            "{\"keys\": {\"a\": \"aHVudGVyMg==\"}}",
        ] {
            let fault = refusal(content.as_bytes()).to_fault();
            assert_eq!(fault.code, Code::KeyFileInvalid, "{content}");
            assert!(!fault.to_string().contains("unter2"), "{fault}");
        }
        let large = refusal(&vec![b' '; (1 << 20) + 1]);
        assert_eq!(large.to_fault().code, Code::KeyFileUnreadable);
        assert_eq!(refusal(&[0xff]).to_fault().code, Code::KeyFileInvalid);
    }

    #[test]
    fn a_missing_directory_is_reported_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let error = DiskKeyManager::open(&directory.path().join("missing/keys.json")).unwrap_err();
        assert_eq!(error.to_fault().code, Code::KeyFileUnwritable);
    }

    #[test]
    fn debug_shows_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let mut keys = BTreeMap::new();
        keys.insert(
            "a".to_owned(),
            Arc::new(KeyPair::generate(KeyType::EcP256).unwrap()),
        );
        let path = directory.path().join("keys.json");
        std::fs::write(&path, encode(&keys).unwrap().as_slice()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let secret = text.split('"').nth(5).unwrap();
        let shown = format!("{:?}", DiskKeyManager::open(&path).unwrap());
        assert!(secret.len() > 100 && !shown.contains(secret));
    }
}
