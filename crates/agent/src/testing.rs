//! Builders for this crate's unit tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

/// `seconds` after the start of the tests' time.
pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&trust_domain(), path).unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> SelectorSet {
    SelectorSet::from(texts.iter().map(|text| Selector::parse(text).unwrap()).collect::<Vec<_>>())
}

pub(crate) fn entry(entry_id: &str, path: &str, selector_texts: &[&str]) -> Arc<Entry> {
    Arc::new(Entry {
        id: entry_id.into(),
        spiffe_id: id(path),
        parent_id: id("/spire/agent/join_token/t"),
        selectors: selectors(selector_texts),
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
    })
}
