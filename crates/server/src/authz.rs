//! The one decision about every call: may this connection's peer make it, and as what.
//!
//! Memory only, except that the first call under a renewed agent SVID makes that SVID the current one. A peer's SVID was
//! verified at the handshake; here it is checked again against the time, the agent's row and the entries, for each call
//! and for each push on a stream.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use config::fault;
use spiffe::clock::{Clock, unix_seconds};
use spiffe::id::SpiffeId;

use crate::audit::CallRecord;
use crate::caller::{Authority, Caller, Connection, Entitlement};
use crate::datastore::{AgentWriteError, Agents};
use crate::error::{self, AgentRefusal, Kind, OpError};
use crate::principal::{PeerSvid, Principal};
use crate::registry::{Registry, Stale};

mod table;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use table::rows;
pub(crate) use table::{Allowed, Lifetime, Row, is_local_service, row};

/// The longest that a call waits for its agent's renewed SVID to be recorded as the current one.
const PROMOTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Decides. Shared by both endpoints.
#[derive(Debug)]
pub(crate) struct Authorizer {
    pub(crate) registry: Arc<Registry>,
    pub(crate) agents: Agents,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) admin_ids: HashSet<SpiffeId>,
    /// How long an agent that seems unknown may be another server's news. Zero when there is no other server.
    pub(crate) follow_for: Duration,
}

impl Authorizer {
    /// Whether a peer of this ID may hold a connection at all: ours, and administrators from elsewhere.
    pub(crate) fn may_connect(&self, id: &SpiffeId) -> bool {
        id.is_member_of(self.registry.trust_domain()) || self.admin_ids.contains(id)
    }

    /// The class that a verified SVID has now, from memory: SPIRE's order, as for a call.
    pub(crate) fn principal(&self, svid: PeerSvid) -> Principal {
        match self.by_entry(Allowed::ADMIN_OR_DOWNSTREAM, &svid) {
            Some(Authority::Downstream(_)) => Principal::Downstream(svid),
            Some(_) => Principal::Admin(svid),
            None if self.check_agent(&svid).is_ok() => Principal::Agent(svid),
            None => Principal::Workload(svid),
        }
    }

    /// Lets the peer of `connection` make one call of the row's method, or says why not.
    ///
    /// SPIRE's order: anybody, local, admin by configuration, admin by entry, downstream by entry, agent; the first that
    /// fits counts.
    ///
    /// # Errors
    /// PermissionDenied, with details when an agent's credentials are what is wrong.
    pub(crate) async fn authorize(
        self: &Arc<Self>,
        row: &Row,
        connection: &Arc<Connection>,
        record: &Arc<CallRecord>,
    ) -> Result<Caller, OpError> {
        let authority = self
            .authority(row.allowed, connection)
            .await
            .map_err(|denial| denial.into_error(row.method))?;
        record.authorized(authority.name(), authority.via());
        Ok(Caller {
            connection: Arc::clone(connection),
            authority,
            record: Arc::clone(record),
            entitlement: Arc::<Self>::clone(self),
        })
    }

    async fn authority(
        &self,
        allowed: Allowed,
        connection: &Connection,
    ) -> Result<Authority, Denial> {
        if allowed.lets_in(Allowed::ANY) {
            return Ok(Authority::Anybody);
        }
        if connection.is_local() {
            return if allowed.lets_in(Allowed::LOCAL) {
                Ok(Authority::Local)
            } else {
                Err(Denial::because(
                    "it is served to agents or downstream servers over TLS, not on the admin socket",
                ))
            };
        }
        let Some(svid) = connection.svid() else {
            return Err(Denial::of_unauthenticated());
        };
        if let Some(authority) = self.by_entry(allowed, svid) {
            if !matches!(authority, Authority::Admin { via: "config" }) {
                self.is_current()?;
            }
            return Ok(authority);
        }
        if allowed.lets_in(Allowed::AGENT) {
            self.is_current()?;
            self.live_agent(svid).await?;
            return Ok(Authority::Agent(svid.clone()));
        }
        Err(Denial::because(&format!(
            "{} is neither an administrator nor otherwise entitled",
            svid.id()
        )))
    }

    /// Whether memory is current enough to say what a ban or an eviction may have changed.
    fn is_current(&self) -> Result<(), Denial> {
        let checked = self.registry.freshness().check();
        checked.map_err(|stale| Denial::stale(&stale))
    }

    fn by_entry(&self, allowed: Allowed, svid: &PeerSvid) -> Option<Authority> {
        if !(allowed.lets_in(Allowed::ADMIN) || allowed.lets_in(Allowed::DOWNSTREAM))
            || self.clock.now() > svid.not_after()
        {
            return None;
        }
        if allowed.lets_in(Allowed::ADMIN) && self.admin_ids.contains(svid.id()) {
            return Some(Authority::Admin { via: "config" });
        }
        let now = unix_seconds(self.clock.now());
        let entries = self.registry.entries_for_spiffe_id(svid.id());
        let mut live = entries.iter().filter(|entry| !entry.is_expired(now));
        if allowed.lets_in(Allowed::ADMIN) && live.clone().any(|entry| entry.admin) {
            return Some(Authority::Admin { via: "entries" });
        }
        if allowed.lets_in(Allowed::DOWNSTREAM) {
            return live
                .find(|entry| entry.downstream)
                .map(|entry| Authority::Downstream(Arc::clone(entry)));
        }
        None
    }

    /// The agent check, promoting a renewed SVID on its first use.
    async fn live_agent(&self, svid: &PeerSvid) -> Result<(), Denial> {
        match self.check_agent(svid) {
            Ok(Standing::Current) => Ok(()),
            Ok(Standing::Renewed) => self.promote(svid).await,
            Err(denial) if denial.may_be_stale() => {
                // Another server may have attested or renewed this agent a moment ago.
                self.wait_for_others(svid).await;
                match self.check_agent(svid)? {
                    Standing::Current => Ok(()),
                    Standing::Renewed => self.promote(svid).await,
                }
            }
            Err(denial) => Err(denial),
        }
    }

    /// Follows the other servers of the database until they make the agent's SVID good, for a moment at most.
    pub(crate) async fn wait_for_others(&self, svid: &PeerSvid) {
        if self.follow_for.is_zero() {
            return;
        }
        // Subscribed before the look, so that what comes between is not waited for.
        let mut revisions = self.registry.subscribe();
        let good =
            async { while self.check_agent(svid).is_err() && revisions.changed().await.is_ok() {} };
        drop(tokio::time::timeout(self.follow_for, good).await);
    }

    /// Makes a renewed SVID the agent's current one. A database that is away must not lock the agent out: memory knows
    /// that this SVID was issued in a renewal, and the next call tries to write it again.
    async fn promote(&self, svid: &PeerSvid) -> Result<(), Denial> {
        let promotion = self.agents.promote_serial(svid.id(), svid.serial());
        match tokio::time::timeout(PROMOTION_TIMEOUT, promotion).await {
            Ok(Ok(_)) => return Ok(()),
            // Another call under the same SVID was quicker, or a ban or an eviction.
            Ok(Err(
                AgentWriteError::NotFound | AgentWriteError::Superseded | AgentWriteError::Banned,
            )) => {}
            Ok(Err(error)) => {
                tracing::debug!(agent = %svid.id(), %error, "the agent's renewed SVID is not yet recorded as the current one");
            }
            // The write stays queued.
            Err(_elapsed) => {}
        }
        self.check_agent(svid).map(|_| ())
    }

    /// Is this agent still what it was when it was let in? For streams, before every push. Memory only.
    ///
    /// # Errors
    /// What to end the stream with.
    pub(crate) fn recheck_agent(&self, svid: &PeerSvid) -> Result<(), StreamEnd> {
        self.is_current()
            .and_then(|()| self.check_agent(svid))
            .map(|_| ())
            .map_err(|denial| match denial.reason {
                Some(AgentRefusal::NotActive) => StreamEnd::Superseded,
                _ => StreamEnd::Denied(denial.into_bare_error()),
            })
    }

    fn check_agent(&self, svid: &PeerSvid) -> Result<Standing, Denial> {
        let id = svid.id();
        if self.clock.now() > svid.not_after() {
            return Err(Denial::agent(
                AgentRefusal::Expired,
                format!("agent \"{id}\" SVID is expired"),
            ));
        }
        let Some(agent) = self.registry.agent(id) else {
            return Err(Denial::agent(
                AgentRefusal::NotAttested,
                format!("agent \"{id}\" is not attested"),
            ));
        };
        if agent.banned {
            return Err(Denial::agent(
                AgentRefusal::Banned,
                format!("agent \"{id}\" is banned"),
            ));
        }
        if !svid.serial().is_empty() && agent.serial == svid.serial() {
            return Ok(Standing::Current);
        }
        if !svid.serial().is_empty() && agent.new_serial == svid.serial() {
            return Ok(Standing::Renewed);
        }
        let because = format!(
            "agent \"{id}\" expected to have serial number \"{}\"; has \"{}\"",
            agent.serial,
            svid.serial()
        );
        Err(Denial::agent(AgentRefusal::NotActive, because))
    }
}

impl Entitlement for Authorizer {
    fn recheck(&self, authority: &Authority, connection: &Connection) -> Result<(), OpError> {
        let by_entry = |class: Allowed| {
            connection
                .svid()
                .is_some_and(|svid| self.by_entry(class, svid).is_some())
        };
        let stands = match authority {
            Authority::Anybody | Authority::Local => true,
            Authority::Admin { .. } => by_entry(Allowed::ADMIN),
            Authority::Downstream(_) => by_entry(Allowed::DOWNSTREAM),
            Authority::Agent(svid) => {
                return self.recheck_agent(svid).map_err(|end| match end {
                    StreamEnd::Denied(denied) => denied,
                    StreamEnd::Superseded => error::refused(
                        Kind::Unavailable,
                        "the agent's SVID was renewed while the call waited; try again",
                    ),
                });
            }
        };
        if stands {
            Ok(())
        } else {
            Err(Denial::because("the caller is no longer entitled").into_bare_error())
        }
    }
}

/// Why a stream of an agent ends.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// It goes on under a newer SVID, with which it connects again: nothing to blame it for.
    Superseded,
    Denied(OpError),
}

enum Standing {
    Current,
    /// Under the SVID that it was handed last and shows for the first time.
    Renewed,
}

/// Why a call is refused.
struct Denial {
    code: Kind,
    reason: Option<AgentRefusal>,
    because: String,
    unauthenticated: bool,
}

impl Denial {
    fn because(because: &str) -> Self {
        Self {
            code: Kind::PermissionDenied,
            reason: None,
            because: because.to_owned(),
            unauthenticated: false,
        }
    }

    fn of_unauthenticated() -> Self {
        Self {
            unauthenticated: true,
            ..Self::because("the caller showed no X509-SVID")
        }
    }

    fn agent(reason: AgentRefusal, because: String) -> Self {
        Self {
            code: Kind::PermissionDenied,
            reason: Some(reason),
            because,
            unauthenticated: false,
        }
    }

    /// Says nothing against the caller: the agent keeps its identity and goes to another server.
    fn stale(stale: &Stale) -> Self {
        Self {
            code: Kind::Unavailable,
            reason: None,
            because: stale.to_string(),
            unauthenticated: false,
        }
    }

    fn may_be_stale(&self) -> bool {
        matches!(
            self.reason,
            Some(AgentRefusal::NotAttested | AgentRefusal::NotActive)
        )
    }

    fn into_error(self, method: &str) -> OpError {
        if self.code == Kind::Unavailable {
            return stale(self.because);
        }
        let message = format!("authorization denied for method {method}: {}", self.because);
        match self.reason {
            Some(reason) => agent_denied(reason, message),
            None if self.unauthenticated => error::refused(Kind::PermissionDenied, message).quiet(),
            None => error::refused(Kind::PermissionDenied, message),
        }
    }

    fn into_bare_error(self) -> OpError {
        match self.reason {
            Some(reason) => agent_denied(reason, self.because),
            None if self.code == Kind::Unavailable => stale(self.because),
            None => error::refused(self.code, self.because),
        }
    }
}

/// What is wrong has its own line in the log, once: a thousand agents that try again must not repeat it.
fn stale(because: String) -> OpError {
    error::refused(Kind::Unavailable, because)
        .with_code(fault::Code::DatabaseUnreachable)
        .quiet()
}

fn agent_denied(refusal: AgentRefusal, message: String) -> OpError {
    let error = error::refused(Kind::PermissionDenied, message).agent(refusal);
    match refusal {
        AgentRefusal::Banned => error.with_code(fault::Code::AgentBanned),
        AgentRefusal::NotAttested => error.with_code(fault::Code::AgentMustReattest),
        AgentRefusal::Expired | AgentRefusal::NotActive | AgentRefusal::MustReattest => error,
    }
}
