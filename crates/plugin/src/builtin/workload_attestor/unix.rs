//! Selectors from the operating system: user, groups, and, if asked for, the program's path and digest.
//!
//! Selectors are SPIRE's: `uid`, `user`, `gid`, `group`, `supplementary_gid`, `supplementary_group`, `path`, `sha256`.
//! Unlike SPIRE, a process whose user or group is not the one that connected is refused: it may have connected, handed
//! the connection on, and started a set-user-ID program to pass for its owner.

mod digest;
mod names;
mod problem;
mod process;

use std::sync::Arc;

use async_trait::async_trait;
use spiffe::clock::Clock;
use spiffe::selector::Selector;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::workload_attestor::{Peer, WorkloadAttestor};
use config::Section;
use digest::Digests;
use names::Names;
use problem::Problem;

const NAME: &str = "unix";

/// What the plugin is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnixConfig {
    /// Whether `path` and `sha256` are wanted; they need the right to read other users' programs.
    pub discover_workload_path: bool,
    /// In bytes: programs beyond it are refused. 0 is no limit; below 0 there is no `sha256`.
    pub workload_size_limit: i64,
}

impl UnixConfig {
    /// Reads the plugin's `plugin_data`.
    pub fn read(data: &Section) -> Self {
        Self {
            discover_workload_path: data.boolean("discover_workload_path").unwrap_or(false),
            workload_size_limit: data.integer("workload_size_limit").unwrap_or(0),
        }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct UnixAttestor {
    config: UnixConfig,
    digests: Arc<Digests>,
    names: Arc<Names>,
    /// Programs that are read at the same time, at most: callers decide what is read, and it may be large.
    reading: Semaphore,
}

const READ_AT_ONCE: usize = 2;

impl UnixAttestor {
    pub fn new(config: UnixConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            digests: Arc::new(Digests::new(Arc::clone(&clock))),
            names: Arc::new(Names::new(clock)),
            reading: Semaphore::new(READ_AT_ONCE),
        }
    }

    /// `path` and `sha256`, both of the file behind one descriptor.
    async fn program(&self, pid: i32) -> Result<Vec<String>, Problem> {
        let limit = self.config.workload_size_limit;
        let Ok(limit) = u64::try_from(limit) else {
            let path = blocking(move || process::program_path(pid)).await?;
            return Ok(vec![format!("path:{path}")]);
        };
        let digests = Arc::clone(&self.digests);
        let opened = blocking(move || digests.open(pid, limit)).await?;
        let path = opened.path().to_owned();
        let digest = match opened.known() {
            Some(digest) => digest,
            None => {
                let _turn = self
                    .reading
                    .acquire()
                    .await
                    .map_err(|_closed| Problem::Interrupted)?;
                let digests = Arc::clone(&self.digests);
                blocking(move || digests.compute(opened)).await?
            }
        };
        Ok(vec![format!("path:{path}"), format!("sha256:{digest}")])
    }
}

#[async_trait]
impl WorkloadAttestor for UnixAttestor {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, peer: &Peer) -> Result<Vec<Selector>, Error> {
        let pid = peer.pid;
        let gone_or = |problem: Problem| match peer.still_alive() {
            // Reading failed because the process exited: say that.
            Err(gone) => gone.of(NAME),
            Ok(()) => problem.into(),
        };
        // The kernel answers for itself: reading it waits for nobody, and a change of threads would cost more.
        let credentials = process::credentials(pid).map_err(gone_or)?;
        let (uid, gid) = (credentials.uid, credentials.gid);
        let mut values = match self.names.remembered(&credentials) {
            Some(values) => values,
            None => {
                let names = Arc::clone(&self.names);
                blocking(move || Ok(names.look_up(&credentials))).await?
            }
        };
        if self.config.discover_workload_path {
            values.extend(self.program(pid).await.map_err(gone_or)?);
        }
        // Asked last: all that was read before is then known to be about this process.
        peer.still_alive().map_err(|error| error.of(NAME))?;
        if (uid, gid) != (peer.uid, peer.gid) {
            return Err(Problem::Changed { pid }.into());
        }
        values
            .iter()
            .map(|value| Ok(Selector::new(NAME, value).map_err(Problem::Selector)?))
            .collect()
    }
}

/// Runs where it may wait for a disk or for the directory service behind the user names.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_cancelled| Problem::Interrupted)?
}

#[cfg(test)]
mod tests;
