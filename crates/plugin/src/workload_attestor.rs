//! Who is on the other end of a Unix socket, and what attestors say about it.
//!
//! Owns [`Peer`], the hold on a calling process that lets nothing take its place unseen, and the trait of those who
//! turn a process into selectors. An attestor reads about the process first and asks [`Peer::still_alive`] after: only
//! then was everything it read about this process and not about another that got its number.

mod peer;

pub use peer::{Peer, PeerError};

use async_trait::async_trait;
use spiffe::selector::Selector;

use crate::error::Error;

/// Says what is true of a process, as selectors of the type that is the attestor's name.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync + std::fmt::Debug {
    /// The name, which is the type of its selectors, such as `unix`.
    fn name(&self) -> &str;

    /// The selectors of this process, complete or not at all.
    async fn attest(&self, peer: &Peer) -> Result<Vec<Selector>, Error>;
}
