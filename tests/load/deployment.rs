//! A server with four agents that the driver itself plays, and two hundred entries, fifty for each.

use anyhow::Result;
use harness::rpc::{self, Credentials};
use harness::{Server, ServerOptions, Subject, id};
use tonic::transport::Channel;

use crate::entries;

pub(crate) const AGENTS: usize = 4;
pub(crate) const ENTRIES_OF_AGENT: usize = 50;

/// The core of the programs under test.
pub(crate) fn pinned() -> Vec<String> {
    ["taskset", "-c", "0"].map(str::to_owned).to_vec()
}

/// Options as an operator would start with, without the limits on calls that tests of rates would meet.
pub(crate) fn options(subject: Subject) -> ServerOptions {
    ServerOptions {
        subject: Some(subject),
        settings: "  ratelimit {\n    attestation = false\n    signing = false\n  }".to_owned(),
        impatient: false,
        log_level: "INFO",
        wrapper: pinned(),
        ..ServerOptions::default()
    }
}

/// One of the driver's agents.
pub(crate) struct SimulatedAgent {
    /// Two connections: each agent has two callers.
    pub(crate) channels: Vec<Channel>,
    pub(crate) entry_ids: Vec<String>,
}

pub(crate) struct LoadDeployment {
    pub(crate) server: Server,
    pub(crate) admin: Channel,
    pub(crate) agents: Vec<SimulatedAgent>,
}

impl LoadDeployment {
    pub(crate) async fn start(subject: Subject) -> Result<Self> {
        let server = Server::start(options(subject))?;
        let admin = rpc::unix(&server.socket()).await?;
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            let node = id(&format!("/node-{number}"));
            let credentials = join(&server, &node).await?;
            let parent = format!("/node-{number}");
            let entry_ids = entries::create(
                &admin,
                (0..ENTRIES_OF_AGENT)
                    .map(|at| entries::numbered(&parent, at))
                    .collect(),
            )
            .await?;
            let mut channels = Vec::new();
            for _ in 0..2 {
                channels.push(rpc::tls(server.address(), Some(&credentials)).await?);
            }
            agents.push(SimulatedAgent {
                channels,
                entry_ids,
            });
        }
        let deployment = Self {
            server,
            admin,
            agents,
        };
        entries::wait_until_authorized(&deployment).await?;
        Ok(deployment)
    }

    /// The channel and the entries of one of the eight callers.
    pub(crate) fn caller(&self, number: usize) -> Option<(Channel, &[String])> {
        let agent = self.agents.get(number % AGENTS)?;
        let channel = agent.channels.get(number / AGENTS % agent.channels.len())?;
        Some((channel.clone(), &agent.entry_ids))
    }
}

async fn join(server: &Server, node: &str) -> Result<Credentials> {
    rpc::attest(server.address(), &server.token(node)?).await
}
