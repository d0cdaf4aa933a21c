//! Bundles of other trust domains that the server has and this agent could not get or read.
//!
//! Such a bundle concerns the workloads that federate with that trust domain and nobody else: the last good one stays
//! in use, and each reason is logged once, not with every sync.

use std::collections::BTreeMap;

/// The trust domains whose bundle could not be used, each with the reason that was logged.
#[derive(Debug, Default)]
pub(super) struct UnreadableBundles(BTreeMap<String, String>);

impl UnreadableBundles {
    /// Logs the reason, unless it is the one that was logged last for this trust domain.
    pub(super) fn report(&mut self, trust_domain: &str, because: &str) {
        let logged = self.0.get(trust_domain).map(String::as_str) == Some(because);
        if logged {
            tracing::debug!(trust_domain, because, "bundle still cannot be used");
            return;
        }
        tracing::warn!(
            trust_domain,
            because,
            "a bundle from the server cannot be used; the last good one stays in use"
        );
        self.0.insert(trust_domain.to_owned(), because.to_owned());
    }

    /// The bundle was read, or is gone: the next failure is news again.
    pub(super) fn clear(&mut self, trust_domain: &str) {
        if self.0.remove(trust_domain).is_some() {
            tracing::info!(
                trust_domain,
                "the bundle that could not be used is readable again, or removed"
            );
        }
    }

    /// Drops what is known of trust domains that are not among `named`.
    pub(super) fn keep_only(&mut self, named: impl Fn(&str) -> bool) {
        self.0.retain(|trust_domain, _| named(trust_domain));
    }
}
