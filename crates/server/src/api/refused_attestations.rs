//! The operator's view of nodes whose attestation is refused: one warning with the caller's address, whether calls are audited or not.
//!
//! Anyone who can connect can be refused, so each source gets one line in a while, and the lines of all sources together
//! are bounded, too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::audit::Outcome;
use crate::caller::Connection;
use crate::source::Source;

/// A source that is refused again within this time gets no further line; the next line counts what was left out.
const QUIET: Duration = Duration::from_secs(30);
/// Sources that are remembered, and with that the lines within [`QUIET`].
const MAX_SOURCES: usize = 1_024;

/// Which sources were refused lately.
#[derive(Debug, Default)]
pub(crate) struct RefusedAttestations(Mutex<HashMap<Source, Refusals>>);

#[derive(Debug)]
struct Refusals {
    last_line: Instant,
    left_out: u64,
}

impl RefusedAttestations {
    /// Warns of a refused attestation.
    pub(super) fn warn(&self, connection: &Connection, outcome: &Outcome) {
        let (Some(address), Outcome::Error { code, message }) = (connection.address(), outcome)
        else {
            return;
        };
        let Some(left_out) = self.take_turn(Source::of(address.ip()), Instant::now()) else {
            return;
        };
        tracing::warn!(
            caller_addr = %address,
            status_code = code,
            error = message.escape_debug().to_string(),
            left_out,
            "Agent attestation request refused"
        );
    }

    /// How many refusals of the source had no line since its last one; None when this one gets no line either.
    fn take_turn(&self, source: Source, now: Instant) -> Option<u64> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(refusals) = sources.get_mut(&source) {
            if now.duration_since(refusals.last_line) < QUIET {
                refusals.left_out = refusals.left_out.saturating_add(1);
                return None;
            }
            refusals.last_line = now;
            return Some(std::mem::take(&mut refusals.left_out));
        }
        if sources.len() >= MAX_SOURCES {
            sources.retain(|_, refusals| now.duration_since(refusals.last_line) < QUIET);
        }
        if sources.len() >= MAX_SOURCES {
            return None;
        }
        let first = Refusals {
            last_line: now,
            left_out: 0,
        };
        sources.insert(source, first);
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(host: u32) -> Source {
        Source::of(std::net::Ipv4Addr::from(0x0a00_0000 + host).into())
    }

    #[test]
    fn one_source_gets_one_line_in_a_while_and_then_the_count() {
        let (attestations, now) = (RefusedAttestations::default(), Instant::now());
        assert_eq!(attestations.take_turn(source(1), now), Some(0));
        assert_eq!(attestations.take_turn(source(1), now), None);
        assert_eq!(attestations.take_turn(source(1), now), None);
        assert_eq!(attestations.take_turn(source(2), now), Some(0));
        assert_eq!(attestations.take_turn(source(1), now + QUIET), Some(2));
    }

    #[test]
    fn all_sources_together_cannot_fill_the_log() {
        let (attestations, now) = (RefusedAttestations::default(), Instant::now());
        let lines = (0..5_000)
            .filter(|host| attestations.take_turn(source(*host), now).is_some())
            .count();
        assert_eq!(lines, MAX_SOURCES);
        assert_eq!(attestations.take_turn(source(6_000), now + QUIET), Some(0));
    }
}
