//! How a node becomes a member of its trust domain: bootstrap, attestation, first SVID and bundle.
//!
//! What can't get better by itself is reported at once, in words that say what to do; the rest is tried again for a
//! minute (SPIRE: bootstrapBackoffMaxElapsedTime). A proof that works once is sent last, when all else has worked: the
//! server answers and is trusted, its bundle is here, and the disk takes what is to be stored.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::fault::{Code, Fault};
use daemon::tasks::Shutdown;
use plugin::ErrorKind;
use plugin::node_attestor::agent::Attempt;
use spiffe::bundle::Bundle;
use spiffe::random::Random;

mod report;

use crate::backoff::Backoff;
use crate::bootstrap::{self, BootstrapError, Trust};
use crate::dial;
use crate::metrics::NODE_ATTESTATION;
use crate::node::{Absence, Node, NodeIdentity};
use crate::server_client::{AttestError, ClientError, ServerClient};
use report::{explain, no_token, with_absence};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// An attestation that is under way when the agent stops has this long to end: the proof may be used up.
const FINISH: Duration = Duration::from_secs(10);

/// An attested node: who it is and whom it trusts.
#[derive(Debug)]
pub(crate) struct AttestedNode {
    pub(crate) identity: NodeIdentity,
    pub(crate) bundle: Bundle,
    /// The identity is not on disk yet, though it was to be.
    pub(crate) unsaved: bool,
}

/// What came of one attempt.
enum Outcome {
    Done(Box<AttestedNode>),
    /// The agent was stopped before the proof was sent.
    Stopped,
    /// Try again; if patience ends, this is what is reported.
    Later(Fault),
    Never(Fault),
}

impl Outcome {
    /// The gRPC status that stands for it.
    fn status(&self) -> &'static str {
        match self {
            Self::Done(_) => "OK",
            Self::Stopped => "Canceled",
            Self::Later(_) => "Unavailable",
            Self::Never(_) => "FailedPrecondition",
        }
    }
}

/// Joins, and keeps the result on disk; nothing when the agent was stopped. `absence` is why the node has no
/// identity, where that is known.
///
/// # Errors
/// The fault to end the process with: PLA-11xx.
pub(crate) async fn attest_node(
    node: &Arc<Node>,
    absence: Option<&Absence>,
    random: Arc<dyn Random>,
    mut shutdown: Shutdown,
) -> Result<Option<AttestedNode>, Fault> {
    let started = node.clock.now();
    let deadline = tokio::time::Instant::now() + GIVE_UP_AFTER;
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, random);
    let mut number = 0;
    loop {
        number += 1;
        let timer = node.telemetry.start(&NODE_ATTESTATION, []);
        let outcome = attempt(node, number, started, &mut shutdown).await;
        timer.end(outcome.status());
        let fault = match outcome {
            Outcome::Done(attested_node) => {
                tracing::info!(id = %attested_node.identity.id(), reattestable = attested_node.identity.svid.reattestable, "node attested");
                return Ok(Some(*attested_node));
            }
            Outcome::Stopped => return Ok(None),
            Outcome::Never(fault) if fault.code == Code::NoJoinToken => {
                return Err(no_token(absence));
            }
            Outcome::Never(fault) => return Err(with_absence(fault, absence)),
            Outcome::Later(fault) => fault,
        };
        let pause = backoff.next();
        if tokio::time::Instant::now() + pause > deadline {
            return Err(fault);
        }
        tracing::warn!(
            code = fault.code.as_str(),
            attempt = number,
            because = fault.because.as_deref().unwrap_or_default(),
            retry_in_ms = pause.as_millis(),
            "{}",
            fault.what
        );
        if !shutdown.sleep(pause).await {
            return Ok(None);
        }
    }
}

async fn attempt(
    node: &Arc<Node>,
    number: u32,
    started: SystemTime,
    shutdown: &mut Shutdown,
) -> Outcome {
    // Before the server is asked for anything: without a proof there is nothing to try.
    let proof = match node.attestor.start().await {
        Ok(proof) => proof,
        Err(error) if error.kind() == ErrorKind::Transient => {
            return Outcome::Later(error.to_fault());
        }
        Err(error) => return Outcome::Never(error.to_fault()),
    };
    let prepared = tokio::select! {
        () = shutdown.requested() => return Outcome::Stopped,
        prepared = prepare(node, number, started) => prepared,
    };
    let (client, trust, bundle) = match prepared {
        Ok(prepared) => prepared,
        Err(outcome) => return outcome,
    };
    let attesting = send_proof(node, &client, proof, bundle);
    tokio::pin!(attesting);
    let attested = tokio::select! {
        attested = &mut attesting => attested,
        () = shutdown.requested() => {
            tracing::info!("the attestation under way is finished before the agent stops");
            match tokio::time::timeout(FINISH, attesting).await {
                Ok(attested) => attested,
                Err(_elapsed) => return Outcome::Stopped,
            }
        }
    };
    match attested {
        Ok(attested_node) => Outcome::Done(Box::new(attested_node)),
        Err(Failure::Fault(fault)) => Outcome::Never(fault),
        Err(Failure::Client(error)) => explain(node, &trust, error).await,
    }
}

/// Everything that can fail without using up the proof: a server that answers and is trusted, and its bundle.
async fn prepare(
    node: &Arc<Node>,
    number: u32,
    started: SystemTime,
) -> Result<(ServerClient, Trust, Bundle), Outcome> {
    let config = &node.config;
    let stored = node.stored_bundle();
    let mut trust = match &stored {
        Some(bundle) => Trust::Bundle(bundle.clone()),
        None => bootstrap::trust(config, number, started)
            .await
            .map_err(without_bundle)?,
    };
    let mut outcome = reach(node, &trust).await;
    // The server may have been re-created since the bundle was stored: then what the operator names now counts. Insecure
    // bootstrap does not.
    if let Err(Failure::Client(ClientError::NotTrusted(_))) = &outcome
        && let Some(stored) = stored
        && let Ok(Trust::Bundle(named)) = bootstrap::trust(config, number, started).await
        && named.x509_authorities != stored.x509_authorities
    {
        tracing::warn!("the server does not fit the stored bundle; trying the configured one");
        trust = Trust::Bundle(named);
        outcome = reach(node, &trust).await;
    }
    match outcome {
        Ok((client, bundle)) => Ok((client, trust, bundle)),
        Err(Failure::Fault(fault)) => Err(Outcome::Never(fault)),
        Err(Failure::Client(error)) => Err(explain(node, &trust, error).await),
    }
}

fn without_bundle(error: BootstrapError) -> Outcome {
    match error {
        BootstrapError::Permanent(fault) => Outcome::Never(fault),
        BootstrapError::Transient(fault) => Outcome::Later(fault),
    }
}

enum Failure {
    Fault(Fault),
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A client of a server that is trusted, and the server's bundle.
async fn reach(node: &Node, trust: &Trust) -> Result<(ServerClient, Bundle), Failure> {
    let client = dial::unattested(node, trust)?;
    // What was skipped is reported by the sync, which is next to ask for the bundle.
    let bundle = client.bundle().await?.bundle;
    if bundle.trust_domain != node.config.trust_domain || bundle.x509_authorities.is_empty() {
        return Err(ClientError::malformed(
            "the server's bundle is empty or of another trust domain",
        )
        .into());
    }
    Ok((client, bundle))
}

/// Sends the proof. What comes back is used even if it cannot be stored: there may be no second proof.
async fn send_proof(
    node: &Arc<Node>,
    client: &ServerClient,
    mut proof: Box<dyn Attempt>,
    bundle: Bundle,
) -> Result<AttestedNode, Failure> {
    node.check_writable().await?;
    let key = node.fresh_key().await?;
    let csr = dial::agent_csr(key.as_ref()).await?;
    let attested = client.attest(node.attestor.name(), &mut *proof, csr).await;
    let svid = attested.map_err(|error| match error {
        AttestError::Client(error) => Failure::Client(error),
        AttestError::Plugin(error) if error.kind() == ErrorKind::Transient => {
            Failure::Client(ClientError::Unavailable(error.to_string()))
        }
        AttestError::Plugin(error) => Failure::Fault(error.to_fault()),
    })?;
    if svid.facts.public_key != *key.public_key() {
        return Err(ClientError::malformed("the SVID is for another key").into());
    }
    if !svid.facts.spiffe_id.is_member_of(&node.config.trust_domain) {
        return Err(ClientError::malformed(format!(
            "the SVID is of another trust domain: {}",
            svid.facts.spiffe_id
        ))
        .into());
    }
    let identity = NodeIdentity { svid, key };
    let unsaved = match node.store_attestation(&identity, &bundle).await {
        Ok(()) => false,
        Err(fault) => {
            tracing::warn!(%fault, "the node's SVID is in use but not on disk; storing it is tried again");
            true
        }
    };
    Ok(AttestedNode {
        identity,
        bundle,
        unsaved,
    })
}

/// Whether a node that the server forgot can come back by itself.
pub(crate) fn can_reattest(node: &Node, identity: &NodeIdentity) -> bool {
    identity.svid.reattestable && node.attestor.is_repeatable()
}

#[cfg(test)]
mod tests;
