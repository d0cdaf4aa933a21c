//! What an operator reads when a node could not be attested: why it needs attestation, and why that failed.

use config::fault::{Code, Fault};

use super::Outcome;
use crate::bootstrap::Trust;
use crate::config::NodeConfig;
use crate::dial;
use crate::node::{Absence, Node};
use crate::server_client::{ClientError, Refusal};
use crate::state::removal::{Reason, Removal};
use crate::timefmt::rfc3339;

const NEW_TOKEN: &str = "on the server: plastron server token generate; then start the agent with --join-token-file FILE (spire-agent: -joinToken TOKEN)";

/// There is no token to attest with: what the operator has to know is why the node has to attest at all.
pub(super) fn no_token(absence: Option<&Absence>) -> Fault {
    let (code, what) = match absence {
        None | Some(Absence::NeverAttested) => (
            Code::NoJoinToken,
            "the node has not been attested yet, and no join token is configured".to_owned(),
        ),
        Some(Absence::Removed(Removal {
            reason: Reason::Banned,
            ..
        })) => (Code::AgentBanned, "this node was banned".to_owned()),
        Some(Absence::Removed(_)) => (
            Code::AgentMustReattest,
            "the server no longer knows this node, and no new join token is configured".to_owned(),
        ),
        Some(Absence::Expired { .. }) => (
            Code::AgentMustReattest,
            "the node's SVID is expired, and no new join token is configured".to_owned(),
        ),
        Some(Absence::KeyMissing(_)) => (
            Code::AgentMustReattest,
            "the private key of the node's SVID is missing, and no new join token is configured"
                .to_owned(),
        ),
    };
    let fault = with_absence(Fault::new(code, what), absence);
    match absence {
        Some(Absence::Removed(Removal {
            reason: Reason::Banned,
            ..
        })) => fault.hint("ask the operators of the server: after plastron server agent evict, a new token lets the node in again"),
        Some(Absence::Expired { .. }) => {
            fault.hint(format!("if this node's clock is wrong, correct it and start again; else {NEW_TOKEN}"))
        }
        _ => fault.hint(NEW_TOKEN),
    }
}

/// Adds why the node has no identity to why it cannot get one.
pub(super) fn with_absence(fault: Fault, absence: Option<&Absence>) -> Fault {
    let because = match absence {
        None | Some(Absence::NeverAttested) => return fault,
        Some(Absence::Removed(removal)) => {
            let why = match removal.reason {
                Reason::Banned => "was banned",
                Reason::MustReattest => "was evicted or no longer known to the server",
            };
            format!("{} {why} at {}", removal.agent_id, rfc3339(removal.at))
        }
        Some(Absence::Expired { id, at }) => {
            format!(
                "the SVID of {id} expired at {} by this node's clock",
                rfc3339(*at)
            )
        }
        Some(Absence::KeyMissing(id)) => {
            format!("the SVID of {id} is stored, but the key manager does not have its key")
        }
    };
    match fault.because.clone() {
        Some(first) => fault.because(format!("{first}; {because}")),
        None => fault.because(because),
    }
}

/// Turns a failed attempt into what the operator has to know.
pub(super) async fn explain(node: &Node, trust: &Trust, error: ClientError) -> Outcome {
    let config = &node.config;
    let address = config.server.authority();
    match error {
        ClientError::NotTrusted(because) => {
            Outcome::Never(not_trusted(node, trust, &because).await)
        }
        // Nodes that just booted may have their clock corrected within the minute.
        ClientError::ClocksDiffer(gap) => Outcome::Later(
            Fault::new(
                Code::ClocksDiffer,
                format!("the clocks of this node and of the server at {address} differ"),
            )
            .because(gap)
            .hint("compare `date -u` on both, and correct the clock that is wrong (NTP)"),
        ),
        ClientError::Banned => Outcome::Never(banned(config)),
        ClientError::Refused(Refusal::PermissionDenied, message) if message.contains("banned") => {
            Outcome::Never(banned(config))
        }
        ClientError::Refused(_, message) if message.contains("join token") => {
            Outcome::Never(token_refused(&message))
        }
        error if error.is_transient() => Outcome::Later(
            Fault::new(
                Code::AttestationServerUnreachable,
                format!("the server at {address} does not answer"),
            )
            .because(error)
            .hint(format!(
                "check that the server runs and that this node may reach {address}"
            )),
        ),
        ClientError::Unimplemented(_) => Outcome::Never(
            Fault::new(
                Code::AttestationDenied,
                format!("what answers at {address} does not attest nodes"),
            )
            .hint("check server_address and server_port"),
        ),
        error => Outcome::Never(
            Fault::new(
                Code::AttestationDenied,
                format!("the server at {address} did not accept this node"),
            )
            .because(error),
        ),
    }
}

fn banned(config: &NodeConfig) -> Fault {
    Fault::new(Code::AgentBanned, "this node was banned")
        .hint(format!("ask the operators of {}", config.trust_domain))
}

fn token_refused(message: &str) -> Fault {
    let what = if message.contains("expired") {
        "join token expired"
    } else if message.contains("does not exist or has already been used") {
        "join token is unknown or was already used"
    } else {
        "join token was refused"
    };
    Fault::new(Code::JoinTokenRefused, what)
        .because(message)
        .hint("on the server: plastron server token generate, then join with the new token")
}

/// Looks at the certificate that the server shows to say what is different.
async fn not_trusted(node: &Node, trust: &Trust, because: &str) -> Fault {
    let config = &node.config;
    let address = config.server.authority();
    let shown = dial::probe(node).await;
    if let Some(shown) = &shown
        && let Some(theirs) = shown.trust_domain()
        && theirs != config.trust_domain
    {
        let ours = &config.trust_domain;
        return Fault::new(
            Code::TrustDomainMismatch,
            format!("trust domain mismatch: agent says {ours}, server says {theirs}"),
        )
        .at(address)
        .hint(format!(
            "set trust_domain = \"{theirs}\", or point the agent at a server of {ours}"
        ));
    }
    let expected = match trust {
        Trust::Bundle(bundle) => bundle
            .x509_authorities
            .iter()
            .map(|authority| dial::fingerprint(authority.certificate.der()))
            .collect::<Vec<_>>()
            .join(", "),
        Trust::Insecure => "any".to_owned(),
    };
    let got = shown.map_or_else(|| "nothing readable".to_owned(), |shown| shown.describe());
    let stored = node.stored_bundle().is_some_and(|stored| {
        matches!(trust, Trust::Bundle(used) if used.x509_authorities == stored.x509_authorities)
    });
    let first = if stored {
        let file = node.state.agent_data_path();
        format!(
            "move {} away, which holds the bundle of before; ",
            file.display()
        )
    } else {
        String::new()
    };
    Fault::new(Code::ServerNotTrusted, format!("{address} is not the server that this node trusts"))
        .because(format!("expected CA {expected}; got {got} ({because})"))
        .hint(format!("re-created server? {first}fetch its bundle again (plastron server bundle show), create a token there and attest again"))
}
