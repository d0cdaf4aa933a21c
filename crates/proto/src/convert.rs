//! Between the wire's messages and the SPIFFE types: IDs, selectors, registration entries, bundles. Owns the checks
//! that a message must pass to become a value, with SPIRE's error texts; clients match on them. Must not decide
//! what a caller may do with the value.

mod bundle;
mod entry;
#[cfg(test)]
mod tests;

use spiffe::entry::InvalidDnsName;
use spiffe::id::MembershipError;
use spiffe::{IdError, Selector, SelectorError, SelectorSet, SpiffeId, TrustDomain};

pub use bundle::{
    ReceivedBundle, bundle_from_caller, bundle_from_server, bundle_from_wire, bundle_to_wire,
    jwt_authorities_from_wire, jwt_authority_to_wire, mask_bundle, wit_authorities_from_wire,
    wit_authority_to_wire, x509_authorities_from_wire, x509_authority_to_wire,
};
pub use entry::{
    EntryFields, agent_entry_mask, entry_fields_from_wire, entry_from_wire, entry_to_wire,
    new_entry_from_wire,
};

use crate::spire::api::types;

/// A message that is no valid value. The text is SPIRE's.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// SPIRE: `pkg/server/api/id.go`.
    #[error("request must specify SPIFFE ID")]
    MissingId,
    /// Malformed trust domain or path.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The ID is not a member, workload or agent of our trust domain.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Which part of the message is wrong, and how.
    #[error("{what}: {source}")]
    In {
        /// The part, in SPIRE's words.
        what: &'static str,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// No or an illegal type, or no value.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// SPIRE: `pkg/server/api/entry.go`.
    #[error("selector list is empty")]
    NoSelectors,
    #[error(transparent)]
    DnsName(#[from] InvalidDnsName),
    /// Longer than 1024 bytes.
    #[error("hint is too long, max length is 1024 characters")]
    HintTooLong,
    /// SPIRE: `pkg/server/api/bundle.go`.
    #[error("no bundle provided")]
    MissingBundle,
    /// A JWT or WIT authority without a name.
    #[error("missing key ID")]
    MissingKeyId,
    /// A certificate or public key that cannot be read.
    #[error("{0}")]
    Authority(String),
    /// A well-formed certificate or public key with a key of a kind or size that we do not support.
    #[error("{0}")]
    UnsupportedAuthority(String),
}

impl ConvertError {
    /// Whether it is [`UnsupportedAuthority`](Self::UnsupportedAuthority), in whichever part of the message.
    #[must_use]
    pub fn is_unsupported_authority(&self) -> bool {
        match self {
            Self::In { source, .. } => source.is_unsupported_authority(),
            Self::UnsupportedAuthority(_) => true,
            _ => false,
        }
    }

    fn within(what: &'static str) -> impl Fn(Self) -> Self {
        move |source| Self::In {
            what,
            source: Box::new(source),
        }
    }
}

/// The message for an ID.
#[must_use]
pub fn spiffe_id_to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid {
        trust_domain: id.trust_domain_name().to_owned(),
        path: id.path().to_owned(),
    }
}

/// The ID in a message; of any trust domain, with or without a path.
///
/// # Errors
/// When it is missing or malformed.
pub fn spiffe_id_from_wire(id: Option<&types::Spiffeid>) -> Result<SpiffeId, ConvertError> {
    let id = id.ok_or(ConvertError::MissingId)?;
    Ok(SpiffeId::from_path(
        &TrustDomain::parse(&id.trust_domain)?,
        &id.path,
    )?)
}

/// An ID of our trust domain that has a path.
///
/// # Errors
/// When it is anything else.
pub fn member_id_from_wire(
    trust_domain: &TrustDomain,
    id: Option<&types::Spiffeid>,
) -> Result<SpiffeId, ConvertError> {
    let id = spiffe_id_from_wire(id)?;
    id.check_member(trust_domain)?;
    Ok(id)
}

/// The ID of a workload of our trust domain: outside the reserved namespace.
///
/// # Errors
/// When it is anything else.
pub fn workload_id_from_wire(
    trust_domain: &TrustDomain,
    id: Option<&types::Spiffeid>,
) -> Result<SpiffeId, ConvertError> {
    let id = spiffe_id_from_wire(id)?;
    id.check_workload(trust_domain)?;
    Ok(id)
}

/// The ID of an agent of our trust domain.
///
/// # Errors
/// When it is anything else.
pub fn agent_id_from_wire(
    trust_domain: &TrustDomain,
    id: Option<&types::Spiffeid>,
) -> Result<SpiffeId, ConvertError> {
    let id = spiffe_id_from_wire(id)?;
    id.check_agent(trust_domain)?;
    Ok(id)
}

/// The message for one selector.
#[must_use]
pub fn selector_to_wire(selector: &Selector) -> types::Selector {
    types::Selector {
        r#type: selector.kind().to_owned(),
        value: selector.value().to_owned(),
    }
}

/// The messages for a set of selectors, sorted.
#[must_use]
pub fn selectors_to_wire(selectors: &SelectorSet) -> Vec<types::Selector> {
    selectors.iter().map(selector_to_wire).collect()
}

/// The set of selectors in a message; it may be empty.
///
/// # Errors
/// When one has no type, a colon in its type, or no value.
pub fn selectors_from_wire(selectors: &[types::Selector]) -> Result<SelectorSet, ConvertError> {
    let selectors = selectors
        .iter()
        .map(|selector| Selector::new(&selector.r#type, &selector.value));
    Ok(selectors.collect::<Result<SelectorSet, _>>()?)
}
