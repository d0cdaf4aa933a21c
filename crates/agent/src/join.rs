//! How a node becomes a member of its trust domain: bootstrap, attestation, first SVID and bundle.
//!
//! What can't get better by itself is reported at once, in words that say what to do; the rest is tried again for a
//! minute (SPIRE: bootstrapBackoffMaxElapsedTime).

use std::sync::Arc;
use std::time::Duration;

use config::fault::{Code, Fault};
use spiffe::bundle::Bundle;
use spiffe::random::Random;
use spiffe::secret::Secret;

use crate::backoff::Backoff;
use crate::bootstrap::{self, BootstrapError, Trust};
use crate::config::Config;
use crate::dial;
use crate::link::{LinkError, Refusal};
use crate::node::{Absence, Node, NodeIdentity};
use crate::state::removal::{Reason, Removal};
use crate::timefmt::rfc3339;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// A joined node: who it is and whom it trusts.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) identity: NodeIdentity,
    pub(crate) bundle: Bundle,
}

enum Attempt {
    Done(Joined),
    /// Try again; if patience ends, this is what is reported.
    Later(Fault),
    Never(Fault),
}

/// Joins, and keeps the result on disk. `absence` is why the node has no identity, where that is known.
///
/// # Errors
/// The fault to end the process with: PLA-11xx.
pub(crate) async fn join(
    node: &Arc<Node>,
    absence: Option<&Absence>,
    random: Arc<dyn Random>,
) -> Result<Joined, Fault> {
    let Some(token) = &node.config.join_token else {
        return Err(no_token(absence));
    };
    let payload = Secret::new(token.expose().clone().into_bytes());
    let started = node.clock.now();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, random);
    let mut number = 0;
    loop {
        number += 1;
        match attempt(node, &payload, number, started).await {
            Attempt::Done(joined) => {
                keep(node, &joined).await?;
                tracing::info!(id = %joined.identity.id(), reattestable = joined.identity.svid.reattestable, "node joined");
                return Ok(joined);
            }
            Attempt::Never(fault) => return Err(with_absence(fault, absence)),
            Attempt::Later(fault) => {
                let pause = backoff.next();
                if tokio::time::Instant::now() + pause > deadline {
                    return Err(fault);
                }
                tracing::warn!(
                    attempt = number,
                    because = fault.because.as_deref().unwrap_or_default(),
                    retry_in_ms = pause.as_millis(),
                    "{}",
                    fault.what
                );
                tokio::time::sleep(pause).await;
            }
        }
    }
}

const NEW_TOKEN: &str = "on the server: plastron server token generate; then start the agent with -joinToken TOKEN or agent.join_token_file";

/// There is no token to attest with: what the operator has to know is why the node has to attest at all.
fn no_token(absence: Option<&Absence>) -> Fault {
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
            Code::AgentMustJoinAgain,
            "the server no longer knows this node, and no new join token is configured".to_owned(),
        ),
        Some(Absence::Expired { .. }) => (
            Code::AgentMustJoinAgain,
            "the node's SVID is expired, and no new join token is configured".to_owned(),
        ),
        Some(Absence::KeyMissing(_)) => (
            Code::AgentMustJoinAgain,
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
fn with_absence(fault: Fault, absence: Option<&Absence>) -> Fault {
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

async fn attempt(
    node: &Arc<Node>,
    payload: &Secret<Vec<u8>>,
    number: u32,
    started: std::time::SystemTime,
) -> Attempt {
    let config = &node.config;
    let stored = node.stored_bundle();
    let trust = match &stored {
        Some(bundle) => Ok(Trust::Bundle(bundle.clone())),
        None => bootstrap::trust(config, number, started).await,
    };
    let mut trust = match trust {
        Ok(trust) => trust,
        Err(error) => return without_bundle(error),
    };
    let mut outcome = attest(node, payload, &trust).await;
    // The server may have been made anew since the bundle was stored: then what the operator names now counts. Being
    // told to believe anybody does not.
    if let Err(Failure::Link(LinkError::NotTrusted(_))) = &outcome
        && let Some(stored) = stored
        && let Ok(Trust::Bundle(named)) = bootstrap::trust(config, number, started).await
        && named.x509_authorities != stored.x509_authorities
    {
        tracing::warn!("the server does not fit the stored bundle; trying the configured one");
        trust = Trust::Bundle(named);
        outcome = attest(node, payload, &trust).await;
    }
    match outcome {
        Ok(joined) => Attempt::Done(joined),
        Err(Failure::Fault(fault)) => Attempt::Never(fault),
        Err(Failure::Link(error)) => explain(node, &trust, error).await,
    }
}

fn without_bundle(error: BootstrapError) -> Attempt {
    match error {
        BootstrapError::Permanent(fault) => Attempt::Never(fault),
        BootstrapError::Transient(fault) => Attempt::Later(fault),
    }
}

enum Failure {
    Fault(Fault),
    Link(LinkError),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

async fn attest(
    node: &Arc<Node>,
    payload: &Secret<Vec<u8>>,
    trust: &Trust,
) -> Result<Joined, Failure> {
    let link = dial::joining(node, trust)?;
    let key = node.fresh_key().await?;
    let csr = dial::agent_csr(&key)?;
    let svid = link.attest(METHOD.name(), payload, csr).await?;
    if svid.facts.public_key != *key.public_key() {
        return Err(LinkError::malformed("the SVID is for another key").into());
    }
    if !svid.facts.spiffe_id.is_member_of(&node.config.trust_domain) {
        return Err(LinkError::malformed(format!(
            "the SVID is of another trust domain: {}",
            svid.facts.spiffe_id
        ))
        .into());
    }
    let bundle = link.bundle().await?;
    if bundle.trust_domain != node.config.trust_domain || bundle.x509_authorities.is_empty() {
        return Err(LinkError::malformed(
            "the server's bundle is empty or of another trust domain",
        )
        .into());
    }
    Ok(Joined {
        identity: NodeIdentity { svid, key },
        bundle,
    })
}

/// How a node proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    JoinToken,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::JoinToken => "join_token",
        }
    }

    /// Whether the same proof can be given twice.
    const fn repeatable(self) -> bool {
        match self {
            Self::JoinToken => false,
        }
    }
}

const METHOD: Method = Method::JoinToken;

/// Whether a node that the server forgot can come back by itself.
pub(crate) fn can_reattest(identity: &NodeIdentity) -> bool {
    identity.svid.reattestable && METHOD.repeatable()
}

async fn keep(node: &Arc<Node>, joined: &Joined) -> Result<(), Fault> {
    let svid = joined.identity.svid.clone();
    let certificates = joined
        .bundle
        .x509_authorities
        .iter()
        .map(|authority| authority.certificate.clone())
        .collect();
    node.store(move |data| {
        data.reattestable = svid.reattestable;
        data.svid = svid.chain;
        data.bundle = certificates;
    })
    .await
}

/// Turns a failed attempt into what the operator has to know.
async fn explain(node: &Node, trust: &Trust, error: LinkError) -> Attempt {
    let config = &node.config;
    let address = config.server();
    match error {
        LinkError::NotTrusted(because) => Attempt::Never(not_trusted(node, trust, &because).await),
        // Nodes that just booted may have their clock corrected within the minute.
        LinkError::ClocksDiffer(gap) => Attempt::Later(
            Fault::new(
                Code::ClocksDiffer,
                format!("the clocks of this node and of the server at {address} differ"),
            )
            .because(gap)
            .hint("compare `date -u` on both, and correct the clock that is wrong (NTP)"),
        ),
        LinkError::Banned => Attempt::Never(banned(config)),
        LinkError::Refused(Refusal::PermissionDenied, message) if message.contains("banned") => {
            Attempt::Never(banned(config))
        }
        LinkError::Refused(_, message) if message.contains("join token") => {
            Attempt::Never(token_refused(&message))
        }
        error if error.is_transient() => Attempt::Later(
            Fault::new(
                Code::JoinServerUnreachable,
                format!("the server at {address} does not answer"),
            )
            .because(error)
            .hint(format!(
                "check that the server runs and that this node may reach {address}"
            )),
        ),
        LinkError::Unimplemented(_) => Attempt::Never(
            Fault::new(
                Code::AttestationDenied,
                format!("what answers at {address} does not attest nodes"),
            )
            .hint("check server_address and server_port"),
        ),
        error => Attempt::Never(
            Fault::new(
                Code::AttestationDenied,
                format!("the server at {address} did not accept this node"),
            )
            .because(error),
        ),
    }
}

fn banned(config: &Config) -> Fault {
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
    let address = config.server();
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
    Fault::new(Code::ServerNotTrusted, format!("{address} is not the server this node was told to trust"))
        .because(format!("expected CA {expected}; got {got} ({because})"))
        .hint("re-created server? fetch its bundle anew (plastron server bundle show), create a token there and join again")
}

#[cfg(test)]
mod tests;
