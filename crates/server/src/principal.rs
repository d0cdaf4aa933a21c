//! Who the peer of a connection is: one class of principal, decided once, when the connection is accepted.
//!
//! The class rules what a connection may cost: admission, budgets, rate limits. Whether a call is let in is checked again for
//! each call by `authz`, against the same classes, since a row may have changed meanwhile. Holds no state and decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use plugin::workload_attestor::Peer;
use spiffe::id::SpiffeId;
use spiffe::tls::PeerIdentity;

use crate::source::Source;

/// The SVID of a peer that the handshake verified against its trust domain's bundle, and whose key the peer holds.
#[derive(Debug, Clone)]
pub(crate) struct PeerSvid {
    id: SpiffeId,
    serial: String,
    not_after: SystemTime,
}

impl PeerSvid {
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Decimal, as stored with the agent.
    pub(crate) fn serial(&self) -> &str {
        &self.serial
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: SpiffeId, serial: &str, not_after: SystemTime) -> Self {
        Self {
            id,
            serial: serial.to_owned(),
            not_after,
        }
    }
}

impl From<&PeerIdentity> for PeerSvid {
    fn from(peer: &PeerIdentity) -> Self {
        Self {
            id: peer.id().clone(),
            serial: peer.leaf().serial(),
            not_after: peer.leaf().not_after(),
        }
    }
}

/// A process that may open the admin socket.
#[derive(Debug, Clone)]
pub(crate) struct LocalPeer {
    /// As the kernel recorded them when the process connected.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// A hold on the process. None when it ended at once or is in a PID namespace that this one does not see.
    pub(crate) process: Option<Arc<Peer>>,
}

impl LocalPeer {
    /// The program that the process runs now. None when the process has ended: its number may be another's by then.
    pub(crate) fn program(&self) -> Option<PathBuf> {
        let process = self.process.as_ref()?;
        let path = std::fs::read_link(format!("/proc/{}/exe", process.pid)).ok()?;
        // Asked after: only then is what was read the program of this process.
        process.still_alive().ok()?;
        Some(path)
    }
}

/// The peer of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Principal {
    /// A process on the admin socket, an administrator because it may open it.
    Local(LocalPeer),
    /// A TLS client that showed no SVID: most likely a node that is about to attest.
    Unauthenticated,
    /// A TLS client with an SVID that entitles it to nothing here. It may cost no more than one without.
    Workload(PeerSvid),
    /// An attested agent, under its current SVID or the one it was handed last.
    Agent(PeerSvid),
    /// A server below this one, by its entry.
    Downstream(PeerSvid),
    /// A remote administrator, by the configuration or by an entry.
    Admin(PeerSvid),
}

/// The classes of principal, for whatever depends on the class alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Local,
    Unauthenticated,
    Workload,
    Agent,
    Downstream,
    Admin,
}

impl Principal {
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Local(_) => Class::Local,
            Self::Unauthenticated => Class::Unauthenticated,
            Self::Workload(_) => Class::Workload,
            Self::Agent(_) => Class::Agent,
            Self::Downstream(_) => Class::Downstream,
            Self::Admin(_) => Class::Admin,
        }
    }

    /// The SVID that the peer showed.
    pub(crate) fn svid(&self) -> Option<&PeerSvid> {
        match self {
            Self::Local(_) | Self::Unauthenticated => None,
            Self::Workload(svid)
            | Self::Agent(svid)
            | Self::Downstream(svid)
            | Self::Admin(svid) => Some(svid),
        }
    }
}

impl Class {
    /// Whether its connections end before those of others when there is no room: a peer of the class has proved nothing
    /// that an entry or an attestation backs.
    pub(crate) fn is_shed_first(self) -> bool {
        matches!(self, Self::Unauthenticated | Self::Workload)
    }
}

/// To whose account something goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// A user on the admin socket.
    Uid(u32),
    /// The peers behind an address.
    Source(Source),
    /// A SPIFFE ID in one class: what an agent used as a workload does not count against it as an agent.
    Identity(SpiffeId, Class),
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::*;

    /// Another program that has connected to a socket, and the server's end of its connection.
    fn connected(program: &mut Command) -> (std::process::Child, LocalPeer) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let child = program
            .env("SOCKET", &socket)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let peer = LocalPeer {
            uid: 0,
            gid: 0,
            process: Peer::from_unix_stream(&stream).ok().map(Arc::new),
        };
        (child, peer)
    }

    #[test]
    fn names_the_program_of_a_caller_while_it_runs_and_none_once_it_has_ended() {
        let script = "import os,socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(os.environ['SOCKET']); sys.stdin.read()";
        let (mut child, peer) = connected(Command::new("python3").args(["-c", script]));
        let program = peer.program().unwrap();
        assert!(program.to_string_lossy().contains("python3"), "{program:?}");
        // Its input ends, and with it the program. Waited for, its number is free for others.
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(peer.program(), None);
    }

    #[test]
    fn names_no_program_of_a_process_that_has_the_number_of_one_that_ended() {
        let mut ended = Command::new("sleep").arg("60").spawn().unwrap();
        let mut process = Peer::of_process(i32::try_from(ended.id()).unwrap()).unwrap();
        ended.kill().unwrap();
        ended.wait().unwrap();
        // As if its number had come to this process.
        process.pid = i32::try_from(std::process::id()).unwrap();
        let reused = LocalPeer {
            uid: 0,
            gid: 0,
            process: Some(Arc::new(process)),
        };
        assert_eq!(reused.program(), None);
    }
}
