//! What one account (a source, a SPIFFE ID, a user) may make this server hold, over all of its connections.
//!
//! Counters only: endpoints ask before a call begins, and a request's body as it arrives. Each limit is by class, so that no
//! number of connections, streams or unfinished requests of one peer costs more than its class is worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::principal::Class;

/// The limits of one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections at once; past it the account's own oldest one ends.
    pub(crate) connections: usize,
    /// Calls in flight, until the last byte of the answer is sent.
    pub(crate) calls: usize,
    /// Of which answers that hold a whole list, see [`Cost::List`].
    pub(crate) lists: usize,
    /// Bytes of requests that have begun to arrive and are not answered.
    pub(crate) bytes: usize,
}

impl Limits {
    /// An agent has one or two connections, one list or watch, and as many calls as its workloads want tokens at once.
    pub(crate) fn of(class: Class) -> Self {
        match class {
            // The connections of a source are capped by its share of the endpoint: all nodes may come through one load
            // balancer.
            Class::Unauthenticated => Self {
                connections: usize::MAX,
                calls: 4_096,
                lists: 16,
                bytes: 8 << 20,
            },
            Class::Workload => Self {
                connections: 16,
                calls: 32,
                lists: 2,
                bytes: 512 << 10,
            },
            Class::Agent | Class::Downstream => Self {
                connections: 32,
                calls: 1_000,
                lists: 8,
                bytes: 16 << 20,
            },
            Class::Admin => Self {
                connections: 64,
                calls: 1_000,
                lists: 32,
                bytes: 64 << 20,
            },
            // Administrators of this machine: only the endpoint's own caps count.
            Class::Local => Self {
                connections: usize::MAX,
                calls: usize::MAX,
                lists: usize::MAX,
                bytes: 256 << 20,
            },
        }
    }
}

/// What kind of answer a call makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cost {
    Ordinary,
    /// All entries of an agent, or pages of any list: large, and held for as long as the peer does not read it.
    List,
}

impl Cost {
    /// The cost of a method, given as in the request line.
    pub(crate) fn of(method: &str) -> Self {
        let name = method.rsplit('/').next().unwrap_or_default();
        let is_list = name.starts_with("List")
            || matches!(
                name,
                "GetAuthorizedEntries" | "SyncAuthorizedEntries" | "Watch"
            );
        if is_list { Self::List } else { Self::Ordinary }
    }
}

/// The account's counters, shared by its connections.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    calls: AtomicUsize,
    lists: AtomicUsize,
    bytes: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            calls: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    /// Counts a call until the permit is dropped. `None` when the account has as many in flight as it may.
    pub(crate) fn begin_call(self: &Arc<Self>, cost: Cost) -> Option<CallPermit> {
        if !add(&self.calls, 1, self.limits.calls) {
            return None;
        }
        // From here on the permit gives back what was taken.
        let mut permit = CallPermit {
            budget: Arc::clone(self),
            is_list: false,
        };
        if cost == Cost::List {
            if !add(&self.lists, 1, self.limits.lists) {
                return None;
            }
            permit.is_list = true;
        }
        Some(permit)
    }

    /// An account of bytes that arrive, empty at first.
    pub(crate) fn hold_bytes(self: &Arc<Self>) -> HeldBytes {
        HeldBytes {
            budget: Arc::clone(self),
            held: AtomicUsize::new(0),
        }
    }
}

/// Adds unless the sum would exceed the limit.
fn add(counter: &AtomicUsize, more: usize, limit: usize) -> bool {
    counter
        .try_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            now.checked_add(more).filter(|sum| *sum <= limit)
        })
        .is_ok()
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct CallPermit {
    budget: Arc<Budget>,
    is_list: bool,
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.budget.calls.fetch_sub(1, Ordering::Relaxed);
        if self.is_list {
            self.budget.lists.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Bytes of one request that is not answered, or of one message of a conversation that is not complete.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    budget: Arc<Budget>,
    held: AtomicUsize,
}

impl HeldBytes {
    /// Counts `bytes` more. False when the account holds as many as it may.
    pub(crate) fn add(&self, bytes: usize) -> bool {
        let fits = add(&self.budget.bytes, bytes, self.budget.limits.bytes);
        if fits {
            self.held.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// What was counted is held no longer.
    pub(crate) fn release(&self) {
        let held = self.held.swap(0, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(held, Ordering::Relaxed);
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<Budget> {
        Budget::new(Limits {
            connections: 1,
            calls: 3,
            lists: 1,
            bytes: 100,
        })
    }

    #[test]
    fn refuses_a_call_past_the_limit_until_one_ends() {
        let budget = budget();
        let mut permits: Vec<_> = (0..3)
            .map(|_| budget.begin_call(Cost::Ordinary).unwrap())
            .collect();
        assert!(budget.begin_call(Cost::Ordinary).is_none());
        permits.pop();
        assert!(budget.begin_call(Cost::Ordinary).is_some());
    }

    #[test]
    fn refuses_a_second_list_and_counts_the_refused_call_nowhere() {
        let budget = budget();
        let list = budget.begin_call(Cost::List).unwrap();
        for _ in 0..10 {
            assert!(budget.begin_call(Cost::List).is_none());
        }
        let _others = (
            budget.begin_call(Cost::Ordinary).unwrap(),
            budget.begin_call(Cost::Ordinary).unwrap(),
        );
        drop(list);
        assert!(budget.begin_call(Cost::List).is_some());
    }

    #[test]
    fn refuses_bytes_past_the_limit_over_all_requests_of_the_account() {
        let budget = budget();
        let (one, two) = (budget.hold_bytes(), budget.hold_bytes());
        assert!(one.add(60) && two.add(40));
        assert!(!two.add(1));
        one.release();
        assert!(two.add(60));
        drop(two);
        assert!(one.add(100));
    }

    #[test]
    fn gives_a_workload_no_more_than_a_source_without_an_svid() {
        let (workload, unauthenticated) = (
            Limits::of(Class::Workload),
            Limits::of(Class::Unauthenticated),
        );
        assert!(workload.connections <= unauthenticated.connections);
        assert!(workload.calls <= unauthenticated.calls && workload.bytes <= unauthenticated.bytes);
    }

    #[test]
    fn takes_whole_lists_for_lists_and_nothing_else() {
        for list in [
            "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
            "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
            "/spire.api.server.entry.v1.Entry/ListEntries",
            "/plastron.server.v1.Watch/Watch",
        ] {
            assert_eq!(Cost::of(list), Cost::List, "{list}");
        }
        for other in [
            "/spire.api.server.svid.v1.SVID/NewJWTSVID",
            "/spire.api.server.bundle.v1.Bundle/GetBundle",
            "",
        ] {
            assert_eq!(Cost::of(other), Cost::Ordinary, "{other}");
        }
    }
}
