//! Unix sockets of both daemons: bound where nobody else can replace them, with their mode before anybody can connect.
//!
//! Owns the socket file: it is created, found stale, replaced and removed here and nowhere else. It removes no file that
//! is not this user's own stale socket, and at the end only the very file it created. Who connects is not its business.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use config::fault::{Code, Fault};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::trusted_dir::{TrustedDir, Untrusted, this_user};

/// Who may do what with a socket and with its directory, where that has to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    pub directory: u32,
    pub socket: u32,
}

impl Modes {
    /// Everybody may connect; the daemon finds out who they are.
    pub const PUBLIC: Self = Self {
        directory: 0o755,
        socket: 0o777,
    };
    /// SPIRE: administration is for the daemon's user and group.
    pub const ADMIN: Self = Self {
        directory: 0o750,
        socket: 0o770,
    };
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct Socket {
    // Dropped first: a client that still finds the file gets connection refused.
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket that this process created. Dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    directory: TrustedDir,
    name: OsString,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Binds and listens. A stale socket of this user is replaced.
    ///
    /// # Errors
    /// PLA-1303 when somebody listens there, PLA-1306 when others could replace the socket, PLA-1304 when it cannot be
    /// created for another reason.
    pub fn bind(path: &Path, modes: Modes) -> Result<Self, Fault> {
        let unusable = |because: &dyn Display| unusable(path, because);
        let name = path
            .file_name()
            .ok_or_else(|| unusable(&"the path has no file name"))?;
        let address = UnixAddr::new(path).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => unusable(&"the path is longer than 107 bytes"),
            other => unusable(&other.desc()),
        })?;
        let directory = directory_of(path, modes.directory)?;
        replace_stale(path, &directory, name, &address)?;
        let failed = |errno: Errno| unusable(&errno.desc());
        let socket = new_socket().map_err(failed)?;
        // The file gets the descriptor's mode less the umask: never more than is meant, not even for a moment.
        let mode = Mode::from_bits_truncate(modes.socket);
        fchmod(&socket, mode).map_err(failed)?;
        // By its path and not through /proc/self/fd, so that `ss` and `lsof` show the path. Nobody untrusted can change
        // a component of it: that is what the check of the directory is for.
        bind(socket.as_raw_fd(), &address).map_err(|errno| match errno {
            // It was not there a moment ago.
            Errno::EADDRINUSE => in_use(path),
            errno => failed(errno),
        })?;
        let file = SocketFile::of_bound(path, directory, name).map_err(failed)?;
        // What the umask took away. Nobody can connect yet.
        fchmodat(&file.directory, name, mode, FchmodatFlags::FollowSymlink).map_err(failed)?;
        listen(&socket, Backlog::MAXCONN).map_err(failed)?;
        Ok(Self {
            listener: UnixListener::from(socket),
            file,
        })
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The listener, which does not block, and its file.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl SocketFile {
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn of_bound(path: &Path, directory: TrustedDir, name: &OsStr) -> Result<Self, Errno> {
        let found = look_at(&directory, name)?;
        if !is_socket(&found) || found.st_uid != this_user() {
            return Err(Errno::ESTALE);
        }
        Ok(Self {
            directory,
            name: name.to_owned(),
            path: path.to_owned(),
            identity: (found.st_dev, found.st_ino),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = look_at(&self.directory, &self.name)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == self.identity);
        if !is_ours {
            return;
        }
        if let Err(error) = unlinkat(
            &self.directory,
            self.name.as_os_str(),
            UnlinkatFlags::NoRemoveDir,
        ) {
            tracing::debug!(%error, path = %self.path.display(), "socket file not removed");
        }
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
}

fn look_at(directory: &TrustedDir, name: &OsStr) -> Result<FileStat, Errno> {
    fstatat(directory.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn is_socket(file: &FileStat) -> bool {
    SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
}

fn directory_of(path: &Path, mode: u32) -> Result<TrustedDir, Fault> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = TrustedDir::open_or_create(parent, mode).map_err(|untrusted| {
        match untrusted {
            Untrusted::ForeignOwner { .. } | Untrusted::Writable { .. } => Fault::new(
                Code::SocketDirectoryUnsafe,
                format!(
                    "the directory of the socket {} is not safe",
                    path.display()
                ),
            )
            .because(untrusted)
            .hint("remove that directory or correct its owner and mode, or set socket_path to a directory below /run"),
            other => unusable(path, &other),
        }
    })?;
    if let Some(volume) = directory.shared_volume() {
        tracing::warn!(
            path = %path.display(),
            volume = %volume.display(),
            "everybody who can write to this volume can replace the socket"
        );
    }
    Ok(directory)
}

/// Removes the socket that an ended daemon of this user left behind. Nothing else is ever removed.
fn replace_stale(
    path: &Path,
    directory: &TrustedDir,
    name: &OsStr,
    address: &UnixAddr,
) -> Result<(), Fault> {
    let unusable = |because: &dyn Display| unusable(path, because);
    let found = match look_at(directory, name) {
        Ok(found) => found,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(unusable(&errno.desc())),
    };
    if !is_socket(&found) {
        return Err(unusable(&"the path exists and is not a socket"));
    }
    let probe = new_socket().map_err(|errno| unusable(&errno.desc()))?;
    match connect(probe.as_raw_fd(), address) {
        // A full queue of connections is somebody listening too.
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => Err(in_use(path)),
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EPROTOTYPE) => Err(unusable(
            &"another program's socket, which is no stream socket, is in its place",
        )),
        Err(Errno::ECONNREFUSED) if found.st_uid != this_user() => Err(unusable(&format!(
            "a socket of user {} is in its place",
            found.st_uid
        ))),
        Err(Errno::ECONNREFUSED) => {
            let still = look_at(directory, name);
            let same =
                still.is_ok_and(|now| (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino));
            if !same {
                return Err(in_use(path));
            }
            tracing::info!(path = %path.display(), "removing the stale socket of a daemon that has exited");
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| unusable(&errno.desc()))
        }
        Err(errno) => Err(unusable(&format!(
            "cannot determine who uses the socket that is there: {}",
            errno.desc()
        ))),
    }
}

fn in_use(path: &Path) -> Fault {
    Fault::new(
        Code::SocketInUse,
        format!("the socket {} is in use", path.display()),
    )
    .because("another process listens on it")
    .hint(format!("ss -xlp | grep {}", path.display()))
}

fn unusable(path: &Path, because: &dyn Display) -> Fault {
    Fault::new(
        Code::SocketUnusable,
        format!("cannot create the socket {}", path.display()),
    )
    .because(because)
    .hint("check socket_path and the rights on its directory")
}

#[cfg(test)]
mod tests;
