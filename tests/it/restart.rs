//! What a restart keeps.

use anyhow::{Context, Result, ensure};
use harness::deployment::{CHANGE, own_user};
use harness::{Deployment, Entry, id};

#[test]
fn server_keeps_entries_authority_and_agents() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.register("/web")?;
    let bundle = deployment.server.bundle()?;
    let agent = deployment.agent_id()?;
    ensure!(deployment.server.stop()? == 0, "SIGTERM is a clean end");
    deployment.server.launch()?;
    ensure!(
        deployment.server.bundle()? == bundle,
        "the authority changed"
    );
    ensure!(deployment.agent_id()? == agent, "the agent is gone");
    deployment
        .server
        .create_entry(&Entry::new(&Deployment::node(), &id("/later"), &own_user()))?;
    deployment
        .agent
        .wait_for_ids(&[&id("/web"), &id("/later")], CHANGE * 2)?;
    Ok(())
}

#[test]
fn agent_keeps_its_identity_without_a_new_token() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.register("/web")?;
    let before = deployment.agent_id()?;
    ensure!(deployment.agent.stop()? == 0, "SIGTERM is a clean end");
    deployment.agent.launch()?;
    deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?;
    ensure!(deployment.agent_id()? == before, "the agent joined again");
    Ok(())
}

#[test]
fn agent_serves_what_it_has_while_the_server_is_away() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.register("/web")?;
    deployment.server.stop()?;
    let answer = deployment.agent.fetch_x509()?;
    ensure!(harness::agent::ids_of(&answer) == [id("/web")], "{answer}");
    deployment.server.launch()?;
    deployment
        .server
        .create_entry(&Entry::new(&Deployment::node(), &id("/later"), &own_user()))?;
    deployment
        .agent
        .wait_for_ids(&[&id("/web"), &id("/later")], CHANGE * 3)?;
    Ok(())
}

#[test]
fn deleted_entry_is_taken_back() -> Result<()> {
    let deployment = Deployment::start()?;
    let entry = deployment.server.create_entry(&Entry::new(
        &Deployment::node(),
        &id("/web"),
        &own_user(),
    ))?;
    deployment
        .server
        .create_entry(&Entry::new(&Deployment::node(), &id("/stays"), &own_user()))?;
    deployment
        .agent
        .wait_for_ids(&[&id("/web"), &id("/stays")], CHANGE)?;
    deployment
        .server
        .cli(&["entry", "delete", "-entryID", &entry])?
        .ok()?;
    deployment
        .agent
        .wait_for_ids(&[&id("/stays")], CHANGE)
        .context("the deleted entry is still served")?;
    Ok(())
}
