//! What the log says of bundles that the server has and this agent could not get or read, whole or in part.
//!
//! A bundle that cannot be used concerns the workloads that federate with that trust domain and nobody else: the last good
//! one stays in use. An authority with a key that this agent does not support is left out of a bundle that is used. Each
//! reason is logged once, not with every sync.

use std::collections::{BTreeMap, BTreeSet};

use proto::convert::ConvertError;

/// What was logged last, by trust domain.
#[derive(Debug, Default)]
pub(super) struct BundleReports {
    /// Why the bundle could not be used.
    unreadable: BTreeMap<String, String>,
    /// What was left out of the bundle that is used.
    skipped: BTreeMap<String, String>,
}

impl BundleReports {
    /// Logs why a bundle cannot be used, unless that was logged last for this trust domain.
    pub(super) fn report(&mut self, trust_domain: &str, because: &str) {
        if !changed(&mut self.unreadable, trust_domain, because) {
            tracing::debug!(trust_domain, because, "bundle still cannot be used");
            return;
        }
        tracing::warn!(
            trust_domain,
            because,
            "a bundle from the server cannot be used; the last good one stays in use"
        );
    }

    /// The bundle was read: the next failure is logged again. Logs what was left out of it, unless that was logged last.
    pub(super) fn received(&mut self, trust_domain: &str, skipped: &[ConvertError]) {
        self.readable_again(trust_domain);
        if skipped.is_empty() {
            if self.skipped.remove(trust_domain).is_some() {
                tracing::info!(
                    trust_domain,
                    "every authority of the bundle is supported again"
                );
            }
            return;
        }
        // There are few reasons, however many authorities.
        let reasons: BTreeSet<String> = skipped.iter().map(ToString::to_string).collect();
        let because = Vec::from_iter(reasons).join("; ");
        let report = format!("{} authorities: {because}", skipped.len());
        if changed(&mut self.skipped, trust_domain, &report) {
            tracing::warn!(
                trust_domain,
                authorities = skipped.len(),
                because,
                "authorities of a bundle from the server are skipped: their keys are not supported, so nothing that they sign is trusted"
            );
        }
    }

    /// The server has no such bundle any more.
    pub(super) fn removed(&mut self, trust_domain: &str) {
        self.readable_again(trust_domain);
        self.skipped.remove(trust_domain);
    }

    fn readable_again(&mut self, trust_domain: &str) {
        if self.unreadable.remove(trust_domain).is_some() {
            tracing::info!(
                trust_domain,
                "the bundle that could not be used is readable again, or removed"
            );
        }
    }

    /// Drops what is known of trust domains that are not among `named`.
    pub(super) fn keep_only(&mut self, named: &BTreeSet<&str>) {
        for reports in [&mut self.unreadable, &mut self.skipped] {
            reports.retain(|trust_domain, _| named.contains(trust_domain.as_str()));
        }
    }
}

/// Keeps `report` as the last of the trust domain; whether it is another one than before.
fn changed(reports: &mut BTreeMap<String, String>, trust_domain: &str, report: &str) -> bool {
    if reports.get(trust_domain).map(String::as_str) == Some(report) {
        return false;
    }
    reports.insert(trust_domain.to_owned(), report.to_owned());
    true
}

#[cfg(test)]
mod tests;
