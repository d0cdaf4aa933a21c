//! An agent whose server is away.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::agent::ids_of;
use harness::{Agent, AgentOptions, Server, ServerOptions, World, id};

#[test]
fn agent_restarted_without_a_server_keeps_serving_what_is_valid() -> Result<()> {
    let mut world = World::start()?;
    world.agent.stop()?;
    world.agent.options.settings = "  persist_workload_svids = true".to_owned();
    world.agent.write_configuration()?;
    world.agent.launch()?;
    world.register("/web")?;
    world.agent.stop()?;
    world.server.stop()?;
    world.agent.launch()?;
    let answer = world
        .agent
        .wait_for_ids(&[&id("/web")], Duration::from_secs(60))?;
    ensure!(ids_of(&answer) == [id("/web")], "{answer}");
    Ok(())
}

#[test]
fn entry_reaches_the_workload_that_waits_for_it() -> Result<()> {
    let world = World::start()?;
    world.register("/first")?;
    world.server.create_entry(&harness::Entry::new(
        &World::node(),
        &id("/second"),
        &harness::deployment::own_user(),
    ))?;
    world
        .agent
        .wait_for_ids(&[&id("/first"), &id("/second")], Duration::from_secs(60))?;
    Ok(())
}

#[test]
fn agent_that_never_joined_says_that_nobody_answers() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    let options = AgentOptions::joining(&server, &server.token(&World::node())?)?;
    server.stop()?;
    let mut agent = Agent::prepare(options)?;
    agent.spawn()?;
    harness::wait::until("a word about the server", Duration::from_secs(10), || {
        let log = agent.process()?.log();
        Ok((log.contains("PLA-1101") || log.contains("refused")).then_some(()))
    })?;
    server.launch()?;
    agent.wait_until_serving()
}
