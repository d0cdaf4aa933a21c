//! The SHA-256 digest of a program, remembered by what the kernel says of the file.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use spiffe::clock::{Clock, unix_seconds};

use super::problem::Problem;
use super::process;

/// Digests that are remembered at most.
const CAPACITY: usize = 1024;

/// A file that changed within these seconds is not remembered: a second change could leave all of [`FileId`] as it is,
/// since the kernel's time stamps are coarse.
const SETTLED_SECONDS: i64 = 5;

/// What changes when a file's content does. The owner of a file can set back its modification time, but not the time
/// of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A program that was opened and found within the limit.
pub(super) struct Opened {
    pid: i32,
    file: File,
    path: String,
    id: FileId,
    limit: u64,
    known: Option<String>,
}

impl Opened {
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The digest, if it need not be computed.
    pub(super) fn known(&self) -> Option<String> {
        self.known.clone()
    }

    fn unreadable(&self, source: io::Error) -> Problem {
        Problem::Unreadable {
            pid: self.pid,
            what: "the program",
            source,
        }
    }

    fn too_large(&self, size: u64) -> Problem {
        Problem::TooLarge {
            path: PathBuf::from(&self.path),
            size,
            limit: self.limit,
        }
    }
}

#[derive(Debug)]
pub(super) struct Digests {
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_file: HashMap<FileId, String>,
    /// In the order they came: the oldest goes first.
    order: VecDeque<FileId>,
}

impl Digests {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            known: Mutex::default(),
        }
    }

    /// Opens the program of a process. `limit` is in bytes, 0 for none. Blocks.
    pub(super) fn open(&self, pid: i32, limit: u64) -> Result<Opened, Problem> {
        let (file, path) = process::program(pid)?;
        let metadata = file.metadata().map_err(|source| Problem::Unreadable {
            pid,
            what: "the program",
            source,
        })?;
        let id = FileId::of(&metadata);
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .by_file
            .get(&id)
            .cloned();
        let opened = Opened {
            pid,
            file,
            path,
            id,
            limit,
            known,
        };
        if limit > 0 && id.size > limit {
            return Err(opened.too_large(id.size));
        }
        Ok(opened)
    }

    /// Reads the program through. Lower-case hexadecimal. Blocks, for as long as the program is large.
    pub(super) fn compute(&self, mut opened: Opened) -> Result<String, Problem> {
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; 64 << 10];
        let mut size: u64 = 0;
        loop {
            let count = match opened.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(opened.unreadable(error)),
            };
            context.update(buffer.get(..count).unwrap_or_default());
            size = size.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            // It may grow while it is read.
            if opened.limit > 0 && size > opened.limit {
                return Err(opened.too_large(size));
            }
        }
        let digest: String = context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let after = opened
            .file
            .metadata()
            .map_err(|error| opened.unreadable(error))?;
        let settled = unix_seconds(self.clock.now()) - opened.id.changed.0 > SETTLED_SECONDS;
        if settled && FileId::of(&after) == opened.id {
            self.remember(opened.id, &digest);
        }
        Ok(digest)
    }

    fn remember(&self, id: FileId, digest: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_file.insert(id, digest.to_owned()).is_some() {
            return;
        }
        known.order.push_back(id);
        if known.order.len() > CAPACITY
            && let Some(oldest) = known.order.pop_front()
        {
            known.by_file.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.known.lock().unwrap().by_file.len()
    }

    #[cfg(test)]
    pub(super) fn remember_some(&self, count: u64) {
        for inode in 0..count {
            let id = FileId {
                device: 0,
                inode,
                size: 0,
                modified: (0, 0),
                changed: (0, 0),
            };
            self.remember(id, "x");
        }
    }
}
