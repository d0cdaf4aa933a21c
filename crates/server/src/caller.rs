//! Who is on the other end of a connection, established once when it is accepted.
//!
//! A [`Connection`] says only what the transport proved (an address and a verified SVID, or a Unix peer). Whether that
//! peer may make a call is decided for each call by `authz`, which turns it into a [`Caller`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use tokio::sync::watch;

use crate::audit::{CallRecord, Fields, Outcome};
use crate::error::{Kind, OpError, refused};

/// What the transport proved about a peer.
#[derive(Debug)]
pub(crate) enum Peer {
    /// A process that may open the admin socket.
    Local {
        pid: Option<i32>,
        uid: u32,
        gid: u32,
    },
    /// A TLS client, with the SVID it showed, if it showed one.
    Remote {
        address: SocketAddr,
        svid: Option<PeerSvid>,
    },
}

/// The leaf that the handshake verified against its trust domain's bundle.
#[derive(Debug, Clone)]
pub(crate) struct PeerSvid {
    pub(crate) id: SpiffeId,
    /// Decimal, as stored with the agent.
    pub(crate) serial: String,
    pub(crate) not_after: SystemTime,
}

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Peer,
    closing: watch::Receiver<bool>,
}

impl Connection {
    pub(crate) fn new(peer: Peer, closing: watch::Receiver<bool>) -> Self {
        Self { peer, closing }
    }

    pub(crate) fn is_local(&self) -> bool {
        matches!(self.peer, Peer::Local { .. })
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn remote_ip(&self) -> Option<IpAddr> {
        match &self.peer {
            Peer::Local { .. } => None,
            Peer::Remote { address, .. } => Some(address.ip()),
        }
    }

    pub(crate) fn svid(&self) -> Option<&PeerSvid> {
        match &self.peer {
            Peer::Local { .. } => None,
            Peer::Remote { svid, .. } => svid.as_ref(),
        }
    }

    /// Turns true when the connection has reached its age or the server stops: streams that would last should end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.clone()
    }
}

/// As what a call was let in. SPIRE: `authorized_as` in logs.
#[derive(Debug, Clone)]
pub(crate) enum Authority {
    Anybody,
    Local,
    Admin {
        via: &'static str,
    },
    /// The entry that makes the caller a downstream server.
    Downstream(Arc<Entry>),
    /// A live attested agent.
    Agent(PeerSvid),
}

impl Authority {
    /// SPIRE: `authorized_as`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Anybody => "nobody",
            Self::Local => "local",
            Self::Admin { .. } => "admin",
            Self::Downstream(_) => "downstream",
            Self::Agent(_) => "agent",
        }
    }

    /// SPIRE: `authorized_via`.
    pub(crate) fn via(&self) -> &'static str {
        match self {
            Self::Anybody => "",
            Self::Local => "transport",
            Self::Admin { via } => via,
            Self::Downstream(_) => "entries",
            Self::Agent(_) => "datastore",
        }
    }
}

/// Asks again, from memory, whether a caller still is what it was let in as; `authz` answers.
pub(crate) trait Entitlement: std::fmt::Debug + Send + Sync {
    /// # Errors
    /// PermissionDenied; Unavailable for an agent that has renewed its SVID meanwhile, since it did nothing wrong.
    fn recheck(&self, authority: &Authority, connection: &Connection) -> Result<(), OpError>;
}

/// An authorized call's caller: only `authz` makes one, so a handler that holds it has been authorized.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) connection: Arc<Connection>,
    pub(crate) authority: Authority,
    /// What the audit trail will say of the call.
    pub(crate) record: Arc<CallRecord>,
    pub(crate) entitlement: Arc<dyn Entitlement>,
}

impl Caller {
    /// The agent that calls.
    ///
    /// # Errors
    /// Internal, when the table lets somebody else in where an agent is needed.
    pub(crate) fn agent(&self) -> Result<&PeerSvid, OpError> {
        match &self.authority {
            Authority::Agent(svid) => Ok(svid),
            _ => Err(refused(
                Kind::Internal,
                "caller ID missing from request context",
            )),
        }
    }

    /// Whether the caller still is what it was let in as. To be asked after each wait: a ban, an eviction or a deleted
    /// entry counts for calls that are under way, too.
    ///
    /// # Errors
    /// As at the call's beginning; Unavailable when the agent has renewed its SVID meanwhile.
    pub(crate) fn still_entitled(&self) -> Result<(), OpError> {
        self.entitlement.recheck(&self.authority, &self.connection)
    }

    /// Adds to what the audit event of this call is about. To be called before the first refusal that it should name.
    pub(crate) fn describe(&self, fields: impl FnOnce() -> Fields) {
        self.record.describe(fields);
    }

    /// Adds the outcome of a batch's item to the audit event of this call.
    pub(crate) fn item<E>(&self, outcome: Result<(), E>, fields: impl FnOnce() -> Fields)
    where
        Outcome: From<E>,
    {
        if self.record.is_enabled() {
            let outcome = outcome.map_or_else(Outcome::from, |()| Outcome::Success);
            self.record.item(outcome, fields());
        }
    }
}

#[cfg(test)]
impl Connection {
    pub(crate) fn local_for_tests() -> Self {
        Self::new(
            Peer::Local {
                pid: Some(1),
                uid: 0,
                gid: 0,
            },
            watch::channel(false).1,
        )
    }

    pub(crate) fn remote_for_tests(address: SocketAddr, svid: Option<PeerSvid>) -> Self {
        Self::new(Peer::Remote { address, svid }, watch::channel(false).1)
    }
}
