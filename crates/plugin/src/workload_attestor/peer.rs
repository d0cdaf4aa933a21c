//! A hold on the process at the other end of a Unix socket.
//!
//! A process number alone is no identity: the process may end and another get its number. The hold is a pidfd, which
//! stands for one process for ever: from the kernel's own record of the connection (SO_PEERPIDFD, Linux 6.5), else
//! opened by number right after the accept and checked against the process's start time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{getsockopt, sockopt};

use config::fault::{Code, Fault};

use super::credentials::credentials;
use crate::error::{Error, ErrorKind};

/// Why nothing can be said of a caller.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel gives no number for it: it runs in a PID namespace that this one does not see.
    #[error("the caller's process is not visible from the agent's PID namespace")]
    NotVisible,
    #[error("the caller (pid {pid}) exited during attestation")]
    Gone { pid: i32 },
    /// The number is that of a thread, or no number that a process may have.
    #[error("{pid} is not the number of a process")]
    NotAProcess { pid: i32 },
    #[error("cannot identify the caller: {0}")]
    Socket(#[source] io::Error),
}

impl PeerError {
    /// The same as an error of the attestor of this name.
    pub fn of(self, attestor: &'static str) -> Error {
        let (kind, code) = match self {
            Self::NotVisible | Self::NotAProcess { .. } => {
                (ErrorKind::Permanent, Code::WorkloadUnreadable)
            }
            Self::Gone { .. } => (ErrorKind::Gone, Code::WorkloadGone),
            Self::Socket(_) => (ErrorKind::Internal, Code::Internal),
        };
        let mut fault = Fault::new(code, self.to_string());
        if matches!(self, Self::NotVisible) {
            fault =
                fault.hint("run the agent in the host's PID namespace (Kubernetes: hostPID: true)");
        }
        Error::from_source(attestor, kind, self).with_fault(fault)
    }
}

/// The process that connected. To be taken at the accept and kept for the connection.
#[derive(Debug)]
pub struct Peer {
    /// As seen from the agent's PID namespace.
    pub pid: i32,
    /// The effective user at the moment of connecting.
    pub uid: u32,
    /// The effective group at the moment of connecting.
    pub gid: u32,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    Pidfd(OwnedFd),
    /// Without pidfds (before Linux 5.3): the start time in clock ticks since the boot.
    StartTime(u64),
}

impl Peer {
    /// Takes hold of the process that connected this Unix stream socket.
    pub fn from_unix_stream(socket: &impl AsFd) -> Result<Self, PeerError> {
        let socket_error = |errno: Errno| PeerError::Socket(errno.into());
        let credentials = getsockopt(socket, sockopt::PeerCredentials).map_err(socket_error)?;
        let pid = credentials.pid();
        if pid <= 0 {
            return Err(PeerError::NotVisible);
        }
        let hold = match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(pidfd) => Hold::Pidfd(pidfd),
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => hold_by_number(pid)?,
            // The kernel knows the option, but the process was reaped already.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => {
                return Err(PeerError::Gone { pid });
            }
            Err(errno) => return Err(socket_error(errno)),
        };
        let peer = Self {
            pid,
            uid: credentials.uid(),
            gid: credentials.gid(),
            hold,
        };
        peer.still_alive()?;
        Ok(peer)
    }

    /// Whether the process still runs. What was read about its number before this answers `Ok` was read about it.
    pub fn still_alive(&self) -> Result<(), PeerError> {
        let alive = match &self.hold {
            Hold::Pidfd(pidfd) => !has_ended(pidfd).map_err(PeerError::Socket)?,
            Hold::StartTime(ticks) => start_time(self.pid).is_ok_and(|now| now == *ticks),
        };
        if alive {
            Ok(())
        } else {
            Err(PeerError::Gone { pid: self.pid })
        }
    }

    /// The process that has this number now, with the user and group that it runs as. For those who may name a process
    /// other than themselves.
    pub fn of_process(pid: i32) -> Result<Self, PeerError> {
        if pid <= 0 {
            return Err(PeerError::NotAProcess { pid });
        }
        Self::with_owner(pid, hold_by_number(pid)?)
    }

    /// The same process with the user and group that it runs as now. Only for a process that somebody else named: one
    /// that connected and then changes its user is no longer who connected.
    pub fn with_present_owner(&self) -> Result<Self, PeerError> {
        let hold = match &self.hold {
            Hold::Pidfd(pidfd) => Hold::Pidfd(pidfd.try_clone().map_err(PeerError::Socket)?),
            Hold::StartTime(ticks) => Hold::StartTime(*ticks),
        };
        Self::with_owner(self.pid, hold)
    }

    fn with_owner(pid: i32, hold: Hold) -> Result<Self, PeerError> {
        let credentials = credentials(pid);
        let (uid, gid) = credentials
            .as_ref()
            .map_or((u32::MAX, u32::MAX), |found| (found.uid, found.gid));
        let peer = Self {
            pid,
            uid,
            gid,
            hold,
        };
        // Asked after: only then are the credentials those of this process, and a failure to read them is not its end.
        peer.still_alive()?;
        credentials.map_err(PeerError::Socket)?;
        Ok(peer)
    }

    /// A process by its number, as if it had connected as this user and group: an attestor refuses it when it runs as
    /// another.
    pub fn of_process_as(pid: i32, uid: u32, gid: u32) -> Result<Self, PeerError> {
        let hold = hold_by_number(pid)?;
        Ok(Self {
            pid,
            uid,
            gid,
            hold,
        })
    }
}

/// The number may already be another's when this begins; that the start time is the same before and after shows only
/// that it did not change hands in between.
fn hold_by_number(pid: i32) -> Result<Hold, PeerError> {
    let gone = |_gone: io::Error| PeerError::Gone { pid };
    let before = start_time(pid).map_err(gone)?;
    let hold = match pidfd_open(pid) {
        Ok(pidfd) => Hold::Pidfd(pidfd),
        Err(Errno::ENOSYS) => Hold::StartTime(before),
        Err(Errno::ESRCH) => return Err(PeerError::Gone { pid }),
        // Since Linux 6.9 ENOENT, before EINVAL.
        Err(Errno::EINVAL | Errno::ENOENT) => return Err(PeerError::NotAProcess { pid }),
        Err(errno) => return Err(PeerError::Socket(errno.into())),
    };
    if start_time(pid).map_err(gone)? == before {
        Ok(hold)
    } else {
        Err(PeerError::Gone { pid })
    }
}

#[expect(
    unsafe_code,
    reason = "neither the standard library nor nix has this system call"
)]
fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(result)?).map_err(|_too_large| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it. It is closed on exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pidfd is readable from the moment the process has ended.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut polled, PollTimeout::ZERO) {
            Ok(ready) => return Ok(ready != 0),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(io::Error::other(format!(
                    "poll of pidfd {}: {errno}",
                    pidfd.as_raw_fd()
                )));
            }
        }
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)). The name before it may hold blanks and parentheses.
fn start_time(pid: i32) -> io::Result<u64> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    let text = String::from_utf8_lossy(&text);
    text.rsplit_once(')')
        .and_then(|(_, after)| after.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Child, Command, Stdio};

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn knows_who_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::from_unix_stream(&ours).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
        peer.still_alive().unwrap();
    }

    #[test]
    fn refuses_a_process_that_has_ended() {
        let mut child = sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        let peer = Peer::of_process(pid).unwrap();
        assert!(matches!(peer.hold, Hold::Pidfd(_)));
        peer.still_alive().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(peer.still_alive(), Err(PeerError::Gone { pid: gone }) if gone == pid));
        assert!(matches!(Peer::of_process(pid), Err(PeerError::Gone { .. })));
    }

    #[test]
    fn a_process_that_is_named_by_its_number_is_of_the_user_that_it_runs_as() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let peer = Peer::of_process(pid).unwrap();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
        // What it ran as when it was first named does not matter.
        let earlier = Peer {
            uid: peer.uid + 1,
            ..peer
        };
        let now = earlier.with_present_owner().unwrap();
        assert_eq!(now.uid, nix::unistd::geteuid().as_raw());
        assert!(matches!(now.hold, Hold::Pidfd(_)));
    }

    #[test]
    fn a_process_that_ended_has_no_present_owner_though_its_number_may_be_anothers() {
        let mut child = sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        let peer = Peer::of_process(pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // As if its number had been given to this process.
        let reused = Peer {
            pid: i32::try_from(std::process::id()).unwrap(),
            ..peer
        };
        assert!(matches!(
            reused.with_present_owner(),
            Err(PeerError::Gone { .. })
        ));
    }

    #[test]
    fn numbers_that_no_process_has_are_refused() {
        for pid in [0, -1, i32::MIN] {
            let refused = Peer::of_process(pid);
            assert!(matches!(refused, Err(PeerError::NotAProcess { .. })));
        }
        assert!(matches!(
            Peer::of_process(i32::MAX),
            Err(PeerError::Gone { .. })
        ));
        let thread = std::thread::spawn(|| {
            let thread = nix::unistd::gettid().as_raw();
            Peer::of_process(thread)
        });
        let refused = thread.join().unwrap();
        assert!(
            matches!(refused, Err(PeerError::NotAProcess { .. })),
            "{refused:?}"
        );
    }

    #[test]
    #[ignore = "needs python3"]
    fn refuses_a_caller_that_ended_before_the_accept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])";
        let connected = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .status();
        assert!(connected.unwrap().success());
        let (socket, _) = listener.accept().unwrap();
        assert!(matches!(
            Peer::from_unix_stream(&socket),
            Err(PeerError::Gone { .. })
        ));
    }

    #[test]
    fn the_start_time_tells_processes_apart_where_pidfds_are_missing() {
        let mut child = sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        let peer = |ticks| Peer {
            pid,
            uid: 0,
            gid: 0,
            hold: Hold::StartTime(ticks),
        };
        peer(started).still_alive().unwrap();
        assert!(matches!(
            peer(started + 1).still_alive(),
            Err(PeerError::Gone { .. })
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(
            peer(started).still_alive(),
            Err(PeerError::Gone { .. })
        ));
    }

    #[test]
    fn gives_its_descriptor_back() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let before = open();
        for _ in 0..200 {
            Peer::from_unix_stream(&ours).unwrap();
        }
        // Other tests of this process open files meanwhile.
        assert!(open() < before + 100);
    }
}
