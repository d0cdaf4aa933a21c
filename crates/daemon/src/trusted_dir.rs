//! Directories that only root and this process's user can redirect.
//!
//! A socket is worth no more than the directories above it: a user who can rename one of them can put another socket in its
//! place and be the Workload API or the server's administration for everybody who connects. So every component of the
//! path is opened without following links and checked before the next one is looked up below it:
//! - its owner is root or this user;
//! - others cannot write to it, or it is sticky (`/tmp`), where nobody can rename what belongs to somebody else. What
//!   lies in a sticky directory has to pass the same check, so a directory that another user made there is refused.
//!
//! Owns the walk and the creation of missing directories. It does not know what lies in the directory.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};

const ROOT: u32 = 0;
const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;
/// The mode of directories that are created above the one that is wanted. The server's admin socket is not for everybody,
/// but `/run/plastron`, which the server may be the first to create, is the way to the agent's Workload API too.
const ABOVE: u32 = 0o755;
/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// Components of a path, with those that links add. A path has at most 4096 bytes.
const MAX_COMPONENTS: usize = 4096;

/// An open directory that passed the check.
#[derive(Debug)]
pub struct TrustedDir {
    fd: OwnedFd,
    path: PathBuf,
    shared_volume: Option<PathBuf>,
    mode: u32,
    owner: u32,
}

/// Why a directory is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    #[error("{} belongs to user {owner}, who could put another socket in its place", path.display())]
    ForeignOwner { path: PathBuf, owner: u32 },
    #[error("{} can be written by others (mode {mode:04o}), who could put another socket in its place", path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("{} is not a directory", .0.display())]
    NotDirectory(PathBuf),
    #[error("{} leads through too many symbolic links", .0.display())]
    TooManyLinks(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl TrustedDir {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it is missing, or when somebody other than root and this user could redirect it.
    pub fn open(path: &Path) -> Result<Self, Untrusted> {
        Walk::new(None).to(path)
    }

    /// Opens the directory. A missing one is created with this mode, and missing ones above it with [`ABOVE`], whatever
    /// the umask is: the mode says who may enter this directory, and others may lie beside it.
    ///
    /// # Errors
    /// When it cannot be created, or when somebody other than root and this user could redirect it.
    pub fn open_or_create(path: &Path, mode: u32) -> Result<Self, Untrusted> {
        Walk::new(Some(mode)).to(path)
    }

    /// The path with its symbolic links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this user owns it and nobody else can enter it.
    pub fn is_private(&self) -> bool {
        self.owner == this_user() && self.mode & 0o077 == 0
    }

    /// A volume on the way that everybody can write to. It is accepted because only an administrator can mount it (a
    /// Kubernetes `emptyDir` is one), but everybody who reaches the volume can replace what is in it.
    pub fn shared_volume(&self) -> Option<&Path> {
        self.shared_volume.as_deref()
    }
}

impl AsFd for TrustedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The user that this process acts as.
pub(crate) fn this_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

struct Walk {
    create: Option<u32>,
    user: u32,
    /// The directories from the root to where the walk is, for `..`.
    stack: Vec<Step>,
    links: usize,
}

struct Step {
    fd: OwnedFd,
    path: PathBuf,
    mount: Option<u64>,
    stat: FileStat,
    shared: bool,
}

impl Walk {
    fn new(create: Option<u32>) -> Self {
        Self {
            create,
            user: this_user(),
            stack: Vec::new(),
            links: 0,
        }
    }

    fn to(mut self, path: &Path) -> Result<TrustedDir, Untrusted> {
        let absolute = std::path::absolute(path).map_err(failed(path))?;
        let mut left: VecDeque<OsString> = names(&absolute).collect();
        self.start()?;
        let mut taken = 0;
        while let Some(name) = left.pop_front() {
            taken += 1;
            if taken > MAX_COMPONENTS {
                return Err(Untrusted::TooManyLinks(absolute));
            }
            if name == ".." {
                // Above the root is the root.
                if self.stack.len() > 1 {
                    self.stack.pop();
                }
                continue;
            }
            if let Some(target) = self.enter(&name, left.is_empty())? {
                if target.is_absolute() {
                    self.stack.truncate(1);
                }
                for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(name);
                }
            }
        }
        self.end(&absolute)
    }

    fn end(mut self, absolute: &Path) -> Result<TrustedDir, Untrusted> {
        let shared_volume = self
            .stack
            .iter()
            .find(|step| step.shared)
            .map(|step| step.path.clone());
        let last = self
            .stack
            .pop()
            .ok_or_else(|| Untrusted::NotDirectory(absolute.to_owned()))?;
        Ok(TrustedDir {
            fd: last.fd,
            path: last.path,
            shared_volume,
            mode: last.stat.st_mode,
            owner: last.stat.st_uid,
        })
    }

    fn start(&mut self) -> Result<(), Untrusted> {
        let root = Path::new("/");
        let fd = open(root, directory_flags(), Mode::empty()).map_err(failed(root))?;
        let stat = fstat(&fd).map_err(failed(root))?;
        self.push(fd, root.to_owned(), stat)
    }

    /// Goes down to `name`. When that is a link, nothing is entered and its target is returned.
    fn enter(&mut self, name: &OsStr, is_last: bool) -> Result<Option<PathBuf>, Untrusted> {
        let (fd, path) = self.look_up(name, is_last)?;
        let stat = fstat(&fd).map_err(failed(&path))?;
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => self.push(fd, path, stat).map(|()| None),
            SFlag::S_IFLNK => {
                self.check_owner(&path, &stat)?;
                self.links += 1;
                if self.links > MAX_LINKS {
                    return Err(Untrusted::TooManyLinks(path));
                }
                // An empty path reads the very link that was opened.
                let target = readlinkat(&fd, "").map_err(failed(&path))?;
                Ok(Some(PathBuf::from(target)))
            }
            _ => Err(Untrusted::NotDirectory(path)),
        }
    }

    fn look_up(&self, name: &OsStr, is_last: bool) -> Result<(OwnedFd, PathBuf), Untrusted> {
        let parent = self
            .stack
            .last()
            .ok_or_else(|| Untrusted::NotDirectory(PathBuf::from(name)))?;
        let path = parent.path.join(name);
        let looked_up = openat(&parent.fd, name, directory_flags(), Mode::empty());
        let mode = self.create.map(|mode| if is_last { mode } else { ABOVE });
        let opened = match (looked_up, mode) {
            (Err(Errno::ENOENT), Some(mode)) => create(parent, name, mode, self.user)
                .map_err(failed(&path))
                .and_then(|()| {
                    openat(&parent.fd, name, directory_flags(), Mode::empty())
                        .map_err(failed(&path))
                }),
            (looked_up, _) => looked_up.map_err(failed(&path)),
        };
        opened.map(|fd| (fd, path))
    }

    fn check_owner(&self, path: &Path, stat: &FileStat) -> Result<(), Untrusted> {
        if stat.st_uid == ROOT || stat.st_uid == self.user {
            return Ok(());
        }
        Err(Untrusted::ForeignOwner {
            path: path.to_owned(),
            owner: stat.st_uid,
        })
    }

    /// Checks the directory and makes it the one the walk is in.
    fn push(&mut self, fd: OwnedFd, path: PathBuf, stat: FileStat) -> Result<(), Untrusted> {
        self.check_owner(&path, &stat)?;
        let mount = mount_of(&fd);
        let shared = is_redirectable(&stat);
        if shared && !self.is_mounted_here(mount) {
            return Err(Untrusted::Writable {
                path,
                mode: stat.st_mode & 0o7777,
            });
        }
        self.stack.push(Step {
            fd,
            path,
            mount,
            stat,
            shared,
        });
        Ok(())
    }

    /// Whether a directory of this mount, about to be entered, is where the mount begins.
    fn is_mounted_here(&self, mount: Option<u64>) -> bool {
        self.stack
            .last()
            .is_some_and(|parent| mount.is_some() && parent.mount != mount)
    }
}

/// Whether others than its owner can rename what is in the directory. Root's group and the user's primary group may: a user who
/// lets them write does so on purpose, and private groups of users are a habit of distributions (umask 002).
fn is_redirectable(directory: &FileStat) -> bool {
    let mode = directory.st_mode;
    if mode & STICKY != 0 {
        return false;
    }
    let trusted_group =
        directory.st_gid == ROOT || directory.st_gid == nix::unistd::getegid().as_raw();
    mode & WRITABLE_BY_ALL != 0 || (mode & WRITABLE_BY_GROUP != 0 && !trusted_group)
}

/// Creates a directory with this mode whatever the umask is. In the parent, which is trusted or sticky, nobody else can
/// put another in its place in between.
fn create(parent: &Step, name: &OsStr, mode: u32, user: u32) -> Result<(), Errno> {
    match mkdirat(&parent.fd, name, Mode::S_IRWXU) {
        Ok(()) => {}
        // Somebody was quicker; the walk checks what they made.
        Err(Errno::EEXIST) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(&parent.fd, name, flags, Mode::empty())?;
    if fstat(&made)?.st_uid == user {
        fchmod(&made, Mode::from_bits_truncate(mode))?;
    }
    Ok(())
}

fn directory_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// The number of the mount that a descriptor is on (proc_pid_fdinfo(5)).
fn mount_of(fd: &OwnedFd) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let number = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    number.parse().ok()
}

/// The names below the root, `..` among them.
fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

fn failed<E: Into<io::Error>>(path: &Path) -> impl Fn(E) -> Untrusted + '_ {
    |error| Untrusted::Io {
        path: path.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests;
