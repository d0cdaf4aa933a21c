//! "No identity issued": a short answer for the workload, the reasons for the operator's log.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use config::fault::Code;
use daemon::log_limit::LogLimit;
use plugin::workload_attestor::Peer;
use spiffe::random::alphanumeric;
use spiffe::selector::SelectorSet;
use tokio::time::Instant;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::request_log::{NearestEntry, Outcome, RequestRecord};
use super::{Caller, Gate};
use crate::attestor::{AttestError, Incomplete};
use crate::cache::Nearest;

/// In `google.rpc.ErrorInfo`, for clients that read details instead of texts: the reason is the code.
const DOMAIN: &str = "plastron";
const SEARCH_PAUSE: Duration = Duration::from_millis(200);

/// What users of this machine, and attestors that fail, may write to the log.
#[derive(Debug, Default)]
pub(crate) struct LogLimits {
    by_user: LogLimit<u32>,
    by_attestor: LogLimit<String>,
}

impl Gate {
    /// The caller matches no entry. Clients match on the text's beginning, and the workload learns nothing about others'
    /// entries; the request's name ties its error to our log line and to what is kept of it.
    pub(crate) fn no_identity(&self, caller: &Caller) -> Status {
        if let [first, ..] = &*caller.incomplete {
            return self.incomplete(caller, first);
        }
        let request = self.request_id();
        let peer = caller.workload.peer();
        let mut nearest = None;
        if let Some(left_out) = self.log_limits.by_user.admit(&peer.uid) {
            nearest = self.nearest(caller);
            let shown = loggable(&caller.selectors, &self.options.log_selectors);
            tracing::warn!(
                code = Code::NoIdentityIssued.as_str(),
                %request,
                pid = peer.pid,
                uid = peer.uid,
                selectors = caller.selectors.len(),
                shown_selectors = shown,
                entries = self.cache.counts().entries,
                nearest = nearest.as_ref().map(|nearest| &*nearest.entry.id).unwrap_or_default(),
                lacks = nearest.as_ref().map(|nearest| nearest.lacking).unwrap_or_default(),
                hint = for_operator(peer.uid, &shown),
                nearest_expired = nearest.as_ref().is_some_and(|nearest| nearest.expired),
                left_out,
                "no identity issued"
            );
        }
        self.remember(&request, caller, Outcome::NoEntry, nearest);
        denied(
            &request,
            "no registration entry matches this process",
            Some(where_to_look(peer.uid)),
        )
    }

    /// The caller asked for an identity that it does not have.
    pub(crate) fn not_owned(&self, caller: &Caller) -> Status {
        if let [first, ..] = &*caller.incomplete {
            return self.incomplete(caller, first);
        }
        let request = self.request_id();
        let peer = caller.workload.peer();
        if let Some(left_out) = self.log_limits.by_user.admit(&peer.uid) {
            tracing::warn!(
                code = Code::NoIdentityIssued.as_str(),
                %request,
                pid = peer.pid,
                uid = peer.uid,
                left_out,
                "no identity issued: the process does not have the SPIFFE ID it asked for"
            );
        }
        self.remember(&request, caller, Outcome::NotItsOwn, None);
        denied(
            &request,
            "this process does not have the SPIFFE ID it asked for",
            None,
        )
    }

    /// The caller may be entitled to what it asked for, but an attestor that could say so failed. The log has a line for
    /// each of them.
    fn incomplete(&self, caller: &Caller, incomplete: &Incomplete) -> Status {
        let request = self.request_id();
        self.remember(&request, caller, Outcome::Incomplete, None);
        let fault = &incomplete.fault;
        let message = format!(
            "workload attestation is incomplete: {}: {} (request {request})",
            incomplete.attestor, fault.what
        );
        let hint = fault.hint.clone().map(|hint| ("hint".to_owned(), hint));
        let metadata = hint.into_iter().chain([("request".to_owned(), request)]);
        status(tonic::Code::Unavailable, message, fault.code, metadata)
    }

    fn remember(&self, request: &str, caller: &Caller, outcome: Outcome, nearest: Option<Nearest>) {
        let peer = caller.workload.peer();
        let (selectors, more_selectors) = RequestRecord::kept(&caller.selectors);
        self.requests.add(RequestRecord {
            id: request.to_owned(),
            at: self.clock.now(),
            pid: peer.pid,
            uid: peer.uid,
            selectors,
            more_selectors,
            incomplete: caller.incomplete.clone(),
            outcome,
            nearest: nearest.map(|nearest| NearestEntry {
                id: nearest.entry.id.to_string(),
                lacks: nearest.lacking,
                expired: nearest.expired,
            }),
        });
    }

    fn request_id(&self) -> String {
        format!("r-{}", alphanumeric(&*self.random, 8))
    }

    /// The entry that nearly matches, searched for a few times a second at most.
    fn nearest(&self, caller: &Caller) -> Option<Nearest> {
        let mut searched = self.searched.lock().unwrap_or_else(PoisonError::into_inner);
        if searched.is_some_and(|when| when.elapsed() < SEARCH_PAUSE) {
            return None;
        }
        *searched = Some(Instant::now());
        drop(searched);
        self.cache.nearest(&caller.selectors)
    }

    /// There are entries, but the server has not issued their SVIDs.
    pub(crate) fn not_issued_yet(&self, caller: &Caller) -> Status {
        let because = self.status.borrow().last_error.clone();
        let request = self.request_id();
        let peer = caller.workload.peer();
        if let Some(left_out) = self.log_limits.by_user.admit(&peer.uid) {
            tracing::warn!(
                %request,
                pid = peer.pid,
                uid = peer.uid,
                because = because.as_deref().unwrap_or("no answer yet"),
                left_out,
                "X509-SVID not issued in time"
            );
        }
        self.remember(&request, caller, Outcome::NotIssued, None);
        Status::unavailable(format!(
            "X509-SVID not issued yet: the server did not answer in time (request {request})"
        ))
    }

    /// An attestor could not say all of a caller.
    pub(super) fn log_incomplete(&self, peer: &Peer, incomplete: &Incomplete) {
        let Some(left_out) = self.log_limits.by_attestor.admit(&incomplete.attestor) else {
            return;
        };
        let fault = &incomplete.fault;
        tracing::warn!(
            code = fault.code.as_str(),
            attestor = %incomplete.attestor,
            pid = peer.pid,
            uid = peer.uid,
            because = fault.because.as_deref().unwrap_or_default(),
            hint = fault.hint.as_deref().unwrap_or_default(),
            left_out,
            "workload attestation is incomplete: {}",
            fault.what
        );
    }

    /// A caller that is gone, or is not who connected.
    pub(super) fn log_refused(&self, peer: &Peer, error: AttestError) {
        if let Some(left_out) = self.log_limits.by_user.admit(&peer.uid) {
            tracing::warn!(
                code = Code::WorkloadGone.as_str(),
                pid = peer.pid,
                uid = peer.uid,
                left_out,
                "workload not attested: {error}"
            );
        }
    }
}

/// What to type on the server. The agent has the entries of its own node alone, so only the server can say that one of
/// another node matches. A workload is shown no selector but its own user ID.
fn where_to_look(uid: u32) -> String {
    format!(
        "on the server, `plastron server entry match --selector unix:uid:{uid}` says whether it is registered for another node; \
         to register it: `plastron server entry create --spiffe-id NAME --selector unix:uid:{uid}`"
    )
}

/// What the agent's operator may do; by default no selector is logged.
fn for_operator(uid: u32, shown: &str) -> String {
    let look = where_to_look(uid);
    if shown.is_empty() {
        return format!(
            "{look}; `log_selectors = [\"unix\"]` in the agent's configuration has this line show selectors of the process"
        );
    }
    look
}

/// SDKs match on the first words.
fn denied(request: &str, because: &str, hint: Option<String>) -> Status {
    let hint = hint.map(|hint| ("hint".to_owned(), hint));
    status(
        tonic::Code::PermissionDenied,
        format!("no identity issued: {because} (request {request})"),
        Code::NoIdentityIssued,
        hint.into_iter()
            .chain([("request".to_owned(), request.to_owned())]),
    )
}

/// It is not the process that connected: a definite answer, which trying again does not change.
pub(super) fn not_who_connected() -> Status {
    status(
        tonic::Code::PermissionDenied,
        "no identity issued: this process is not the one that connected".to_owned(),
        Code::WorkloadGone,
        [],
    )
}

fn status(
    code: tonic::Code,
    message: String,
    reason: Code,
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Status {
    let metadata: HashMap<_, _> = metadata.into_iter().collect();
    let details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    Status::with_error_details(code, message, details)
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
    fn the_log_says_how_to_see_selectors_only_where_none_is_shown() {
        let command = "plastron server entry match --selector unix:uid:7";
        let unseen = for_operator(7, "");
        assert!(
            unseen.contains(command) && unseen.contains("log_selectors"),
            "{unseen}"
        );
        let seen = for_operator(7, "unix:uid:7");
        assert!(
            seen.contains(command) && !seen.contains("log_selectors"),
            "{seen}"
        );
    }

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
