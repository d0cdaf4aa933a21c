//! Selectors from the operating system: user, groups, and, if asked for, the program's path and digest.
//!
//! Selectors are SPIRE's: `uid`, `user`, `gid`, `group`, `supplementary_gid`, `supplementary_group`, `path`, `sha256`.
//! Unlike SPIRE, a process whose user or group is not the one that connected is refused: it may have connected, handed
//! the connection on, and started a set-user-ID program to pass for its owner.

mod digest;
mod names;
mod problem;
mod process;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use spiffe::clock::Clock;
use spiffe::selector::Selector;

use crate::error::Error;
use crate::lifecycle::{HostServices, Lifecycle};
use crate::workload_attestor::credentials::Credentials;
use crate::workload_attestor::{Attested, Peer, WorkloadAttestor};
use config::Section;
use digest::Digests;
use names::Names;
use problem::Problem;

const NAME: &str = "unix";

/// The plugin's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnixConfig {
    /// Whether `path` and `sha256` are wanted; they need the right to read other users' programs.
    pub discover_workload_path: bool,
    /// In bytes: a larger program is refused. 0 is no limit; below 0 there is no `sha256`. When nothing is set, a program
    /// of more than [`USUAL_LIMIT`] is not read but keeps its other selectors. SPIRE: the default is no limit.
    pub workload_size_limit: Option<i64>,
}

/// No program that is common is larger, and reading it takes about a second.
const USUAL_LIMIT: u64 = 1 << 30;

impl UnixConfig {
    /// Reads the plugin's `plugin_data`.
    pub fn read(data: &Section) -> Self {
        Self {
            discover_workload_path: data.boolean("discover_workload_path").unwrap_or(false),
            workload_size_limit: data.integer("workload_size_limit"),
        }
    }

    /// The limit in bytes, 0 for none; nothing when no digest is wanted.
    fn size_limit(&self) -> Option<u64> {
        match self.workload_size_limit {
            None => Some(USUAL_LIMIT),
            Some(limit) => u64::try_from(limit).ok(),
        }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct UnixAttestor {
    config: UnixConfig,
    digests: Arc<Digests>,
    names: Arc<Names>,
}

impl UnixAttestor {
    pub fn new(config: UnixConfig, clock: Arc<dyn Clock>) -> Self {
        let limit = config.size_limit().unwrap_or_default();
        Self {
            config,
            digests: Arc::new(Digests::new(Arc::clone(&clock), limit)),
            names: Arc::new(Names::new(clock)),
        }
    }

    /// Adds user and groups. More groups than are looked at leave the answer incomplete.
    async fn who(&self, found: &mut Found, credentials: &Credentials) -> Result<(), Problem> {
        found.incomplete = credentials
            .more_groups
            .then_some(Problem::ManyGroups { pid: found.pid });
        // Names that are in memory are read without a change of threads, which would cost more than all the rest.
        if let Some(values) = self.names.remembered(credentials) {
            found.values = values;
            return Ok(());
        }
        let looked_up = self.names.look_up(credentials.clone()).await?;
        found.values = looked_up.values;
        if let Some((kind, because)) = looked_up.failed {
            found.incomplete = Some(Problem::Unreadable {
                pid: found.pid,
                what: "the names of the user and groups",
                source: io::Error::new(kind, because),
            });
        }
        Ok(())
    }

    /// Adds `path` and `sha256`, both of the file behind one descriptor.
    async fn program(&self, found: &mut Found, user: u32) -> Result<(), Problem> {
        if self.config.size_limit().is_none() {
            let path = self.digests.path(found.pid, user).await?;
            found.values.push(format!("path:{path}"));
            return Ok(());
        }
        let opened = self.digests.open(found.pid, user).await?;
        let path = format!("path:{}", opened.path());
        match self.digests.digest(opened, user).await {
            Ok(digest) => found.values.extend([path, format!("sha256:{digest}")]),
            // Nobody asked for this limit: it takes away the digest alone.
            Err(error @ Problem::TooLarge { .. }) if self.config.workload_size_limit.is_none() => {
                found.values.push(path);
                found.incomplete = Some(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn find(&self, found: &mut Found, peer: &Peer) -> Result<(), Problem> {
        // The kernel answers for itself: reading it waits for nobody.
        let credentials = process::credentials(peer.pid)?;
        if (credentials.uid, credentials.gid) != (peer.uid, peer.gid) {
            return Err(Problem::Changed { pid: peer.pid });
        }
        self.who(found, &credentials).await?;
        if self.config.discover_workload_path {
            self.program(found, peer.uid).await?;
            // It may have started a set-user-ID program in the meantime, whose path this then is.
            if process::credentials(peer.pid)? != credentials {
                return Err(Problem::Changed { pid: peer.pid });
            }
        }
        Ok(())
    }
}

/// What is known of a process so far.
struct Found {
    pid: i32,
    values: Vec<String>,
    incomplete: Option<Problem>,
}

#[async_trait]
impl Lifecycle for UnixAttestor {
    type Config = UnixConfig;

    async fn open(config: UnixConfig, host: &HostServices) -> Result<Self, Error> {
        Ok(Self::new(config, Arc::clone(&host.clock)))
    }
}

#[async_trait]
impl WorkloadAttestor for UnixAttestor {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, peer: &Peer) -> Result<Attested, Error> {
        let mut found = Found {
            pid: peer.pid,
            values: Vec::new(),
            incomplete: None,
        };
        let outcome = self.find(&mut found, peer).await;
        // Asked last: all that was read before is then known to be about this process. When reading failed because the
        // process ended, that is the reason to give.
        peer.still_alive().map_err(|gone| gone.of(NAME))?;
        outcome?;
        let selector = |value: &String| Selector::new(NAME, value).map_err(Problem::Selector);
        Ok(Attested {
            selectors: found
                .values
                .iter()
                .map(selector)
                .collect::<Result<_, _>>()?,
            incomplete: found.incomplete.map(Error::from),
        })
    }
}

#[cfg(test)]
mod tests;
