//! "No identity issued": a short answer for the workload, the reasons for the operator's log.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use spiffe::entry::Entry;
use spiffe::random::alphanumeric;
use spiffe::selector::SelectorSet;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Caller, Context};

/// The reason in `google.rpc.ErrorInfo`, for clients that read details instead of texts.
const REASON: &str = "NO_IDENTITY_ISSUED";
const DOMAIN: &str = "plastron";
const SEARCH_PAUSE: Duration = Duration::from_millis(200);

impl Context {
    /// The caller matches no entry. Clients match on the text's beginning, and the workload learns nothing about others'
    /// entries; the request's name ties its error to our log line.
    pub(super) fn no_identity(&self, caller: &Caller) -> Status {
        let request = format!("r-{}", alphanumeric(&*self.random, 8));
        let counts = self.cache.counts();
        let nearest = self.nearest(caller);
        tracing::warn!(
            code = "PLA-2101",
            %request,
            pid = caller.peer.pid,
            uid = caller.peer.uid,
            selectors = caller.selectors.len(),
            shown_selectors = %loggable(&caller.selectors, &self.options.log_selectors),
            entries = counts.entries,
            nearest = nearest.as_ref().map(|(entry, _)| &*entry.id).unwrap_or_default(),
            lacks = nearest.as_ref().map(|(_, lacking)| *lacking).unwrap_or_default(),
            "no identity issued"
        );
        let details = ErrorDetails::with_error_info(
            REASON,
            DOMAIN,
            [
                ("request".to_owned(), request.clone()),
                ("code".to_owned(), "PLA-2101".to_owned()),
            ],
        );
        Status::with_error_details(
            Code::PermissionDenied,
            format!(
                "no identity issued: no registration entry matches this process (request {request})"
            ),
            details,
        )
    }

    /// The entry that nearly matches, searched for a few times a second at most.
    fn nearest(&self, caller: &Caller) -> Option<(Arc<Entry>, usize)> {
        let mut searched = self.searched.lock().unwrap_or_else(PoisonError::into_inner);
        if searched.is_some_and(|when| when.elapsed() < SEARCH_PAUSE) {
            return None;
        }
        *searched = Some(Instant::now());
        drop(searched);
        self.cache.nearest(&caller.selectors)
    }

    /// There are entries, but the server has not issued their SVIDs.
    pub(super) fn not_issued_yet(&self, caller: &Caller) -> Status {
        let because = self.status.borrow().last_error.clone();
        tracing::warn!(
            pid = caller.peer.pid,
            because = because.as_deref().unwrap_or("no answer yet"),
            "X509-SVID not issued in time"
        );
        Status::unavailable("X509-SVID not issued yet: the server did not answer in time")
    }

    /// The caller asked for an identity that it does not have.
    pub(super) fn not_owned(&self, caller: &Caller) -> Status {
        let request = format!("r-{}", alphanumeric(&*self.random, 8));
        tracing::warn!(code = "PLA-2101", %request, pid = caller.peer.pid, uid = caller.peer.uid, "no identity issued: the process does not have the SPIFFE ID it asked for");
        let details = ErrorDetails::with_error_info(
            REASON,
            DOMAIN,
            [
                ("request".to_owned(), request.clone()),
                ("code".to_owned(), "PLA-2101".to_owned()),
            ],
        );
        Status::with_error_details(
            Code::PermissionDenied,
            format!(
                "no identity issued: this process does not have the SPIFFE ID it asked for (request {request})"
            ),
            details,
        )
    }
}

/// Selectors may be secret: only those whose prefix the operator named are logged. SPIRE: log_selectors.
fn loggable(selectors: &SelectorSet, prefixes: &[String]) -> String {
    let shown = |selector: &str| {
        prefixes.iter().any(|prefix| {
            selector
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        })
    };
    selectors
        .iter()
        .map(ToString::to_string)
        .filter(|selector| shown(selector))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::selectors;

    #[test]
    fn only_selectors_with_a_named_prefix_are_logged() {
        let set = selectors(&["unix:uid:1", "unix:user:a", "unix:username:b", "k8s:ns:x"]);
        assert_eq!(loggable(&set, &[]), "");
        assert_eq!(loggable(&set, &["unix:user".into()]), "unix:user:a");
        assert_eq!(
            loggable(&set, &["k8s".into(), "unix:uid:1".into()]),
            "k8s:ns:x,unix:uid:1"
        );
    }
}
