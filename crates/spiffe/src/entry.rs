//! Registration entries: which workload, seen through which agent, may have which identity. The one shape
//! used from the wire's edge to the store's edge.

use crate::id::{MAX_ID_LEN, MembershipError, SpiffeId};
use crate::selector::SelectorSet;
use crate::trust_domain::TrustDomain;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// Longest entry id, in characters.
pub const MAX_ENTRY_ID_LEN: usize = 255;
/// Longest hint, in bytes (Workload API §8).
pub const MAX_HINT_LEN: usize = 1024;

/// A registration entry. Field meanings and numbers: `SPIRE: spire.api.types.Entry`.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields of the wire's entry, each a switch of its own"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// UUID unless the creator chose one.
    pub id: Arc<str>,
    pub spiffe_id: SpiffeId,
    /// The agent, node alias or server the entry hangs under.
    pub parent_id: SpiffeId,
    pub selectors: SelectorSet,
    /// Seconds; 0 means the server's default.
    #[serde(default)]
    pub x509_svid_ttl: i32,
    /// Seconds; 0 means the server's default.
    #[serde(default)]
    pub jwt_svid_ttl: i32,
    #[serde(default)]
    pub federates_with: Vec<TrustDomain>,
    #[serde(default)]
    pub admin: bool,
    #[serde(default)]
    pub downstream: bool,
    #[serde(default)]
    pub store_svid: bool,
    /// Unix seconds; 0 means never.
    #[serde(default)]
    pub expires_at: i64,
    #[serde(default)]
    pub dns_names: Vec<String>,
    #[serde(default)]
    pub revision_number: i64,
    #[serde(default)]
    pub hint: String,
    /// Unix seconds.
    #[serde(default)]
    pub created_at: i64,
    #[serde(default)]
    pub disable_x509_svid_prefetch: bool,
    #[serde(default)]
    pub jwt_svid_include_jti: bool,
}

/// Why an entry is refused. Texts: `SPIRE: pkg/server/datastore/sqlstore`, `pkg/server/api`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("invalid registration entry: missing selector list")]
    MissingSelectors,
    #[error("specifying cache behaviour is incompatible with storable SVIDs")]
    StoredWithCacheBehaviour,
    #[error(
        "invalid registration entry: selector types must be the same when store SVID is enabled"
    )]
    MixedSelectorTypes,
    #[error("invalid registration entry: entry ID too long")]
    EntryIdTooLong,
    #[error("invalid registration entry: entry ID contains invalid characters")]
    EntryIdCharacters,
    #[error("invalid registration entry: X509SvidTtl is not set")]
    X509SvidTtl,
    #[error("invalid registration entry: JwtSvidTtl is not set")]
    JwtSvidTtl,
    #[error("invalid registration entry: hint is too long, max length is 1024 characters")]
    HintTooLong,
    #[error("invalid spiffe ID: {0}")]
    SpiffeId(MembershipError),
    #[error("invalid parent ID: {0}")]
    ParentId(MembershipError),
    #[error("invalid spiffe ID: is longer than 2048 bytes")]
    IdTooLong,
    #[error("invalid DNS name: {0}")]
    DnsName(#[from] InvalidDnsName),
    #[error("invalid registration entry: the DNS name {0:?} is given twice")]
    DuplicateDnsName(String),
}

/// A DNS name that no certificate may have.
///
/// SPIRE's text ends with the reason. The name follows it where there is one to tell apart from others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}{}", in_parentheses(name))]
pub struct InvalidDnsName {
    pub name: String,
    pub reason: DnsNameError,
}

fn in_parentheses(name: &str) -> String {
    if name.trim().is_empty() {
        String::new()
    } else {
        format!(" ({name:?})")
    }
}

/// Why a DNS name is refused. Texts: `SPIRE: pkg/common/x509util/dns.go`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    #[error("name must be ascii")]
    NotAscii,
    #[error("too many wildcards")]
    TooManyWildcards,
    #[error("wildcard must be first label")]
    WildcardNotFirst,
    #[error("empty or only whitespace")]
    Empty,
    #[error("domain ends with dot")]
    TrailingDot,
    #[error("idna error: invalid label {0:?}")]
    BadLabel(String),
    #[error("idna error: name is too long")]
    TooLong,
    #[error("name {0:?} overlaps with an existing wildcard name in the list: wildcard overlap")]
    WildcardOverlap(String),
}

impl Entry {
    /// An entry with defaults everywhere else.
    #[must_use]
    pub fn new(id: &str, spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: SelectorSet) -> Self {
        Self {
            id: Arc::from(id),
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            store_svid: false,
            expires_at: 0,
            dns_names: Vec::new(),
            revision_number: 0,
            hint: String::new(),
            created_at: 0,
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }

    /// Checks every rule that needs nothing but the entry and the server's trust domain. An empty `id` passes:
    /// the store gives one.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self, td: &TrustDomain) -> Result<(), EntryError> {
        validate_ids(&self.spiffe_id, &self.parent_id, td)?;
        let mut seen = HashSet::new();
        for name in &self.dns_names {
            validate_dns_name(name)?;
            // SPIRE: a unique index of its database refuses it.
            if !seen.insert(name) {
                return Err(EntryError::DuplicateDnsName(name.clone()));
            }
        }
        self.validate_selectors()?;
        if !self.id.is_empty() {
            validate_entry_id(&self.id)?;
        }
        if self.x509_svid_ttl < 0 {
            return Err(EntryError::X509SvidTtl);
        }
        if self.jwt_svid_ttl < 0 {
            return Err(EntryError::JwtSvidTtl);
        }
        if self.hint.len() > MAX_HINT_LEN {
            return Err(EntryError::HintTooLong);
        }
        Ok(())
    }

    fn validate_selectors(&self) -> Result<(), EntryError> {
        let mut selectors = self.selectors.iter();
        let Some(first) = selectors.next() else {
            return Err(EntryError::MissingSelectors);
        };
        if self.store_svid {
            if self.disable_x509_svid_prefetch {
                return Err(EntryError::StoredWithCacheBehaviour);
            }
            if selectors.any(|selector| selector.kind() != first.kind()) {
                return Err(EntryError::MixedSelectorTypes);
            }
        }
        Ok(())
    }

    /// Whether the entry has expired at `now` (unix seconds). It expires at the second of `expires_at`, not after it.
    #[must_use]
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires_at != 0 && self.expires_at <= now
    }

    /// Whether `other` says the same about who may have what: the key under which two entries are "similar".
    #[must_use]
    pub fn is_similar_to(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.parent_id == other.parent_id
            && self.selectors == other.selectors
    }
}

fn validate_ids(id: &SpiffeId, parent: &SpiffeId, td: &TrustDomain) -> Result<(), EntryError> {
    parent.check_member(td).map_err(EntryError::ParentId)?;
    id.check_workload(td).map_err(EntryError::SpiffeId)?;
    if id.as_str().len() > MAX_ID_LEN || parent.as_str().len() > MAX_ID_LEN {
        return Err(EntryError::IdTooLong);
    }
    Ok(())
}

/// Checks an entry id: at most 255 of `[-._0-9A-Za-z]`.
///
/// # Errors
/// [`EntryError::EntryIdTooLong`], [`EntryError::EntryIdCharacters`].
pub fn validate_entry_id(id: &str) -> Result<(), EntryError> {
    if id.len() > MAX_ENTRY_ID_LEN {
        return Err(EntryError::EntryIdTooLong);
    }
    if !id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        return Err(EntryError::EntryIdCharacters);
    }
    Ok(())
}

/// Checks a DNS name for a certificate: labels of 1 to 63 printable ASCII characters, at most 253 in all, no hyphen at the
/// end of a label nor in its third and fourth place, optionally one leading `*.`.
///
/// SPIRE: the profile of IDNA that it uses leaves underscores, upper case and blanks alone, and so they stand in the names
/// that people have registered. Control characters, which it lets pass too, are refused here.
///
/// # Errors
/// [`InvalidDnsName`].
pub fn validate_dns_name(name: &str) -> Result<(), InvalidDnsName> {
    check_dns_name(name).map_err(|reason| InvalidDnsName {
        name: name.to_owned(),
        reason,
    })
}

fn check_dns_name(name: &str) -> Result<(), DnsNameError> {
    if !name.is_ascii() {
        return Err(DnsNameError::NotAscii);
    }
    let name = match name.matches('*').count() {
        0 => name,
        1 => name
            .strip_prefix("*.")
            .ok_or(DnsNameError::WildcardNotFirst)?,
        _ => return Err(DnsNameError::TooManyWildcards),
    };
    let name = name.trim_matches(' ');
    if name.is_empty() {
        return Err(DnsNameError::Empty);
    }
    if name.ends_with('.') {
        return Err(DnsNameError::TrailingDot);
    }
    if name.len() > 253 {
        return Err(DnsNameError::TooLong);
    }
    match name.split('.').find(|label| !is_dns_label(label)) {
        Some(label) => Err(DnsNameError::BadLabel(label.to_owned())),
        None => Ok(()),
    }
}

fn is_dns_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let hyphens_in_place = !label.starts_with('-') && !label.ends_with('-');
    // Hyphens in third and fourth place announce an A-label; anything else there is reserved by IDNA.
    let reserved = bytes.len() > 4 && bytes.get(2..4) == Some(b"--");
    let prefix_in_place = !reserved || is_a_label(label);
    (1..=63).contains(&bytes.len())
        && hyphens_in_place
        && prefix_in_place
        && bytes.iter().all(|b| matches!(b, b' '..=b'~'))
}

/// Whether the label has the form of an A-label: `xn--` and Punycode, in lower case as IDNA writes it.
fn is_a_label(label: &str) -> bool {
    label.strip_prefix("xn--").is_some_and(|encoded| {
        encoded
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    })
}

/// Refuses a list in which a wildcard already covers another name.
///
/// # Errors
/// [`DnsNameError::WildcardOverlap`] with the covered name.
pub fn check_wildcard_overlap(names: &[String]) -> Result<(), DnsNameError> {
    let known: HashSet<&str> = names.iter().map(String::as_str).collect();
    for name in names.iter().filter(|name| !name.starts_with('*')) {
        let rest = name
            .split_once('.')
            .map(|(_, rest)| rest)
            .unwrap_or_default();
        if known.contains(format!("*.{rest}").as_str()) {
            return Err(DnsNameError::WildcardOverlap(name.clone()));
        }
    }
    Ok(())
}
