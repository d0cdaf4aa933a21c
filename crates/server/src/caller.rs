//! A connection with its principal, and the caller of one authorized call.
//!
//! A [`Connection`] says who the peer was when it was accepted. Whether that peer may make a call is decided for each call by
//! `authz`, which turns it into a [`Caller`].

use std::net::SocketAddr;
use std::sync::Arc;

use spiffe::entry::Entry;
use tokio::sync::watch;

use crate::audit::{CallRecord, Fields, Outcome};
use crate::budget::Budget;
use crate::error::{Kind, OpError, refused};
pub(crate) use crate::principal::PeerSvid;
use crate::principal::{Account, Class, Principal};
use crate::source::Source;

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    principal: Principal,
    /// Of a TLS client.
    address: Option<SocketAddr>,
    budget: Arc<Budget>,
    closing: watch::Receiver<bool>,
    /// How many streams hold it open beyond its age.
    lasting: Arc<watch::Sender<usize>>,
}

/// Holds its connection open beyond the age at which it would be asked to end.
#[derive(Debug)]
pub(crate) struct KeptOpen(Arc<watch::Sender<usize>>);

impl Drop for KeptOpen {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Connection {
    /// `closing` turns true when streams that would last should end.
    pub(crate) fn new(
        principal: Principal,
        address: Option<SocketAddr>,
        budget: Arc<Budget>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            principal,
            address,
            budget,
            closing,
            lasting: Arc::new(watch::Sender::new(0)),
        }
    }

    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    pub(crate) fn is_local(&self) -> bool {
        self.principal.class() == Class::Local
    }

    pub(crate) fn svid(&self) -> Option<&PeerSvid> {
        self.principal.svid()
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What the account of the peer may still make this server hold.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// To whose account the peer's calls go. An SVID that entitles to nothing has no account of its own: all peers behind one
    /// address share that address's account.
    pub(crate) fn account(&self) -> Option<Account> {
        match (&self.principal, self.address) {
            (Principal::Local(peer), _) => Some(Account::Uid(peer.uid)),
            (Principal::Unauthenticated | Principal::Workload(_), address) => {
                address.map(|address| Account::Source(Source::of(address.ip())))
            }
            (Principal::Agent(svid) | Principal::Downstream(svid) | Principal::Admin(svid), _) => {
                Some(Account::Identity(svid.id().clone(), self.principal.class()))
            }
        }
    }

    /// Turns true when the connection has reached its age or the server stops: streams that would last should end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.clone()
    }

    /// For a stream that checks its peer before each message and is meant to last: its connection is not asked to end at
    /// its age while the guard lives. Only an agent's is; for others the guard does nothing.
    pub(crate) fn keep_open(&self) -> KeptOpen {
        self.lasting.send_modify(|count| *count += 1);
        KeptOpen(Arc::clone(&self.lasting))
    }

    /// Returns when no stream keeps the connection open.
    pub(crate) async fn not_kept_open(&self) {
        if self.principal.class() == Class::Agent {
            let mut lasting = self.lasting.subscribe();
            // The sender lives in this connection, so this cannot fail.
            drop(lasting.wait_for(|count| *count == 0).await.map(|_| ()));
        }
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

/// The proof that an attested agent calls. Only [`Caller::agent`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentCaller<'a>(&'a PeerSvid);

impl<'a> AgentCaller<'a> {
    pub(crate) fn svid(self) -> &'a PeerSvid {
        self.0
    }
}

impl std::ops::Deref for AgentCaller<'_> {
    type Target = PeerSvid;

    fn deref(&self) -> &PeerSvid {
        self.0
    }
}

/// The proof that an administrator calls. Only [`Caller::admin`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdminCaller(());

/// The proof that a server below calls, with the entry that says so. Only [`Caller::downstream`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DownstreamCaller<'a> {
    entry: &'a Entry,
    /// None in tests of what takes a proof.
    registered: Option<&'a Arc<Entry>>,
}

impl<'a> DownstreamCaller<'a> {
    pub(crate) fn entry(self) -> &'a Entry {
        self.entry
    }

    /// The entry as it was found, which a grant compares with the registry's when it has waited.
    pub(crate) fn registered(self) -> Option<&'a Arc<Entry>> {
        self.registered
    }
}

#[cfg(test)]
impl AdminCaller {
    pub(crate) fn for_tests() -> Self {
        Self(())
    }
}

#[cfg(test)]
impl<'a> DownstreamCaller<'a> {
    /// As if the entry were registered as it is, for ever.
    pub(crate) fn for_tests(entry: &'a Entry) -> Self {
        Self {
            entry,
            registered: None,
        }
    }

    pub(crate) fn registered_for_tests(entry: &'a Arc<Entry>) -> Self {
        Self {
            entry,
            registered: Some(entry),
        }
    }
}

impl Caller {
    /// The agent that calls.
    ///
    /// # Errors
    /// Internal, when the table lets somebody else in where an agent is needed.
    pub(crate) fn agent(&self) -> Result<AgentCaller<'_>, OpError> {
        match &self.authority {
            Authority::Agent(svid) => Ok(AgentCaller(svid)),
            _ => Err(refused(
                Kind::Internal,
                "caller ID missing from request context",
            )),
        }
    }

    /// The administrator that calls.
    ///
    /// # Errors
    /// Internal, when the table lets somebody else in where an administrator is needed.
    pub(crate) fn admin(&self) -> Result<AdminCaller, OpError> {
        match &self.authority {
            Authority::Local | Authority::Admin { .. } => Ok(AdminCaller(())),
            _ => Err(refused(Kind::Internal, "caller is not an administrator")),
        }
    }

    /// The server below that calls.
    ///
    /// # Errors
    /// Internal, when the table lets somebody else in where a downstream server is needed.
    pub(crate) fn downstream(&self) -> Result<DownstreamCaller<'_>, OpError> {
        match &self.authority {
            Authority::Downstream(entry) => Ok(DownstreamCaller {
                entry,
                registered: Some(entry),
            }),
            _ => Err(refused(
                Kind::Internal,
                "caller is not a downstream workload",
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
        let peer = crate::principal::LocalPeer {
            uid: 0,
            gid: 0,
            process: None,
        };
        Self::for_tests(Principal::Local(peer), None)
    }

    /// A TLS client; as an agent's when it shows an SVID.
    pub(crate) fn remote_for_tests(address: SocketAddr, svid: Option<PeerSvid>) -> Self {
        let principal = svid.map_or(Principal::Unauthenticated, Principal::Agent);
        Self::for_tests(principal, Some(address))
    }

    pub(crate) fn for_tests(principal: Principal, address: Option<SocketAddr>) -> Self {
        let budget = Budget::new(crate::budget::Limits::of(principal.class()));
        Self::new(principal, address, budget, watch::channel(false).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svid() -> PeerSvid {
        let expired = std::time::SystemTime::UNIX_EPOCH;
        let id = spiffe::id::SpiffeId::parse("spiffe://example.org/x").unwrap();
        PeerSvid::for_tests(id, "1", expired)
    }

    fn has_to_wait(connection: &Connection) -> bool {
        use futures_util::FutureExt as _;
        connection.not_kept_open().now_or_never().is_none()
    }

    #[test]
    fn a_stream_keeps_an_agents_connection_open_and_nobody_elses() {
        let agent = Connection::for_tests(Principal::Agent(svid()), None);
        assert!(!has_to_wait(&agent));
        let streams = (agent.keep_open(), agent.keep_open());
        assert!(has_to_wait(&agent));
        drop(streams.0);
        assert!(has_to_wait(&agent));
        drop(streams.1);
        assert!(!has_to_wait(&agent));
        let workload = Connection::for_tests(Principal::Workload(svid()), None);
        let _stream = workload.keep_open();
        assert!(!has_to_wait(&workload));
    }

    #[test]
    fn charges_a_workloads_calls_to_its_address_and_an_agents_to_its_identity() {
        let address = "192.0.2.1:5000".parse().ok();
        let source = Connection::for_tests(Principal::Unauthenticated, address).account();
        let workload = Connection::for_tests(Principal::Workload(svid()), address).account();
        let agent = Connection::for_tests(Principal::Agent(svid()), address).account();
        assert!(source.is_some() && workload == source);
        assert_eq!(
            agent,
            Some(Account::Identity(svid().id().clone(), Class::Agent))
        );
    }
}
