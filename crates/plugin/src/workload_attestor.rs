//! Who is on the other end of a Unix socket, and what attestors say about it.
//!
//! Owns [`Peer`], the hold on a calling process that lets nothing take its place unseen, [`Referenced`], which is a
//! workload that somebody else names, and the trait of those who turn a process into selectors. An attestor reads about the process first and asks [`Peer::still_alive`] after: only
//! then was everything it read about this process and not about another that got its number. What it cannot find out it
//! says, since a selector that is missing for a moment must not look like one that the process does not have.

pub(crate) mod credentials;
mod peer;
mod reference;

pub use peer::{Peer, PeerError};
pub use reference::{ReferenceError, Referenced};

use std::time::Duration;

use async_trait::async_trait;
use prost_types::Any;
use spiffe::selector::Selector;

use crate::error::{Error, ErrorKind};

/// How many callers one attestor looks at at the same time, unless it says otherwise.
const CONCURRENCY: usize = 256;
/// What one attestation may take, unless the attestor says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);

/// Says what is true of a process, as selectors of the type that is the attestor's name.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync + std::fmt::Debug {
    /// The name, which is the type of its selectors, such as `unix`.
    fn name(&self) -> &str;

    /// The selectors of this process.
    async fn attest(&self, peer: &Peer) -> Result<Attested, Error>;

    /// The selectors of what a broker names and what is not a process, such as an object of Kubernetes. A process is
    /// attested by [`Self::attest`], even when a broker names it.
    async fn attest_reference(&self, reference: &Any) -> Result<Attested, Error> {
        let message = format!(
            "workload references of type {} are not supported",
            reference.type_url
        );
        Err(Error::new(
            self.name().to_owned(),
            ErrorKind::NotOffered,
            message,
        ))
    }

    /// How long one attestation may take.
    fn deadline(&self) -> Duration {
        DEADLINE
    }

    /// How many attestations may be under way at the same time; more wait.
    fn concurrency(&self) -> usize {
        CONCURRENCY
    }
}

/// What an attestor found out about a process. All that is here is true of it.
#[derive(Debug, Default)]
pub struct Attested {
    pub selectors: Vec<Selector>,
    /// Why there may be more: something could not be found out, and the process may have selectors that are not here.
    pub incomplete: Option<Error>,
}

impl From<Vec<Selector>> for Attested {
    fn from(selectors: Vec<Selector>) -> Self {
        Self {
            selectors,
            incomplete: None,
        }
    }
}
