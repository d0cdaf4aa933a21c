//! Who the peer of a connection is: one class of principal, decided once, when the connection is accepted.
//!
//! The class rules what a connection may cost: admission, budgets, rate limits. Whether a call is let in is checked again for
//! each call by `authz`, against the same classes, since a row may have changed meanwhile. Holds no state and decides nothing.

use std::time::SystemTime;

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
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalPeer {
    pub(crate) pid: Option<i32>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
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
    /// Whether its connections end before those of others when there is no room: whoever is in it has proved nothing
    /// that an entry or an attestation stands for.
    pub(crate) fn is_shed_first(self) -> bool {
        matches!(self, Self::Unauthenticated | Self::Workload)
    }
}

/// To whose account something goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// A user on the admin socket.
    Uid(u32),
    /// Whoever is behind an address.
    Source(Source),
    /// A SPIFFE ID in one class: what an agent used as a workload does not count against it as an agent.
    Identity(SpiffeId, Class),
}
