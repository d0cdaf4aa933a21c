//! What the server keeps, as types: everything that is a row in the store and an object in memory.
//! Registration entries and bundles are the standards' own types; the rest is here. No behaviour beyond naming.

use std::fmt;
use std::sync::Arc;

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;

/// A node that has attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub id: SpiffeId,
    /// The node attestor's name, e.g. `join_token`.
    pub attestation_type: String,
    /// Serial number of the current SVID, decimal. Empty once banned.
    pub serial: String,
    /// End of the current SVID, Unix seconds.
    pub expires_at: i64,
    /// Serial number of an SVID handed out in a renewal and not yet seen in use, or empty.
    pub new_serial: String,
    /// End of that SVID, Unix seconds, or 0.
    pub new_expires_at: i64,
    pub can_reattest: bool,
    pub banned: bool,
    /// What the node attestor said of the node.
    pub selectors: SelectorSet,
    pub agent_version: String,
}

/// The fields of an agent to write; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct AgentPatch {
    pub serial: Option<String>,
    pub expires_at: Option<i64>,
    pub new_serial: Option<String>,
    pub new_expires_at: Option<i64>,
    pub can_reattest: Option<bool>,
    pub selectors: Option<SelectorSet>,
    pub agent_version: Option<String>,
}

/// An unused join token as the store holds it: known by a digest, so that a copy of the store redeems nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinTokenRecord {
    /// SHA-256 of the token, lower-case hex.
    pub digest: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// An alias SPIFFE ID for the node; redeeming the token creates its entry.
    pub alias: Option<SpiffeId>,
}

impl JoinTokenRecord {
    /// SPIRE: the second of the expiry belongs to the time after it.
    pub(crate) fn is_expired(&self, now: i64) -> bool {
        self.expires_at <= now
    }
}

impl fmt::Debug for JoinTokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinTokenRecord")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Where the bundle of another trust domain is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederationRelationship {
    pub trust_domain: TrustDomain,
    /// An `https` URL.
    pub bundle_endpoint_url: String,
    pub bundle_endpoint_profile: BundleEndpointProfile,
}

/// How a bundle endpoint proves who it is (SPIFFE Federation §5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleEndpointProfile {
    HttpsWeb,
    HttpsSpiffe { endpoint_spiffe_id: SpiffeId },
}

/// One server's record of its authorities. The content belongs to the authority code.
#[derive(Clone, PartialEq, Eq)]
pub struct Journal {
    pub id: String,
    pub data: Vec<u8>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("id", &self.id)
            .field("bytes", &self.data.len())
            .finish()
    }
}

/// The right of one server to do a periodic job, until a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub holder: String,
    /// Unix seconds.
    pub expires_at: i64,
}

/// The kinds of object, one table each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Entry,
    Agent,
    Bundle,
    JoinToken,
    FederationRelationship,
    Journal,
    Lease,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Bundle,
        Self::FederationRelationship,
        Self::Entry,
        Self::Agent,
        Self::JoinToken,
        Self::Journal,
        Self::Lease,
    ];

    /// The name of the table, which is the name in the change log as well.
    pub fn table(self) -> &'static str {
        match self {
            Self::Entry => "entries",
            Self::Agent => "agents",
            Self::Bundle => "bundles",
            Self::JoinToken => "join_tokens",
            Self::FederationRelationship => "federation_relationships",
            Self::Journal => "journals",
            Self::Lease => "leases",
        }
    }

    pub fn from_table(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.table() == name)
    }
}

/// Any stored object, shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Entry(Arc<Entry>),
    Agent(Arc<Agent>),
    Bundle(Arc<Bundle>),
    JoinToken(Arc<JoinTokenRecord>),
    FederationRelationship(Arc<FederationRelationship>),
    Journal(Arc<Journal>),
    Lease(Arc<Lease>),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Entry(_) => Kind::Entry,
            Self::Agent(_) => Kind::Agent,
            Self::Bundle(_) => Kind::Bundle,
            Self::JoinToken(_) => Kind::JoinToken,
            Self::FederationRelationship(_) => Kind::FederationRelationship,
            Self::Journal(_) => Kind::Journal,
            Self::Lease(_) => Kind::Lease,
        }
    }

    /// The object's name within its kind: an entry ID, a SPIFFE ID, a trust domain's name, …
    pub fn key(&self) -> &str {
        match self {
            Self::Entry(entry) => &entry.id,
            Self::Agent(agent) => agent.id.as_str(),
            Self::Bundle(bundle) => bundle.trust_domain.as_str(),
            Self::JoinToken(token) => &token.digest,
            Self::FederationRelationship(relationship) => relationship.trust_domain.as_str(),
            Self::Journal(journal) => &journal.id,
            Self::Lease(lease) => &lease.name,
        }
    }
}

/// Members of an object's row that a newer version of the program wrote, kept to be written back.
pub(crate) type Unknown = serde_json::Map<String, serde_json::Value>;

/// One object's change at a revision. Both sides are given, so that a reader can tell whom it concerns.
#[derive(Debug, Clone)]
pub struct Change {
    pub revision: u64,
    pub kind: Kind,
    pub key: Arc<str>,
    pub old: Option<Object>,
    pub new: Option<Object>,
}

/// A committed write on its way into memory.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) kind: Kind,
    pub(crate) key: Arc<str>,
    /// Where the object stands in listings, as the store has it.
    pub(crate) row: i64,
    pub(crate) object: Option<Object>,
    pub(crate) unknown: Option<Arc<Unknown>>,
    /// The commit that wrote it.
    pub(crate) revision: u64,
}
