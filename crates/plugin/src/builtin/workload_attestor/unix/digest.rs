//! The SHA-256 digest of a program, remembered by what the kernel says of the file.
//!
//! Callers decide what is read here, so its cost is bounded: by size, by the number of readings at the same time, and by
//! one reading for all processes of a user that wait for the same file. It is not shared with other users: it waits for a
//! turn of its user, and nobody else is to wait in that queue. The digests that are remembered serve everybody. A reading
//! that nobody waits for any more is finished all the same (the next caller finds its result), unless the file is
//! huge.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use spiffe::clock::{Clock, unix_seconds};

use super::problem::Problem;
use super::process;
use crate::blocking::{self, Interrupted, SingleFlight, Waiters, WorkLimits};

/// Digests that are remembered at most.
const CAPACITY: usize = 1024;

/// A file that changed within these seconds is not remembered: a second change could leave all of [`FileId`] as it is,
/// since the kernel's time stamps are coarse.
const SETTLED_SECONDS: i64 = 5;

/// Programs that are read at the same time, half of them for one user.
const READ_AT_ONCE: usize = 2;
/// Programs that are being opened at the same time, half of them for one user: a network file system may not answer.
const OPENED_AT_ONCE: usize = 16;
const FINISHED_ANYWAY: u64 = 1 << 30;
const CHUNK: usize = 128 << 10;

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

/// A program that was opened.
pub(super) struct Opened {
    pid: i32,
    file: File,
    path: String,
    id: FileId,
}

/// Why a reading gave no digest; each who waited makes its own error of it.
#[derive(Debug, Clone)]
enum Failure {
    Unreadable(io::ErrorKind),
    TooLarge(u64),
    Interrupted,
}

/// What a reading came to.
type Reading = Result<Arc<str>, Failure>;

impl Opened {
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

/// The digests of programs, remembered and under way.
#[derive(Debug)]
pub(super) struct Digests {
    clock: Arc<dyn Clock>,
    /// In bytes; 0 means no limit.
    limit: u64,
    known: Mutex<Known>,
    /// By file and user.
    under_way: Arc<SingleFlight<(FileId, u32), Reading>>,
    reading: WorkLimits,
    opening: WorkLimits,
    /// A reading that nobody waits for ends after so many bytes.
    pub(super) finished_anyway: u64,
    /// How many programs were read.
    pub(super) readings: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    by_file: HashMap<FileId, Arc<str>>,
    /// In the order they came: the oldest goes first.
    order: VecDeque<FileId>,
}

/// Blocks.
fn open(pid: i32) -> Result<Opened, Problem> {
    let (file, path) = process::program(pid)?;
    let metadata = file.metadata().map_err(|source| Problem::Unreadable {
        pid,
        what: "the program",
        source,
    })?;
    Ok(Opened {
        pid,
        file,
        path,
        id: FileId::of(&metadata),
    })
}

impl Digests {
    /// `limit` is in bytes, 0 for none.
    pub(super) fn new(clock: Arc<dyn Clock>, limit: u64) -> Self {
        Self {
            clock,
            limit,
            known: Mutex::default(),
            under_way: Arc::default(),
            reading: WorkLimits::new(READ_AT_ONCE, READ_AT_ONCE / 2),
            opening: WorkLimits::new(OPENED_AT_ONCE, OPENED_AT_ONCE / 2),
            finished_anyway: FINISHED_ANYWAY,
            readings: AtomicUsize::new(0),
        }
    }

    /// Opens the program of a process.
    pub(super) async fn open(&self, pid: i32, user: u32) -> Result<Opened, Problem> {
        let turn = self.opening.take(user).await?;
        blocking::run(turn, move || open(pid)).await?
    }

    /// The path of the program of a process, which need not be readable.
    pub(super) async fn path(&self, pid: i32, user: u32) -> Result<String, Problem> {
        let turn = self.opening.take(user).await?;
        blocking::run(turn, move || process::program_path(pid)).await?
    }

    /// The digest of the program, in lower-case hexadecimal: remembered, or read on behalf of `user`.
    pub(super) async fn digest(
        self: &Arc<Self>,
        opened: Opened,
        user: u32,
    ) -> Result<Arc<str>, Problem> {
        let (id, pid, path) = (opened.id, opened.pid, opened.path.clone());
        let too_large = |size| Problem::TooLarge {
            path: PathBuf::from(&path),
            size,
            limit: self.limit,
        };
        if self.limit > 0 && id.size > self.limit {
            return Err(too_large(id.size));
        }
        if let Some(known) = self.known(&id) {
            return Ok(known);
        }
        let this = Arc::clone(self);
        let work = |waiters: Waiters<Reading>| async move {
            let turn = this.reading.take(user).await?;
            if waiters.are_gone() {
                return Err(Interrupted);
            }
            // Another user's reading of the same file may have ended in the meantime.
            if let Some(known) = this.known(&id) {
                return Ok(Ok(known));
            }
            blocking::run(turn, move || this.read(opened, &waiters)).await
        };
        let outcome = self.under_way.join((id, user), work).await?;
        outcome.map_err(|failure| match failure {
            Failure::TooLarge(size) => too_large(size),
            Failure::Interrupted => Problem::Interrupted,
            Failure::Unreadable(kind) => Problem::Unreadable {
                pid,
                what: "the program",
                source: kind.into(),
            },
        })
    }

    fn known(&self, id: &FileId) -> Option<Arc<str>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.by_file.get(id).cloned()
    }

    /// Reads the program through. Blocks, for as long as the program is large.
    fn read(&self, mut opened: Opened, waiters: &Waiters<Reading>) -> Reading {
        self.readings.fetch_add(1, Ordering::Relaxed);
        let unreadable = |error: io::Error| Failure::Unreadable(error.kind());
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; CHUNK];
        let mut size: u64 = 0;
        loop {
            let count = match opened.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            context.update(buffer.get(..count).unwrap_or_default());
            size = size.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            // It may grow while it is read.
            if self.limit > 0 && size > self.limit {
                return Err(Failure::TooLarge(size));
            }
            if size > self.finished_anyway && waiters.are_gone() {
                return Err(Failure::Interrupted);
            }
        }
        let digest: Arc<str> = context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into();
        let after = opened.file.metadata().map_err(unreadable)?;
        let settled = unix_seconds(self.clock.now()) - opened.id.changed.0 > SETTLED_SECONDS;
        if settled && FileId::of(&after) == opened.id {
            self.remember(opened.id, &digest);
        }
        Ok(digest)
    }

    fn remember(&self, id: FileId, digest: &Arc<str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_file.insert(id, Arc::clone(digest)).is_some() {
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

    /// Whether all turns to read are free.
    #[cfg(test)]
    pub(super) async fn until_idle(&self) {
        for user in 0..2 {
            drop(self.reading.take(user).await.unwrap());
        }
    }

    /// Takes a turn to read that `user` has then no more.
    #[cfg(test)]
    pub(super) async fn take_turn(&self, user: u32) -> blocking::WorkPermit {
        self.reading.take(user).await.unwrap()
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
            self.remember(id, &"x".into());
        }
    }
}
