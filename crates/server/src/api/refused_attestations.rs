//! The operator's view of nodes whose attestation is refused: one warning with the caller's address, whether calls are audited or not.
//!
//! Anyone who can connect can be refused, so the lines are limited by source and in all.

use daemon::log_limit::LogLimit;

use crate::audit::Outcome;
use crate::caller::Connection;
use crate::source::Source;

/// The lines about refused attestations.
#[derive(Debug, Default)]
pub(crate) struct RefusedAttestations(LogLimit<Source>);

impl RefusedAttestations {
    /// Warns of a refused attestation.
    pub(super) fn warn(&self, connection: &Connection, outcome: &Outcome) {
        let (Some(address), Outcome::Error { code, message }) = (connection.address(), outcome)
        else {
            return;
        };
        let Some(left_out) = self.0.admit(&Source::of(address.ip())) else {
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
}
