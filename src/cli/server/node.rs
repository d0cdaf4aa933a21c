//! What the commands on attested nodes share: their flags, the filter, and showing a node.

use proto::spire::api::types::{Agent, SelectorMatch, Spiffeid};

use crate::cli::args::Args;
use crate::cli::context::Frontend;
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{Shown, Table, View};
use crate::cli::selectors::{self, MATCH_SELECTORS, SELECTOR};
use crate::cli::{ids, timefmt};

const ATTESTATION_TYPE: Flag<String> = Flag::text(
    "attestationType",
    "attestation-type",
    "Only nodes attested with this attestor, such as join_token",
);
const CAN_REATTEST: Flag<String> = Flag::text(
    "canReattest",
    "can-reattest",
    "true: only nodes that can re-attest; false: only those that cannot",
)
.value("true|false");
const BANNED: Flag<String> = Flag::text(
    "banned",
    "banned",
    "true: only banned nodes; false: only those not banned",
)
.value("true|false");
const EXPIRES_BEFORE: Flag<String> = Flag::text(
    "expiresBefore",
    "expires-before",
    "Only nodes whose SVID expires before this time, such as 2026-11-25T12:00:00Z",
)
.value("TIME");

pub(super) const FILTERS: &[FlagSpec] = &[
    SELECTOR.spec,
    MATCH_SELECTORS.spec,
    ATTESTATION_TYPE.spec,
    CAN_REATTEST.spec,
    BANNED.spec,
    EXPIRES_BEFORE.spec,
];

pub(super) const NODE_ID: Flag<String> =
    Flag::text("spiffeID", "spiffe-id", "SPIFFE ID of the node's agent")
        .value("SPIFFE-ID")
        .positional();

/// The filter of `agent list` and `agent count`; both requests have messages of the same fields.
pub(super) struct Filter {
    pub(super) by_attestation_type: String,
    pub(super) by_selector_match: Option<SelectorMatch>,
    pub(super) by_banned: Option<bool>,
    pub(super) by_can_reattest: Option<bool>,
    pub(super) by_expires_before: String,
}

pub(super) fn filter(args: &Args, frontend: Frontend) -> Result<Filter, CliError> {
    let given = args.get(EXPIRES_BEFORE);
    let converted = match frontend {
        Frontend::Native => timefmt::expires_before_of_rfc3339(given),
        Frontend::Spire => None,
    };
    let before = converted.as_deref().unwrap_or(given);
    if !before.is_empty() && !timefmt::is_expires_before(before) {
        if frontend == Frontend::Native {
            return Err(CliError::usage(format!(
                "--expires-before {before:?} is not a time; write it as 2026-11-25T12:00:00Z"
            )));
        }
        return Err(CliError::usage(format!(
            "date is not valid: {}",
            timefmt::expires_before_fault(before)
        )));
    }
    Ok(Filter {
        by_attestation_type: args.get(ATTESTATION_TYPE).to_owned(),
        by_selector_match: selectors::filter(
            args,
            |_mode| "unsupported match behavior".to_owned(),
            |text| format!("error parsing selector {text:?}"),
        )?,
        by_banned: three_way(args.get(BANNED)),
        by_can_reattest: three_way(args.get(CAN_REATTEST)),
        by_expires_before: before.to_owned(),
    })
}

/// SPIRE: any text but `true` and `false` means no filter.
fn three_way(text: &str) -> Option<bool> {
    text.parse().ok()
}

/// The ID of the node that `-spiffeID` names.
pub(super) fn id(args: &Args) -> Result<Spiffeid, CliError> {
    match args.optional(NODE_ID) {
        Some(id) => ids::parse(id),
        None => Err(CliError::usage("a SPIFFE ID is required")),
    }
}

/// SPIRE's text of a node.
pub(super) fn text(agent: &Agent) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{label:<18}: {value}\n"));
    line("SPIFFE ID", &ids::text(agent.id.as_ref()));
    line("Attestation type", &agent.attestation_type);
    line(
        "Expiration time",
        &timefmt::go_text(agent.x509svid_expires_at),
    );
    if agent.banned {
        line("Banned", "true");
    } else {
        line("Serial number", &agent.x509svid_serial_number);
    }
    line("Can re-attest", &agent.can_reattest.to_string());
    if !agent.agent_version.is_empty() {
        line("Agent version", &agent.agent_version);
    }
    text.push('\n');
    text
}

/// The nodes that a filter let through, at a time.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) agents: Vec<Agent>,
    pub(super) now: i64,
}

impl Shown for Found {
    fn spire(&self) -> String {
        let count = self.agents.len();
        if count == 0 {
            return "No attested agents found\n".to_owned();
        }
        let noun = if count == 1 { "agent" } else { "agents" };
        let body: String = self.agents.iter().map(text).collect();
        format!("Found {count} attested {noun}:\n\n{body}")
    }

    fn native(&self) -> View {
        View::Table(table(&self.agents, self.now))
    }
}

/// The native table. A node whose SVID has expired can do nothing until it attests again.
fn table<'a>(agents: impl IntoIterator<Item = &'a Agent>, now: i64) -> Table {
    let rows = agents
        .into_iter()
        .map(|agent| {
            let state = if agent.banned {
                "banned"
            } else if agent.x509svid_expires_at <= now {
                "expired"
            } else {
                "attested"
            };
            vec![
                ids::text(agent.id.as_ref()),
                agent.attestation_type.clone(),
                state.to_owned(),
                timefmt::rfc3339(agent.x509svid_expires_at),
                agent.agent_version.clone(),
            ]
        })
        .collect();
    Table {
        headings: vec![
            "SPIFFE ID",
            "ATTESTATION",
            "STATE",
            "SVID EXPIRES",
            "VERSION",
        ],
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::table;
    use proto::spire::api::types::Agent;

    #[test]
    fn a_node_that_can_do_nothing_is_shown_as_such() {
        let agent = |banned, x509svid_expires_at| Agent {
            banned,
            x509svid_expires_at,
            ..Agent::default()
        };
        let agents = [agent(false, 101), agent(false, 100), agent(true, 101)];
        let states: Vec<String> = table(&agents, 100)
            .rows
            .into_iter()
            .map(|row| row[2].clone())
            .collect();
        assert_eq!(states, ["attested", "expired", "banned"]);
    }
}
