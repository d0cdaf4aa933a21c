//! What a failed call to the server means for the node: an outage that passes, a fault that an operator has to mend, or
//! the end of the node's membership.
//!
//! Only what the server said on the current connection ends a membership. A clock, this node's or the server's, never does.

use config::fault::{Code, Fault};
use rustls::AlertDescription;

use super::Sync;
use crate::metrics::SERVER_CONNECTED;
use crate::node_attestation;
use crate::server_client::ClientError;
use crate::state::removal::Reason;
use crate::timefmt::rfc3339;

impl Sync {
    /// Logs a failed call, and ends the agent if the server does not want the node any more. Calls that ran on an
    /// earlier connection, with an SVID that was since renewed, prove nothing.
    pub(super) fn failed(
        &mut self,
        current: bool,
        what: &'static str,
        error: &ClientError,
    ) -> Result<(), Fault> {
        if !current {
            tracing::debug!(%error, "{what}, on the previous connection");
            return Ok(());
        }
        match error {
            ClientError::Banned => {
                self.removal = Some(Reason::Banned);
                let fault = Fault::new(Code::AgentBanned, "this node was banned");
                Err(fault.at(self.identity.id().to_string()).hint(format!(
                    "ask the operators of {}",
                    self.node.config.trust_domain
                )))
            }
            ClientError::MustReattest(_)
            | ClientError::SvidRefused(AlertDescription::CertificateExpired)
                if node_attestation::can_reattest(&self.node, &self.identity) =>
            {
                self.not_connected(what, error);
                self.reattest();
                Ok(())
            }
            ClientError::MustReattest(because) => {
                self.removal = Some(Reason::MustReattest);
                let fault = Fault::new(
                    Code::AgentMustReattest,
                    "the server no longer knows this node, and its way of attestation works only once",
                );
                Err(fault.at(self.identity.id().to_string()).because(because).hint("on the server: plastron server token generate; then start the agent with the new token"))
            }
            error => {
                self.not_connected(what, error);
                Ok(())
            }
        }
    }

    /// Keeps the state of the connection for those who ask, and logs each cause once, not with every attempt.
    fn not_connected(&mut self, what: &'static str, error: &ClientError) {
        let mut problem = self.problem(error);
        if problem.hint.is_none() && self.identity.is_expired(self.node.clock.now()) {
            problem.svid_expired(&rfc3339(self.identity.svid.facts.not_after));
        }
        self.status.send_modify(|status| {
            status.connected = !error.is_outage();
            status.broken = problem.hint.is_some();
            status.last_error = Some(problem.text.clone());
        });
        self.report_connection();
        let error = &problem.text;
        if self.reported.as_ref() == Some(&problem.kind) {
            tracing::debug!(%error, "{what}");
            return;
        }
        self.reported = Some(problem.kind);
        match problem.hint {
            Some(hint) => tracing::error!(%error, hint, "{what}"),
            None => tracing::warn!(%error, "{what}"),
        }
    }

    /// The server answered a call: whatever failed before, it is there. A fault that somebody had to mend is over too,
    /// such as a clock that was wrong.
    pub(super) fn answered(&mut self) {
        let is_well = {
            let status = self.status.borrow();
            status.connected && !status.broken
        };
        if !is_well {
            self.connected();
        }
    }

    pub(super) fn synced(&mut self) {
        self.connected();
        self.returned();
        self.cache.set_ready();
    }

    /// The server did not answer a call that others than issuance depend on.
    pub(super) fn lost(&mut self, error: &ClientError) {
        self.server_lost |= error.is_outage();
    }

    /// The server answers: issuance that rests because of an outage goes on at once.
    pub(super) fn returned(&mut self) {
        if std::mem::take(&mut self.server_lost) {
            self.svids.server_returned();
            self.cache.server_returned();
        }
    }

    fn connected(&mut self) {
        if self.reported.take().is_some() {
            tracing::info!("the server answers again");
        }
        if !self.status_posted {
            self.post_status();
        }
        // The server takes the SVID, so it is not expired, whatever this node's clock says.
        self.status.send_modify(|status| {
            status.connected = true;
            status.broken = false;
            status.last_error = None;
        });
        self.report_connection();
    }

    fn report_connection(&self) {
        let connected = usize::from(self.status.borrow().connected);
        let telemetry = &self.node.telemetry;
        telemetry.set_number(&SERVER_CONNECTED, connected, []);
    }

    fn problem(&self, error: &ClientError) -> Problem {
        let address = self.node.config.server.authority();
        match error {
            ClientError::NotTrusted(because) => {
                let file = self.node.state.agent_data_path();
                Problem::for_operator(
                    format!("the server at {address} does not fit the trust bundle in {}: {because}", file.display()),
                    format!("was the server re-created? Then stop the agent, move {} away and attest the node again with a new token; else check server_address", file.display()),
                )
            }
            ClientError::ClocksDiffer(gap) => Problem {
                kind: format!("clock ahead: {}", gap.here > gap.limit),
                ..Problem::for_operator(
                    gap.to_string(),
                    "compare `date -u` on this node and on the server, and correct the clock that is wrong (NTP)".to_owned(),
                )
            },
            ClientError::SvidRefused(alert) => self.svid_refused(*alert),
            other => Problem {
                kind: other.to_string(),
                text: other.to_string(),
                hint: None,
            },
        }
    }

    /// The server refused the node's certificate: it is expired, or the two clocks differ.
    fn svid_refused(&self, alert: AlertDescription) -> Problem {
        let (now, until) = (self.node.clock.now(), self.identity.svid.facts.not_after);
        let file = self.node.state.agent_data_path();
        if self.identity.is_expired(now) {
            return Problem::for_operator(
                format!("the server refuses the node's SVID, which expired at {}", rfc3339(until)),
                "stop the agent, make a new token (on the server: plastron server token generate) and start the agent with it".to_owned(),
            );
        }
        let by_its_clock = if alert == AlertDescription::CertificateExpired {
            "the server says that the node's SVID is expired".to_owned()
        } else {
            format!("the server refuses the node's SVID ({alert:?})")
        };
        Problem {
            kind: format!("SVID refused {alert:?}"),
            ..Problem::for_operator(
                format!(
                    "{by_its_clock}, but by this node's clock ({}) it is valid until {}",
                    rfc3339(now),
                    rfc3339(until)
                ),
                format!(
                    "compare `date -u` on this node and on the server; if the clocks agree, the server was re-created: move {} away and attest again with a new token",
                    file.display()
                ),
            )
        }
    }
}

/// A failed call in the operator's words.
struct Problem {
    /// The same for as long as the cause is the same, also where the text holds the time.
    kind: String,
    text: String,
    /// What somebody has to do, if it does not pass by itself.
    hint: Option<String>,
}

impl Problem {
    /// An outage has outlasted the node's SVID.
    fn svid_expired(&mut self, at: &str) {
        self.kind = format!("{}; SVID expired {at}", self.kind);
        self.text = format!(
            "{}; meanwhile the node's SVID expired at {at} by this node's clock",
            self.text
        );
        self.hint = Some("the identity is kept and renewal continues; if the server refuses it, the node needs a new token".to_owned());
    }

    fn for_operator(text: String, hint: String) -> Self {
        Self {
            kind: text.clone(),
            text,
            hint: Some(hint),
        }
    }
}
