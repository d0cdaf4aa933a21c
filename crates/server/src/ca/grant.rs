//! The proof of authorization that the gate asks for.
//!
//! A grant is made from what a check returned and from nothing else: an entry that the agent was found to be authorized for, a
//! node that attested, a caller that was let in as an agent, an administrator or a server below. It says all that the document
//! may claim; a CSR contributes its key only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::clock::from_unix;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Subject;

use crate::attest::Attested;
use crate::audit::Fields;
use crate::caller::{AdminCaller, AgentCaller, DownstreamCaller};
use crate::registry::Authorized;

/// Which documents a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrantKind {
    /// X509-SVID and JWT-SVID of a workload.
    Workload,
    /// An attested agent's own X509-SVID.
    Agent,
    /// This server's own X509-SVID.
    Server,
    /// A signing certificate for a server below.
    DownstreamCa,
}

/// What may be issued, and to whom.
#[derive(Debug, Clone)]
pub struct Grant {
    pub(super) kind: GrantKind,
    pub(super) id: SpiffeId,
    pub(super) dns_names: Vec<String>,
    /// None: the default of the kind of subject.
    pub(super) subject: Option<Subject>,
    /// None: the default of the kind of document.
    pub(super) x509_ttl: Option<Duration>,
    pub(super) jwt_ttl: Option<Duration>,
    pub(super) with_jti: bool,
    /// No document is valid beyond: an SVID never outlives its entry.
    pub(super) expires_at: Option<SystemTime>,
    /// What has to hold still when the document is signed.
    pub(super) entry: Option<Authorized>,
    /// The same for a server below: its entry as it was when the call was let in.
    pub(super) downstream: Option<Arc<Entry>>,
    entry_id: Option<Arc<str>>,
    /// What the caller's handler adds to the audit line.
    fields: Fields,
}

impl Grant {
    fn new(kind: GrantKind, id: SpiffeId) -> Self {
        Self {
            kind,
            id,
            dns_names: Vec::new(),
            subject: None,
            x509_ttl: None,
            jwt_ttl: None,
            with_jti: false,
            expires_at: None,
            entry: None,
            downstream: None,
            entry_id: None,
            fields: Fields::new(),
        }
    }

    /// To the workload of an entry.
    pub(crate) fn entry(entry: Authorized) -> Self {
        let mut grant = Self::new(GrantKind::Workload, entry.spiffe_id.clone());
        grant.dns_names.clone_from(&entry.dns_names);
        grant.x509_ttl = seconds(entry.x509_svid_ttl);
        grant.jwt_ttl = seconds(entry.jwt_svid_ttl);
        grant.with_jti = entry.jwt_svid_include_jti;
        grant.expires_at = (entry.expires_at != 0).then(|| from_unix(entry.expires_at));
        grant.entry_id = Some(Arc::clone(&entry.id));
        grant.entry = Some(entry);
        grant
    }

    /// To the server below whose entry says `downstream`; nothing for another entry.
    pub(crate) fn downstream_ca(caller: DownstreamCaller<'_>, own: &TrustDomain) -> Option<Self> {
        let entry = caller.entry();
        let in_own = entry.downstream && entry.spiffe_id.is_member_of(own);
        in_own.then(|| {
            let mut grant = Self::new(GrantKind::DownstreamCa, own.id());
            grant.expires_at = (entry.expires_at != 0).then(|| from_unix(entry.expires_at));
            grant.entry_id = Some(Arc::clone(&entry.id));
            grant.downstream = caller.registered().cloned();
            grant.fields.add("agent_id", &entry.spiffe_id);
            grant.fields.add("trust_domain_id", own.id());
            grant
        })
    }

    /// To an agent that has just attested.
    pub(crate) fn agent(attested: &Attested) -> Self {
        Self::new(GrantKind::Agent, attested.id().clone())
    }

    /// To an agent that renews its SVID.
    pub(crate) fn renewal(agent: AgentCaller<'_>) -> Self {
        Self::new(GrantKind::Agent, agent.id().clone())
    }

    /// To this server.
    pub(super) fn server(own: &TrustDomain) -> Self {
        Self::new(GrantKind::Server, SpiffeId::server(own))
    }

    /// To a workload that an administrator names. A `ttl` of 0 or less is the default; an empty subject, too.
    pub(crate) fn minted(_by: AdminCaller, id: SpiffeId, ttl: i32) -> Self {
        let mut grant = Self::new(GrantKind::Workload, id);
        grant.x509_ttl = seconds(ttl);
        grant.jwt_ttl = seconds(ttl);
        grant.fields.add("ttl", ttl);
        grant
    }

    /// With what an administrator's CSR asks for beyond the ID.
    #[must_use]
    pub(crate) fn with_names(mut self, dns_names: Vec<String>, subject: Subject) -> Self {
        self.dns_names = dns_names;
        self.subject = Some(subject).filter(|subject| !subject.is_empty());
        self
    }

    /// Adds a field to the audit line that the gate writes.
    #[must_use]
    pub(crate) fn with_field(mut self, name: &'static str, value: impl ToString) -> Self {
        self.fields.add(name, value);
        self
    }

    /// What the audit line says of the grant.
    pub(super) fn audit_fields(&self) -> Fields {
        let mut fields = self.fields.clone().with("spiffe_id", &self.id);
        if let Some(entry_id) = &self.entry_id {
            fields.add("entry_id", entry_id);
        }
        fields
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

fn seconds(ttl: i32) -> Option<Duration> {
    u64::try_from(ttl)
        .ok()
        .filter(|ttl| *ttl > 0)
        .map(Duration::from_secs)
}
