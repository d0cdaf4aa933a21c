//! What a listing asks for: filters, matches between sets, pages and their tokens.

use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;

use super::records::Agent;

/// How an object's set compares with the asked one (SPIRE: `SelectorMatch`, `FederatesWithMatch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMatch {
    Exact,
    /// The object has nothing beyond the asked set, and something of it.
    Subset,
    /// The object has all of the asked set.
    Superset,
    /// The object has something of the asked set.
    Any,
}

/// Which entries to list. Filters add up; the default takes all.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    pub by_spiffe_id: Option<SpiffeId>,
    pub by_parent_id: Option<SpiffeId>,
    pub by_selectors: Option<(SelectorSet, SetMatch)>,
    pub by_federates_with: Option<(Vec<TrustDomain>, SetMatch)>,
    /// An empty hint filters nothing.
    pub by_hint: Option<String>,
    /// True takes downstream entries only; false takes all.
    pub by_downstream: bool,
}

impl EntryFilter {
    pub fn matches(&self, entry: &Entry) -> bool {
        self.by_spiffe_id
            .as_ref()
            .is_none_or(|id| entry.spiffe_id == *id)
            && self
                .by_parent_id
                .as_ref()
                .is_none_or(|id| entry.parent_id == *id)
            && (!self.by_downstream || entry.downstream)
            && self
                .by_hint
                .as_ref()
                .is_none_or(|hint| hint.is_empty() || entry.hint == *hint)
            && self
                .by_selectors
                .as_ref()
                .is_none_or(|(set, how)| selectors_match(&entry.selectors, set, *how))
            && self
                .by_federates_with
                .as_ref()
                .is_none_or(|(set, how)| trust_domains_match(&entry.federates_with, set, *how))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_spiffe_id.is_none()
            && self.by_parent_id.is_none()
            && self.by_selectors.is_none()
            && self.by_federates_with.is_none()
            && self.by_hint.as_ref().is_none_or(String::is_empty)
            && !self.by_downstream
    }
}

/// Which agents to list. Filters add up; the default takes all.
#[derive(Debug, Clone, Default)]
pub struct AgentFilter {
    pub by_attestation_type: Option<String>,
    pub by_selectors: Option<(SelectorSet, SetMatch)>,
    pub by_banned: Option<bool>,
    pub by_can_reattest: Option<bool>,
    /// Unix seconds.
    pub by_expires_before: Option<i64>,
}

impl AgentFilter {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_attestation_type.is_none()
            && self.by_selectors.is_none()
            && self.by_banned.is_none()
            && self.by_can_reattest.is_none()
            && self.by_expires_before.is_none()
    }

    pub fn matches(&self, agent: &Agent) -> bool {
        self.by_attestation_type
            .as_ref()
            .is_none_or(|kind| agent.attestation_type == *kind)
            && self.by_banned.is_none_or(|banned| agent.banned == banned)
            && self
                .by_can_reattest
                .is_none_or(|can| agent.can_reattest == can)
            && self
                .by_expires_before
                .is_none_or(|time| agent.expires_at < time)
            && self
                .by_selectors
                .as_ref()
                .is_none_or(|(set, how)| selectors_match(&agent.selectors, set, *how))
    }
}

fn selectors_match(own: &SelectorSet, asked: &SelectorSet, how: SetMatch) -> bool {
    match how {
        SetMatch::Exact => own == asked,
        SetMatch::Subset => own.is_subset_of(asked) && own.intersects(asked),
        SetMatch::Superset => own.is_superset_of(asked),
        SetMatch::Any => own.intersects(asked),
    }
}

fn trust_domains_match(own: &[TrustDomain], asked: &[TrustDomain], how: SetMatch) -> bool {
    let within = || own.iter().all(|td| asked.contains(td));
    let covers = || asked.iter().all(|td| own.contains(td));
    let some = || own.iter().any(|td| asked.contains(td));
    match how {
        SetMatch::Exact => within() && covers(),
        SetMatch::Subset => within() && some(),
        SetMatch::Superset => covers(),
        SetMatch::Any => some(),
    }
}

/// One page of a listing. Size 0 asks for everything in one page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub size: usize,
    /// Empty for the first page, else the last page's `next_token`.
    pub token: String,
}

impl Page {
    /// The row after which this page starts.
    pub(crate) fn after(&self) -> Result<i64, BadPageToken> {
        if self.token.is_empty() {
            return Ok(i64::MIN);
        }
        self.token
            .parse()
            .map_err(|_not_a_number| BadPageToken(self.token.clone()))
    }
}

/// SPIRE's text for a token that none of its listings gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not parse token '{0}'")]
pub struct BadPageToken(pub String);

/// A page's content.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    pub items: Vec<T>,
    /// Decimal, or empty when this was the last page.
    pub next_token: String,
}

/// Gathers a page over several short scans: one item more than asked tells whether another page follows.
#[derive(Debug)]
pub(crate) struct Gathering<T> {
    size: usize,
    items: Vec<T>,
    last_row: i64,
    more: bool,
}

impl<T> Gathering<T> {
    pub(crate) fn new(page: &Page) -> Self {
        Self {
            size: page.size,
            items: Vec::new(),
            last_row: i64::MIN,
            more: false,
        }
    }

    /// Takes the next match; false when the page is complete.
    pub(crate) fn offer(&mut self, row: i64, item: T) -> bool {
        if self.size != 0 && self.items.len() >= self.size {
            self.more = true;
            return false;
        }
        self.items.push(item);
        self.last_row = row;
        true
    }

    pub(crate) fn finish(self) -> Listing<T> {
        let next_token = if self.more {
            self.last_row.to_string()
        } else {
            String::new()
        };
        Listing {
            items: self.items,
            next_token,
        }
    }
}
