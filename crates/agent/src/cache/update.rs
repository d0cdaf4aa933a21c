//! What one set of selectors is entitled to.
//!
//! It is data: the messages that an API makes of it are that API's own, kept in [`WorkloadUpdate::memo`].

use std::sync::Arc;

use spiffe::entry::Entry;
use spiffe::trust_domain::TrustDomain;

use super::bundles::SharedBundle;
use super::memo::Memo;
use super::svids::IssuedSvid;

/// An entry and the SVID issued for it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) entry: Arc<Entry>,
    pub(crate) svid: Arc<IssuedSvid>,
}

/// The state of one set of selectors at one moment.
#[derive(Debug)]
pub(crate) struct WorkloadUpdate {
    /// The entries that match, repeated hints dropped. The first is the default identity; the order is that of the entry
    /// IDs, as with SPIRE, so that an entry with a lower ID becomes the default when it is created.
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Those of them that have a valid X509-SVID.
    pub(crate) identities: Vec<Identity>,
    /// The bundle of the agent's own trust domain, once known.
    pub(crate) own: Option<Arc<SharedBundle>>,
    /// The bundles of the trust domains that the entries federate with.
    pub(crate) federated: Vec<Arc<SharedBundle>>,
    /// What APIs made of this update.
    pub(crate) memo: Memo,
}

impl WorkloadUpdate {
    pub(crate) fn new(
        entries: Vec<Arc<Entry>>,
        identities: Vec<Identity>,
        own: Option<Arc<SharedBundle>>,
        federated: Vec<Arc<SharedBundle>>,
    ) -> Self {
        Self {
            entries,
            identities,
            own,
            federated,
            memo: Memo::default(),
        }
    }

    /// Whether any entry matches.
    pub(crate) fn has_identity(&self) -> bool {
        !self.entries.is_empty()
    }

    /// The bundle of the agent's own trust domain and those of the others; nothing while its own is unknown.
    pub(crate) fn all_bundles(&self) -> Option<impl Iterator<Item = &Arc<SharedBundle>>> {
        let own = self.own.as_ref()?;
        Some(std::iter::once(own).chain(&self.federated))
    }

    /// The bundle of a trust domain if this set may verify its members.
    pub(crate) fn bundle_of(&self, trust_domain: &TrustDomain) -> Option<&Arc<SharedBundle>> {
        self.own
            .iter()
            .chain(&self.federated)
            .find(|bundle| bundle.bundle.trust_domain == *trust_domain)
    }

    /// Whether both say the same to every kind of caller.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let same_own = match (&self.own, &other.own) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_own
            && self.entries == other.entries
            && same(&self.federated, &other.federated, Arc::ptr_eq)
            && same(&self.identities, &other.identities, |a, b| {
                Arc::ptr_eq(&a.svid, &b.svid)
            })
    }
}

fn same<T>(a: &[T], b: &[T], equal: impl Fn(&T, &T) -> bool) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
}
