//! Agents that the operator bans or evicts.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Agent, AgentOptions, Deployment};

const END: Duration = Duration::from_secs(30);

#[test]
fn banned_agent_stops_and_cannot_return() -> Result<()> {
    let mut deployment = Deployment::start()?;
    let agent = deployment.agent_id()?;
    deployment
        .server
        .cli(&["agent", "ban", "-spiffeID", &agent])?
        .ok()?;
    let code = deployment.agent.process()?.wait(END)?;
    ensure!(code != 0, "a banned agent ended with {code}");
    deployment.agent.spawn()?;
    let code = deployment.agent.process()?.wait(END * 2)?;
    ensure!(code != 0, "a banned agent came back and ended with {code}");
    Ok(())
}

#[test]
fn evicted_agent_stops_and_may_attest_with_a_new_token() -> Result<()> {
    let mut deployment = Deployment::start()?;
    let agent = deployment.agent_id()?;
    deployment
        .server
        .cli(&["agent", "evict", "-spiffeID", &agent])?
        .ok()?;
    let code = deployment.agent.process()?.wait(END)?;
    ensure!(
        code != 0,
        "an evicted agent that cannot attest again ended with {code}"
    );
    let token = deployment.server.token(&Deployment::node())?;
    let again = Agent::start(AgentOptions::attesting(&deployment.server, &token)?)?;
    ensure!(again.cli(&["healthcheck"])?.succeeded());
    Ok(())
}
