//! Agents that the operator bans or evicts.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Agent, AgentOptions, World};

const END: Duration = Duration::from_secs(30);

#[test]
fn banned_agent_stops_and_cannot_return() -> Result<()> {
    let mut world = World::start()?;
    let agent = world.agent_id()?;
    world
        .server
        .cli(&["agent", "ban", "-spiffeID", &agent])?
        .ok()?;
    let code = world.agent.process()?.wait(END)?;
    ensure!(code != 0, "a banned agent ended with {code}");
    world.agent.spawn()?;
    let code = world.agent.process()?.wait(END * 2)?;
    ensure!(code != 0, "a banned agent came back and ended with {code}");
    Ok(())
}

#[test]
fn evicted_agent_stops_and_may_join_with_a_new_token() -> Result<()> {
    let mut world = World::start()?;
    let agent = world.agent_id()?;
    world
        .server
        .cli(&["agent", "evict", "-spiffeID", &agent])?
        .ok()?;
    let code = world.agent.process()?.wait(END)?;
    ensure!(
        code != 0,
        "an evicted agent that cannot attest again ended with {code}"
    );
    let token = world.server.token(&World::node())?;
    let again = Agent::start(AgentOptions::joining(&world.server, &token)?)?;
    ensure!(again.cli(&["healthcheck"])?.succeeded());
    Ok(())
}
