//! What a restart keeps.

use anyhow::{Context, Result, ensure};
use harness::deployment::{CHANGE, own_user};
use harness::{Entry, World, id};

#[test]
fn server_keeps_entries_authority_and_agents() -> Result<()> {
    let mut world = World::start()?;
    world.register("/web")?;
    let bundle = world.server.bundle()?;
    let agent = world.agent_id()?;
    ensure!(world.server.stop()? == 0, "SIGTERM is a clean end");
    world.server.launch()?;
    ensure!(world.server.bundle()? == bundle, "the authority changed");
    ensure!(world.agent_id()? == agent, "the agent is gone");
    world
        .server
        .create_entry(&Entry::new(&World::node(), &id("/later"), &own_user()))?;
    world
        .agent
        .wait_for_ids(&[&id("/web"), &id("/later")], CHANGE * 2)?;
    Ok(())
}

#[test]
fn agent_keeps_its_identity_without_a_new_token() -> Result<()> {
    let mut world = World::start()?;
    world.register("/web")?;
    let before = world.agent_id()?;
    ensure!(world.agent.stop()? == 0, "SIGTERM is a clean end");
    world.agent.launch()?;
    world.agent.wait_for_ids(&[&id("/web")], CHANGE)?;
    ensure!(world.agent_id()? == before, "the agent joined again");
    Ok(())
}

#[test]
fn agent_serves_what_it_has_while_the_server_is_away() -> Result<()> {
    let mut world = World::start()?;
    world.register("/web")?;
    world.server.stop()?;
    let answer = world.agent.fetch_x509()?;
    ensure!(harness::agent::ids_of(&answer) == [id("/web")], "{answer}");
    world.server.launch()?;
    world
        .server
        .create_entry(&Entry::new(&World::node(), &id("/later"), &own_user()))?;
    world
        .agent
        .wait_for_ids(&[&id("/web"), &id("/later")], CHANGE * 3)?;
    Ok(())
}

#[test]
fn deleted_entry_is_taken_back() -> Result<()> {
    let world = World::start()?;
    let entry = world
        .server
        .create_entry(&Entry::new(&World::node(), &id("/web"), &own_user()))?;
    world
        .server
        .create_entry(&Entry::new(&World::node(), &id("/stays"), &own_user()))?;
    world
        .agent
        .wait_for_ids(&[&id("/web"), &id("/stays")], CHANGE)?;
    world
        .server
        .cli(&["entry", "delete", "-entryID", &entry])?
        .ok()?;
    world
        .agent
        .wait_for_ids(&[&id("/stays")], CHANGE)
        .context("the deleted entry is still served")?;
    Ok(())
}
