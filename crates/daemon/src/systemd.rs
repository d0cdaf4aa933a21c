//! What systemd offers a service: notifications of its state, and a store for file descriptors that outlives a restart.
//!
//! The protocols are those of sd_notify(3) and sd_listen_fds(3): a datagram and three environment variables, so no
//! library is needed. Without systemd nothing happens.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use zeroize::Zeroizing;

/// sd_listen_fds(3): SD_LISTEN_FDS_START.
const FIRST_DESCRIPTOR: RawFd = 3;
/// More descriptors than a service of ours is ever given.
const MAX_DESCRIPTORS: RawFd = 64;
/// The largest content that is taken back or stored.
const MAX_STORED: u64 = 64 << 20;

/// Why a descriptor from the store is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("it is not a sealed memfd: its writer could still change it")]
    NotSealed,
    #[error("it belongs to user {0}, not to this one")]
    Foreign(u32),
    #[error("it is larger than 64 MiB")]
    TooLarge,
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// The service manager this process was started by, if it is systemd or acts as it.
#[derive(Debug, Default)]
pub struct Systemd {
    /// A path, or `@` and the name of an abstract socket.
    notify: Option<OsString>,
    stored: Vec<(String, RawFd)>,
}

impl Systemd {
    /// From the environment of this process.
    pub fn from_env() -> Self {
        Self::new(|name| std::env::var_os(name), std::process::id())
    }

    /// From other variables. Descriptors are taken only when they were meant for `pid`.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let number = |name: &str| -> Option<u32> { variable(name)?.to_str()?.parse().ok() };
        let notify = variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty());
        let mut stored = Vec::new();
        if number("LISTEN_PID") == Some(pid) {
            let names = variable("LISTEN_FDNAMES").unwrap_or_default();
            let names = names.to_string_lossy();
            let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok());
            let count = count.unwrap_or(0).min(MAX_DESCRIPTORS);
            let descriptors = FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + count;
            stored.extend(names.split(':').map(str::to_owned).zip(descriptors));
        }
        Self { notify, stored }
    }

    /// The same with descriptors of other numbers.
    pub fn with_stored(mut self, stored: Vec<(String, RawFd)>) -> Self {
        self.stored = stored;
        self
    }

    /// The service is up.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// What an earlier process stored under `name`, once; it is in the store no longer then.
    ///
    /// # Errors
    /// [`Refused`] when it is not what [`Self::store`] makes.
    pub fn take(&mut self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, Refused>> {
        let at = self.stored.iter().position(|(stored, _)| stored == name)?;
        let (_, descriptor) = self.stored.swap_remove(at);
        let content = read_sealed(descriptor);
        if let Err(error) = nix::unistd::close(descriptor) {
            tracing::warn!(%error, name, "stored descriptor not closed");
        }
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        Some(content)
    }

    /// Hands `content` to the process that follows this one, in memory that nobody can change any more. False when
    /// there is no systemd.
    ///
    /// # Errors
    /// When the memory cannot be had, or systemd does not take it.
    pub fn store(&self, name: &str, content: &[u8]) -> io::Result<bool> {
        let Some(socket) = &self.notify else {
            return Ok(false);
        };
        if u64::try_from(content.len()).unwrap_or(u64::MAX) > MAX_STORED {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
        let mut file = File::from(memfd_create(name, flags)?);
        file.write_all(content)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))?;
        // FDPOLL=0: a memfd never hangs up, and is not to be dropped for it.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        send(socket, &message, &[file.as_raw_fd()])?;
        Ok(true)
    }

    fn tell(&self, message: &str) {
        if let Some(socket) = &self.notify
            && let Err(error) = send(socket, message, &[])
        {
            tracing::warn!(%error, message, "systemd not notified");
        }
    }
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL
}

fn send(socket: &OsString, message: &str, descriptors: &[RawFd]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
        _ => UnixAddr::new(socket.as_os_str())?,
    };
    let sender = UnixDatagram::unbound()?;
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &[][..]
    } else {
        &rights[..]
    };
    // Never waits: a manager that does not read is no reason to hang.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let text = [IoSlice::new(message.as_bytes())];
    sendmsg(sender.as_raw_fd(), &text, control, flags, Some(&address))?;
    Ok(())
}

/// Reads a memfd of ours through `/proc`, so that what was checked is what is read, from its beginning.
fn read_sealed(descriptor: RawFd) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let file = File::open(format!("/proc/self/fd/{descriptor}"))?;
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_not_a_memfd| Refused::NotSealed)?;
    if !SealFlag::from_bits_truncate(seals).contains(all_seals()) {
        return Err(Refused::NotSealed);
    }
    let facts = file.metadata()?;
    if facts.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Refused::Foreign(facts.uid()));
    }
    if facts.len() > MAX_STORED {
        return Err(Refused::TooLarge);
    }
    // With the right capacity the buffer does not move, which would leave a copy behind.
    let mut content = Zeroizing::new(Vec::with_capacity(
        usize::try_from(facts.len()).unwrap_or(0) + 1,
    ));
    file.take(MAX_STORED).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests;
