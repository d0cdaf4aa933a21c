//! A server and one agent attested to it: what most tests need.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::agent::{Agent, AgentOptions, ids_of};
use crate::server::{Entry, Server, ServerOptions};
use crate::{id, wait};

/// How long an agent may take to learn of a change. SPIRE's looks once a second here; it also must issue the SVID.
pub const CHANGE: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Deployment {
    pub agent: Agent,
    pub server: Server,
}

impl Deployment {
    /// The SPIFFE ID under which the agent's entries are registered.
    pub fn node() -> String {
        id("/node")
    }

    /// A server, and an agent attested to it under [`Deployment::node`].
    pub fn start() -> Result<Self> {
        Self::start_with(ServerOptions::default(), &[], |_| {})
    }

    /// The same with options, and with entries that exist before the agent attests.
    pub fn start_with(
        options: ServerOptions,
        entries: &[Entry],
        adjust: impl FnOnce(&mut AgentOptions),
    ) -> Result<Self> {
        let server = Server::start(options)?;
        for entry in entries {
            server.create_entry(entry)?;
        }
        let token = server.token(&Self::node())?;
        let mut options = AgentOptions::attesting(&server, &token)?;
        adjust(&mut options);
        let agent = Agent::start(options)?;
        let deployment = Self { agent, server };
        if !entries.is_empty() {
            deployment.wait_for_entries()?;
        }
        Ok(deployment)
    }

    /// Waits until the agent has the entries of this moment: it then also has a new one, for the agent's own command.
    fn wait_for_entries(&self) -> Result<()> {
        let probe = id("/probe");
        self.server.create_entry(&Entry::new(
            &Self::node(),
            &probe,
            &running(self.agent.client())?,
        ))?;
        wait::until("the agent to know its entries", CHANGE, || {
            let answer = self.agent.fetch_x509()?;
            Ok(ids_of(&answer).contains(&probe.as_str()).then_some(()))
        })
    }

    /// Registers a workload of this user, and waits until it has its SVID. The value is `api fetch x509`'s.
    pub fn register(&self, path: &str) -> Result<Value> {
        self.server
            .create_entry(&Entry::new(&Self::node(), &id(path), &own_user()))?;
        self.agent.wait_for_ids(&[&id(path)], CHANGE)
    }

    /// The SPIFFE ID that the server gave the agent.
    pub fn agent_id(&self) -> Result<String> {
        wait::until("the agent in the server's list", CHANGE, || {
            let list = self.server.json(&["agent", "list"])?;
            let path = list.pointer("/agents/0/id/path").and_then(Value::as_str);
            Ok(path.map(id))
        })
    }
}

/// The selector of processes of the user who runs the tests.
#[expect(
    unsafe_code,
    reason = "geteuid(2) has no safe form in the standard library"
)]
pub fn own_user() -> String {
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    format!("unix:uid:{user}")
}

/// The selector of processes that run `executable`.
pub fn running(executable: &std::path::Path) -> Result<String> {
    Ok(format!(
        "unix:path:{}",
        executable.canonicalize()?.display()
    ))
}
