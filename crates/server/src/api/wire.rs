//! What several services read from requests and write into answers, beyond the conversions of single values.

use std::sync::Arc;

use proto::convert::{spiffe_id_from_wire, spiffe_id_to_wire};
use proto::spire::api::types;
use proto::spire::api::types::selector_match::MatchBehavior;
use spiffe::clock::unix_seconds;
use spiffe::selector::SelectorSet;

use crate::ca::IssuedX509;
use crate::error::{Kind, OpError, failed, malformed};
use crate::registry::{Page, SetMatch};

/// SPIRE: MatchBehavior of selectors and of federates_with have the same numbers.
pub(super) fn set_match(wire: i32) -> Result<SetMatch, String> {
    match MatchBehavior::try_from(wire) {
        Ok(MatchBehavior::MatchExact) => Ok(SetMatch::Exact),
        Ok(MatchBehavior::MatchSubset) => Ok(SetMatch::Subset),
        Ok(MatchBehavior::MatchSuperset) => Ok(SetMatch::Superset),
        Ok(MatchBehavior::MatchAny) => Ok(SetMatch::Any),
        Err(_) => Err(format!(
            "unhandled match behavior {wire}; use 0 (exact), 1 (subset), 2 (superset) or 3 (any)"
        )),
    }
}

/// A filter of the service's own, made of messages that have its fields under several names. A field that one of them gains
/// is an error here until the filter has it.
macro_rules! filter_from {
    ($($message:path),+ => $filter:ident $fields:tt) => {
        $(
            impl From<$message> for $filter {
                fn from(message: $message) -> Self {
                    let $message $fields = message;
                    Self $fields
                }
            }
        )+
    };
}
pub(super) use filter_from;

/// A page as asked for. SPIRE: size 0 (or less) is everything at once, and then the token does not count.
pub(super) fn page(size: i32, token: &str) -> Page {
    match usize::try_from(size) {
        Ok(size) if size > 0 => Page {
            size,
            token: token.to_owned(),
        },
        _ => Page::default(),
    }
}

/// A count as it goes on the wire.
pub(super) fn count(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A chain as it is handed over.
pub(super) fn certificates(chain: &[Arc<[u8]>]) -> Vec<Vec<u8>> {
    chain.iter().map(|der| der.to_vec()).collect()
}

/// An issued X509-SVID as it is handed over.
pub(super) fn x509_svid(issued: &IssuedX509) -> types::X509svid {
    types::X509svid {
        cert_chain: certificates(&issued.chain),
        id: Some(spiffe_id_to_wire(&issued.id)),
        expires_at: unix_seconds(issued.not_after),
        hint: String::new(),
    }
}

/// `type:value,type:value`, for audit lines.
pub(super) fn selectors_text(wire: &[types::Selector]) -> String {
    wire.iter()
        .map(|selector| format!("{}:{}", selector.r#type, selector.value))
        .collect::<Vec<_>>()
        .join(",")
}

/// The ID's text for an audit line; empty when it is not an ID.
pub(super) fn id_text(wire: Option<&types::Spiffeid>) -> String {
    spiffe_id_from_wire(wire)
        .map(|id| id.to_string())
        .unwrap_or_default()
}

/// A selector filter: which selectors, and how an object's are compared with them. SPIRE: an empty set is refused.
pub(super) fn selector_filter(
    asked: &types::SelectorMatch,
    what: &'static str,
) -> Result<(SelectorSet, SetMatch), OpError> {
    let selectors =
        proto::convert::selectors_from_wire(&asked.selectors).map_err(malformed(what))?;
    if selectors.is_empty() {
        return Err(failed(Kind::InvalidArgument, what, "empty selector set"));
    }
    Ok((
        selectors,
        set_match(asked.r#match).map_err(malformed(what))?,
    ))
}
