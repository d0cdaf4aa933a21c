//! The proof of authorization that the gate asks for.
//!
//! A grant is made by the code that authorized a call, from the registration entry or the administrator's request, never
//! from what a caller wrote into a CSR. It says all that the document may claim; a CSR contributes its key only.

use std::sync::Arc;
use std::time::Duration;

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Subject;

use crate::audit::Fields;

/// For which documents a grant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
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
    pub(super) extent: Extent,
    pub(super) id: SpiffeId,
    pub(super) dns_names: Vec<String>,
    /// None: the default of the kind of subject.
    pub(super) subject: Option<Subject>,
    /// None: the default of the kind of document.
    pub(super) x509_ttl: Option<Duration>,
    pub(super) jwt_ttl: Option<Duration>,
    pub(super) with_jti: bool,
    entry_id: Option<Arc<str>>,
    /// What the caller's handler adds to the audit line.
    fields: Fields,
}

impl Grant {
    fn new(extent: Extent, id: SpiffeId) -> Self {
        Self {
            extent,
            id,
            dns_names: Vec::new(),
            subject: None,
            x509_ttl: None,
            jwt_ttl: None,
            with_jti: false,
            entry_id: None,
            fields: Fields::new(),
        }
    }

    /// To the workload of an entry that the caller was found to be authorized for.
    pub(crate) fn entry(entry: &Entry) -> Self {
        let mut grant = Self::new(Extent::Workload, entry.spiffe_id.clone());
        grant.dns_names.clone_from(&entry.dns_names);
        grant.x509_ttl = seconds(entry.x509_svid_ttl);
        grant.jwt_ttl = seconds(entry.jwt_svid_ttl);
        grant.with_jti = entry.jwt_svid_include_jti;
        grant.entry_id = Some(Arc::clone(&entry.id));
        grant
    }

    /// To the server below whose entry says `downstream`; nothing for another entry.
    pub(crate) fn downstream_ca(entry: &Entry, own: &TrustDomain) -> Option<Self> {
        let in_own = entry.downstream && entry.spiffe_id.is_member_of(own);
        in_own.then(|| {
            let mut grant = Self::new(Extent::DownstreamCa, own.id());
            grant.entry_id = Some(Arc::clone(&entry.id));
            grant.fields.add("agent_id", &entry.spiffe_id);
            grant
        })
    }

    /// To an agent that has just attested, or that renews.
    pub(crate) fn agent(id: &SpiffeId) -> Self {
        Self::new(Extent::Agent, id.clone())
    }

    /// To this server.
    pub(super) fn server(own: &TrustDomain) -> Self {
        Self::new(Extent::Server, SpiffeId::server(own))
    }

    /// To a workload that an administrator names. A `ttl` of 0 or less is the default; an empty subject, too.
    pub(crate) fn minted(id: SpiffeId, ttl: i32) -> Self {
        let mut grant = Self::new(Extent::Workload, id);
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
