//! Registration entries.

use std::sync::Arc;

use spiffe::{
    Entry, SelectorSet, SpiffeId, TrustDomain,
    entry::{MAX_HINT_LEN, validate_dns_name},
};

use super::{
    ConvertError, member_id_from_wire, selectors_from_wire, selectors_to_wire, spiffe_id_from_wire,
    spiffe_id_to_wire, workload_id_from_wire,
};
use crate::spire::api::types::{self, EntryMask, entry::AdditionalAttributes};

const EVERYTHING: EntryMask = EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: true,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// What an agent asks a server for. It withdraws an entry at its expiry by its own clock, and issues again what differs in
/// anything that shows in an SVID: a revision number may repeat when an entry is deleted and created again. Only what an
/// entry hangs under is the server's business alone.
#[must_use]
pub fn agent_entry_mask() -> EntryMask {
    EntryMask {
        parent_id: false,
        ..EVERYTHING
    }
}

/// The message for an entry with the fields of the mask, and always the entry's ID. No mask means all fields.
#[must_use]
pub fn entry_to_wire(entry: &Entry, mask: Option<&EntryMask>) -> types::Entry {
    let mask = mask.unwrap_or(&EVERYTHING);
    let attributes = mask.additional_attributes
        && (entry.disable_x509_svid_prefetch || entry.jwt_svid_include_jti);
    types::Entry {
        id: entry.id.as_ref().to_owned(),
        spiffe_id: mask.spiffe_id.then(|| spiffe_id_to_wire(&entry.spiffe_id)),
        parent_id: mask.parent_id.then(|| spiffe_id_to_wire(&entry.parent_id)),
        selectors: if mask.selectors {
            selectors_to_wire(&entry.selectors)
        } else {
            Vec::new()
        },
        x509_svid_ttl: if mask.x509_svid_ttl {
            entry.x509_svid_ttl
        } else {
            0
        },
        federates_with: if mask.federates_with {
            names(&entry.federates_with)
        } else {
            Vec::new()
        },
        admin: mask.admin && entry.admin,
        downstream: mask.downstream && entry.downstream,
        expires_at: if mask.expires_at { entry.expires_at } else { 0 },
        dns_names: if mask.dns_names {
            entry.dns_names.clone()
        } else {
            Vec::new()
        },
        revision_number: if mask.revision_number {
            entry.revision_number
        } else {
            0
        },
        store_svid: mask.store_svid && entry.store_svid,
        jwt_svid_ttl: if mask.jwt_svid_ttl {
            entry.jwt_svid_ttl
        } else {
            0
        },
        hint: if mask.hint {
            entry.hint.clone()
        } else {
            String::new()
        },
        created_at: if mask.created_at { entry.created_at } else { 0 },
        additional_attributes: attributes.then_some(AdditionalAttributes {
            disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
            jwt_svid_include_jti: entry.jwt_svid_include_jti,
        }),
    }
}

fn names(trust_domains: &[TrustDomain]) -> Vec<String> {
    trust_domains
        .iter()
        .map(|trust_domain| trust_domain.as_str().to_owned())
        .collect()
}

/// An entry as a server tells it to an agent. Fields outside the agent's mask are at their defaults; a parent that
/// is not sent is the trust domain itself.
///
/// # Errors
/// When the SPIFFE ID is missing, or any ID, selector or trust domain is malformed.
pub fn entry_from_wire(entry: &types::Entry) -> Result<Entry, ConvertError> {
    let spiffe_id = spiffe_id_from_wire(entry.spiffe_id.as_ref())
        .map_err(ConvertError::within("invalid spiffe ID"))?;
    let parent_id = match entry.parent_id.as_ref() {
        None => spiffe_id.trust_domain().id(),
        parent => spiffe_id_from_wire(parent).map_err(ConvertError::within("invalid parent ID"))?,
    };
    let attributes = entry.additional_attributes.unwrap_or_default();
    Ok(Entry {
        id: Arc::from(entry.id.as_str()),
        spiffe_id,
        parent_id,
        selectors: selectors_from_wire(&entry.selectors)?,
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with: federated(&entry.federates_with)?,
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names.clone(),
        revision_number: entry.revision_number,
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
    })
}

fn federated(names: &[String]) -> Result<Vec<TrustDomain>, ConvertError> {
    let wrong =
        |error| ConvertError::within("invalid federated trust domain")(ConvertError::Id(error));
    names
        .iter()
        .map(|name| TrustDomain::parse(name).map_err(wrong))
        .collect()
}

/// The fields of an entry that a caller's mask selects; the others are `None`. The entry's ID, the revision and the
/// time of creation are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFields {
    /// Of our trust domain and outside the reserved namespace.
    pub spiffe_id: Option<SpiffeId>,
    /// Of our trust domain, with a path.
    pub parent_id: Option<SpiffeId>,
    /// Not empty.
    pub selectors: Option<SelectorSet>,
    /// Seconds; 0 means the server's default.
    pub x509_svid_ttl: Option<i32>,
    /// Seconds; 0 means the server's default.
    pub jwt_svid_ttl: Option<i32>,
    /// Not checked for being known.
    pub federates_with: Option<Vec<TrustDomain>>,
    /// May call the server's API as an administrator.
    pub admin: Option<bool>,
    /// May run a server of its own below this one.
    pub downstream: Option<bool>,
    /// For an agent's store, not for the Workload API.
    pub store_svid: Option<bool>,
    /// Unix seconds; 0 means never.
    pub expires_at: Option<i64>,
    /// Each valid by itself.
    pub dns_names: Option<Vec<String>>,
    /// At most 1024 bytes.
    pub hint: Option<String>,
    /// Both additional attributes are set or left together.
    pub disable_x509_svid_prefetch: Option<bool>,
    /// See `disable_x509_svid_prefetch`.
    pub jwt_svid_include_jti: Option<bool>,
}

/// What a caller of the entry service wants written. No mask means all fields, as in a new entry. What concerns
/// several fields, or the whole entry, is checked by [`Entry::validate`].
///
/// # Errors
/// When a selected field is not valid.
pub fn entry_fields_from_wire(
    trust_domain: &TrustDomain,
    entry: &types::Entry,
    mask: Option<&EntryMask>,
) -> Result<EntryFields, ConvertError> {
    let mask = mask.unwrap_or(&EVERYTHING);
    let parent_id = selected(mask.parent_id, || {
        let parent = member_id_from_wire(trust_domain, entry.parent_id.as_ref());
        parent.map_err(ConvertError::within("invalid parent ID"))
    })?;
    let spiffe_id = selected(mask.spiffe_id, || {
        let id = workload_id_from_wire(trust_domain, entry.spiffe_id.as_ref());
        id.map_err(ConvertError::within("invalid spiffe ID"))
    })?;
    let dns_names = selected(mask.dns_names, || checked_dns_names(&entry.dns_names))?;
    let federates_with = selected(mask.federates_with, || federated(&entry.federates_with))?;
    let selectors = selected(mask.selectors, || {
        if entry.selectors.is_empty() {
            return Err(ConvertError::NoSelectors);
        }
        selectors_from_wire(&entry.selectors)
    })?;
    let hint = selected(mask.hint, || {
        if entry.hint.len() > MAX_HINT_LEN {
            return Err(ConvertError::HintTooLong);
        }
        Ok(entry.hint.clone())
    })?;
    let attributes = mask
        .additional_attributes
        .then(|| entry.additional_attributes.unwrap_or_default());
    Ok(EntryFields {
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl: mask.x509_svid_ttl.then_some(entry.x509_svid_ttl),
        jwt_svid_ttl: mask.jwt_svid_ttl.then_some(entry.jwt_svid_ttl),
        federates_with,
        admin: mask.admin.then_some(entry.admin),
        downstream: mask.downstream.then_some(entry.downstream),
        store_svid: mask.store_svid.then_some(entry.store_svid),
        expires_at: mask.expires_at.then_some(entry.expires_at),
        dns_names,
        hint,
        disable_x509_svid_prefetch: attributes
            .map(|attributes| attributes.disable_x509_svid_prefetch),
        jwt_svid_include_jti: attributes.map(|attributes| attributes.jwt_svid_include_jti),
    })
}

fn selected<T>(
    is_selected: bool,
    value: impl FnOnce() -> Result<T, ConvertError>,
) -> Result<Option<T>, ConvertError> {
    is_selected.then(value).transpose()
}

fn checked_dns_names(names: &[String]) -> Result<Vec<String>, ConvertError> {
    for name in names {
        validate_dns_name(name)
            .map_err(ConvertError::from)
            .map_err(ConvertError::within("invalid DNS name"))?;
    }
    Ok(names.to_vec())
}

/// The entry that a caller of the entry service wants created; its ID may be empty. Revision and time of creation
/// are 0 for the store to set.
///
/// # Errors
/// When a field is not valid. What concerns several fields is checked by [`Entry::validate`].
pub fn new_entry_from_wire(
    trust_domain: &TrustDomain,
    entry: &types::Entry,
) -> Result<Entry, ConvertError> {
    let EntryFields {
        spiffe_id: Some(spiffe_id),
        parent_id: Some(parent_id),
        selectors: Some(selectors),
        ..
    } = entry_fields_from_wire(trust_domain, entry, None)?
    else {
        return Err(ConvertError::MissingId);
    };
    let mut new = entry_from_wire(entry)?;
    new.spiffe_id = spiffe_id;
    new.parent_id = parent_id;
    new.selectors = selectors;
    new.revision_number = 0;
    new.created_at = 0;
    Ok(new)
}
