//! The node's own SVID: renewed at half life, and the link made anew with it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::fault::{Code, Fault};
use tokio::time::Instant;

use super::{Following, Outcome, Sync};
use crate::backoff::Backoff;
use crate::cache::not_sooner;
use crate::dial;
use crate::join;
use crate::link::{Link, LinkError};
use crate::node::{Node, NodeIdentity};

/// The state of renewal.
#[derive(Debug)]
pub(super) struct Renewal {
    busy: bool,
    hurry: bool,
    backoff: Backoff,
    not_before: Option<Instant>,
    /// A fresh SVID is used for a while, however short it lives.
    not_sooner: Option<SystemTime>,
}

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0}")]
    Node(Fault),
}

impl Renewal {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            busy: false,
            hurry: false,
            backoff,
            not_before: None,
            not_sooner: None,
        }
    }

    /// Renew now: the authority behind the SVID is not trusted any longer.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
    }

    /// When the SVID is to be renewed; nothing while that is under way.
    pub(super) fn due(&self, identity: &NodeIdentity) -> Option<SystemTime> {
        if self.busy {
            return None;
        }
        if self.hurry {
            return Some(identity.svid.facts.not_before);
        }
        let due = identity.renew_at();
        Some(due.max(self.not_sooner.unwrap_or(due)))
    }

    pub(super) fn pause_left(&self) -> Duration {
        self.not_before.map_or(Duration::ZERO, |when| {
            when.saturating_duration_since(Instant::now())
        })
    }
}

impl Sync {
    pub(super) fn start_renewal(&mut self, now: SystemTime) {
        let due = self
            .renewal
            .due(&self.identity)
            .is_some_and(|due| due <= now);
        if !due || !self.renewal.pause_left().is_zero() {
            return;
        }
        self.renewal.busy = true;
        let (link, node, current) = (
            self.link.clone(),
            Arc::clone(&self.node),
            self.identity.clone(),
        );
        self.call(async move { Outcome::Renewed(renew(&link, &node, &current).await) });
    }

    /// Joins again in place of the identity that the server forgot.
    pub(super) fn reattest(&mut self) {
        if self.renewal.busy {
            return;
        }
        tracing::warn!("the server asks the node to attest again");
        self.renewal.busy = true;
        let (node, random) = (Arc::clone(&self.node), Arc::clone(&self.random));
        self.call(async move {
            let joined = join::join(&node, random).await;
            Outcome::Renewed(
                joined
                    .map(|joined| joined.identity)
                    .map_err(RenewalError::Node),
            )
        });
    }

    pub(super) fn renewed(
        &mut self,
        outcome: Result<NodeIdentity, RenewalError>,
    ) -> Result<(), Fault> {
        self.renewal.busy = false;
        match outcome {
            Ok(identity) => {
                tracing::info!(id = %identity.id(), "the node's SVID was renewed");
                self.renewal.backoff.reset();
                (self.renewal.not_before, self.renewal.hurry) = (None, false);
                let now = self.node.clock.now();
                self.renewal.not_sooner = Some(not_sooner(identity.svid.facts.not_after, now));
                self.use_identity(identity)
            }
            Err(error) => {
                self.renewal.not_before = Some(Instant::now() + self.renewal.backoff.next());
                if self.identity.is_expired(self.node.clock.now())
                    && !join::can_reattest(&self.identity)
                {
                    self.node.forget();
                    let fault = Fault::new(
                        Code::AgentMustJoinAgain,
                        "the node's SVID expired before it could be renewed",
                    );
                    return Err(fault.because(&error).hint("on the server: plastron server token generate; then start the agent with the new token"));
                }
                match error {
                    RenewalError::Link(error) => {
                        self.failed(true, "the node's SVID not renewed", &error)
                    }
                    RenewalError::Node(fault) => {
                        tracing::error!(%fault, "the node's SVID not renewed");
                        Ok(())
                    }
                }
            }
        }
    }

    /// From now on the node is `identity`: a new connection, and the stream taken up on it.
    fn use_identity(&mut self, identity: NodeIdentity) -> Result<(), Fault> {
        self.link = dial::as_node(&self.node.config, &identity, &self.trust)?;
        self.generation += 1;
        self.identity = identity.clone();
        self.identities.send_replace(identity);
        // The stream of the former link is not listened to any more: the new one sends its last change whole.
        self.changes.interrupted();
        if let Following::Watch { open } = &mut self.following {
            *open = false;
            self.next_sync = Instant::now();
        }
        Ok(())
    }
}

async fn renew(
    link: &Link,
    node: &Arc<Node>,
    current: &NodeIdentity,
) -> Result<NodeIdentity, RenewalError> {
    let key = node
        .fresh_key(Some(&current.key))
        .await
        .map_err(RenewalError::Node)?;
    let csr = dial::agent_csr(&key).map_err(RenewalError::Node)?;
    let mut svid = link.renew_agent(csr).await?;
    if svid.facts.public_key != *key.public_key() || svid.facts.spiffe_id != *current.id() {
        return Err(LinkError::malformed("the renewed SVID is for another key or identity").into());
    }
    svid.reattestable = current.svid.reattestable;
    let chain = svid.chain.clone();
    node.store(|data| data.svid = chain)
        .await
        .map_err(RenewalError::Node)?;
    Ok(NodeIdentity { svid, key })
}
