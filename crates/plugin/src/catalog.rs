//! Which plugins a daemon's configuration asks for.
//!
//! [`ServerPlugins`] and [`AgentPlugins`] are what the `plugins` block says, read and checked without touching anything
//! outside; `open` then makes the plugins. What exists stands in the table; a plugin of SPIRE's that is not there yet is
//! refused by its name.

mod plugin_block;
mod table;
mod without_file;

use std::sync::Arc;

use config::Section;
use config::fault::{Code, Fault};

use crate::builtin::node_attestor::{JOIN_TOKEN, JoinTokenAttestor};
use crate::key_manager::KeyManager;
use crate::lifecycle::{Configured, HostServices, PluginSpec, ReloadError, Reloaded, Running};
use crate::node_attestor::{agent, server};
use crate::upstream_authority::UpstreamAuthority;
use crate::workload_attestor::WorkloadAttestor;
use plugin_block::{Entry, entries};
pub use without_file::KeyStorage;

use table::{Count, DATA_STORE, Example, Kind, Row, Side};

/// The server's plugins, configured.
#[derive(Debug, Clone)]
pub struct ServerPlugins {
    pub key_manager: Configured<dyn KeyManager>,
    pub upstream_authority: Option<Configured<dyn UpstreamAuthority>>,
    /// Each at most once.
    pub node_attestors: Vec<Configured<dyn server::NodeAttestor>>,
}

/// The server's plugins at work.
#[derive(Debug, Clone)]
pub struct RunningServerPlugins {
    pub key_manager: Running<dyn KeyManager>,
    pub upstream_authority: Option<Running<dyn UpstreamAuthority>>,
    pub node_attestors: Vec<Running<dyn server::NodeAttestor>>,
}

/// The agent's plugins, configured.
#[derive(Debug, Clone)]
pub struct AgentPlugins {
    pub key_manager: Configured<dyn KeyManager>,
    pub node_attestor: Configured<dyn agent::NodeAttestor>,
    /// At least one.
    pub workload_attestors: Vec<Configured<dyn WorkloadAttestor>>,
}

/// The agent's plugins at work.
#[derive(Debug, Clone)]
pub struct RunningAgentPlugins {
    pub key_manager: Running<dyn KeyManager>,
    pub node_attestor: Running<dyn agent::NodeAttestor>,
    pub workload_attestors: Vec<Running<dyn WorkloadAttestor>>,
}

/// What came of reading one plugin's configuration again.
#[derive(Debug)]
pub struct ReloadOutcome {
    /// Such as `KeyManager`.
    pub kind: &'static str,
    pub name: &'static str,
    pub outcome: Result<Reloaded, ReloadError>,
}

impl ServerPlugins {
    /// `plugin_data` of the DataStore `sql`, for the server to read; nothing when it is not configured, which
    /// [`Self::from_section`] reports.
    pub fn data_store(root: &Section) -> Option<Section> {
        let kinds = table::SERVER.kinds.iter();
        let kinds = kinds.filter(|kind| kind.name == DATA_STORE);
        let entries = entries(&root.section("plugins")?, table::SERVER, kinds);
        let entry = entries.iter().find(|entry| entry.is("sql"))?;
        Some(entry.data().clone())
    }

    /// Reads the `plugins` block at the top level of a server's configuration. What is wrong is recorded on the
    /// document; nothing comes back when something that is needed is missing.
    pub fn from_section(root: &Section) -> Option<Self> {
        let entries = checked_entries(root, table::SERVER)?;
        let key_managers = configured(&entries, "KeyManager", table::SERVER_KEY_MANAGERS);
        let upstreams = configured(&entries, "UpstreamAuthority", table::UPSTREAM_AUTHORITIES);
        let node_attestors = configured(&entries, "NodeAttestor", table::SERVER_NODE_ATTESTORS);
        Some(Self {
            key_manager: key_managers?.into_iter().next()?,
            upstream_authority: upstreams?.into_iter().next(),
            node_attestors: with_join_token(node_attestors?),
        })
    }

    /// Makes the plugins.
    ///
    /// # Errors
    /// The first plugin's that cannot be opened.
    pub async fn open(&self, host: &HostServices) -> Result<RunningServerPlugins, Fault> {
        let key_manager = open(&self.key_manager, host).await?;
        let upstream_authority = match &self.upstream_authority {
            Some(upstream) => Some(open(upstream, host).await?),
            None => None,
        };
        Ok(RunningServerPlugins {
            key_manager,
            upstream_authority,
            node_attestors: open_all(&self.node_attestors, host).await?,
        })
    }
}

impl RunningServerPlugins {
    /// Has each plugin read its `plugin_data_file` again (SPIRE: on SIGUSR1).
    pub async fn reload(&self) -> Vec<ReloadOutcome> {
        let mut outcomes = vec![reload("KeyManager", &self.key_manager).await];
        if let Some(upstream) = &self.upstream_authority {
            outcomes.push(reload("UpstreamAuthority", upstream).await);
        }
        for attestor in &self.node_attestors {
            outcomes.push(reload("NodeAttestor", attestor).await);
        }
        outcomes
    }

    /// As [`Self::reload`], with what came of it in the log.
    pub async fn reload_logged(&self) {
        log_outcomes(&self.reload().await);
    }

    pub async fn stop(&self) {
        for attestor in &self.node_attestors {
            attestor.stop().await;
        }
        if let Some(upstream) = &self.upstream_authority {
            upstream.stop().await;
        }
        self.key_manager.stop().await;
    }
}

impl AgentPlugins {
    /// Reads the `plugins` block at the top level of an agent's configuration; see [`ServerPlugins::from_section`].
    pub fn from_section(root: &Section) -> Option<Self> {
        let entries = checked_entries(root, table::AGENT)?;
        let key_managers = configured(&entries, "KeyManager", table::AGENT_KEY_MANAGERS);
        let node_attestors = configured(&entries, "NodeAttestor", table::AGENT_NODE_ATTESTORS);
        let workload_attestors =
            configured(&entries, "WorkloadAttestor", table::WORKLOAD_ATTESTORS);
        Some(Self {
            key_manager: key_managers?.into_iter().next()?,
            node_attestor: node_attestors?.into_iter().next()?,
            workload_attestors: workload_attestors.filter(|all| !all.is_empty())?,
        })
    }

    /// Makes the plugins, the workload attestors in the order of the configuration.
    ///
    /// # Errors
    /// The first plugin's that cannot be opened.
    pub async fn open(&self, host: &HostServices) -> Result<RunningAgentPlugins, Fault> {
        Ok(RunningAgentPlugins {
            key_manager: open(&self.key_manager, host).await?,
            node_attestor: open(&self.node_attestor, host).await?,
            workload_attestors: open_all(&self.workload_attestors, host).await?,
        })
    }
}

impl RunningAgentPlugins {
    /// Has each plugin read its `plugin_data_file` again (SPIRE: on SIGUSR1).
    pub async fn reload(&self) -> Vec<ReloadOutcome> {
        let mut outcomes = vec![
            reload("KeyManager", &self.key_manager).await,
            reload("NodeAttestor", &self.node_attestor).await,
        ];
        for attestor in &self.workload_attestors {
            outcomes.push(reload("WorkloadAttestor", attestor).await);
        }
        outcomes
    }

    /// As [`Self::reload`], with what came of it in the log.
    pub async fn reload_logged(&self) {
        log_outcomes(&self.reload().await);
    }

    pub async fn stop(&self) {
        for attestor in &self.workload_attestors {
            attestor.stop().await;
        }
        self.node_attestor.stop().await;
        self.key_manager.stop().await;
    }
}

async fn open<T: ?Sized>(plugin: &Configured<T>, host: &HostServices) -> Result<Running<T>, Fault> {
    plugin.open(host).await.map_err(|error| error.to_fault())
}

async fn open_all<T: ?Sized>(
    plugins: &[Configured<T>],
    host: &HostServices,
) -> Result<Vec<Running<T>>, Fault> {
    let mut running = Vec::with_capacity(plugins.len());
    for plugin in plugins {
        running.push(open(plugin, host).await?);
    }
    Ok(running)
}

async fn reload<T: ?Sized>(kind: &'static str, plugin: &Running<T>) -> ReloadOutcome {
    ReloadOutcome {
        kind,
        name: plugin.name(),
        outcome: plugin.reload().await,
    }
}

/// SPIRE: these texts. A plugin without a file of its own has nothing to say.
fn log_outcomes(outcomes: &[ReloadOutcome]) {
    for ReloadOutcome {
        kind,
        name,
        outcome,
    } in outcomes
    {
        match outcome {
            Ok(Reloaded::NoFile) => {}
            Ok(Reloaded::Unchanged) => tracing::info!(
                plugin_type = kind,
                plugin_name = name,
                "Plugin not reconfigured since the config is unchanged"
            ),
            Ok(Reloaded::Changed) => tracing::info!(
                plugin_type = kind,
                plugin_name = name,
                "Plugin reconfigured"
            ),
            Err(error) => tracing::error!(
                plugin_type = kind,
                plugin_name = name,
                %error,
                "Failed to reconfigure plugin; its former configuration stays in force"
            ),
        }
    }
}

/// The plugins of one kind that are built in, with their configuration read; nothing when one of it cannot be used.
/// Those that are refused for another reason are left out.
fn configured<T: ?Sized>(
    entries: &[Entry],
    kind: &str,
    rows: &[Row<T>],
) -> Option<Vec<Configured<T>>> {
    let mut names = Vec::new();
    let mut read: Vec<Option<Configured<T>>> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.kind == kind) {
        let Some(row) = rows.iter().find(|row| entry.is(row.name)) else {
            continue;
        };
        let data = entry.data();
        // One that is declared twice has its fault already.
        if names.contains(&row.name) {
            continue;
        }
        names.push(row.name);
        // Each is read, so that a fault of one hides none of another.
        let opener = (row.read)(data);
        read.push(opener.map(|opener| Configured::new(row.name, entry.data_file(), opener)));
    }
    read.into_iter().collect()
}

/// SPIRE: a server redeems join tokens whether or not that attestor is configured.
fn with_join_token(
    mut attestors: Vec<Configured<dyn server::NodeAttestor>>,
) -> Vec<Configured<dyn server::NodeAttestor>> {
    if !attestors.iter().any(|one| one.name() == JOIN_TOKEN) {
        let recipe = PluginSpec::<JoinTokenAttestor, dyn server::NodeAttestor> {
            config: (),
            read: |_data| Some(()),
            as_kind: |plugin| plugin,
        };
        attestors.push(Configured::new(JOIN_TOKEN, None, Arc::new(recipe)));
    }
    attestors
}

/// All plugins of the block, counted.
fn checked_entries(root: &Section, side: Side) -> Option<Vec<Entry>> {
    let block = root.section("plugins");
    let Some(plugins) = block else {
        if !root.has("plugins") {
            root.fault_here(
                Code::MissingKey,
                "the block plugins is missing",
                "add plugins { KeyManager \"memory\" { } … }",
            );
        }
        return None;
    };
    let entries = entries(&plugins, side, side.kinds);
    for kind in side.kinds {
        count(&plugins, &entries, kind);
    }
    Some(entries)
}

/// Reports a kind of which there are too few or too many. Those that are refused for another reason count too: their
/// absence is not what is wrong.
fn count(plugins: &Section, entries: &[Entry], kind: &Kind) {
    let mut found = entries.iter().filter(|entry| entry.kind == kind.name);
    let needed = match kind.count {
        Count::ExactlyOne(example) => Some(("exactly", example)),
        Count::AtLeastOne(example) => Some(("at least", example)),
        Count::Any | Count::AtMostOne => None,
    };
    let first = found.next();
    if let (None, Some((how_many, Example(example)))) = (first, needed) {
        let name = kind.name;
        plugins.fault_here(
            Code::PluginCount,
            format!("{how_many} one {name} plugin is needed"),
            format!("add {name} {example:?} {{ plugin_data {{ … }} }}"),
        );
    }
    if matches!(kind.count, Count::AtMostOne | Count::ExactlyOne(_)) {
        for more in found {
            plugins.fault_on(
                &more.label,
                Code::PluginCount,
                format!("only one {} plugin may be configured", kind.name),
                "remove one of them, or give it enabled = false",
            );
        }
    }
}

#[cfg(test)]
mod tests;
