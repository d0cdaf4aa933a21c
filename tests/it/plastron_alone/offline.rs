//! An agent whose server is away.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::agent::ids_of;
use harness::{Agent, AgentOptions, Deployment, Server, ServerOptions, id, wait};

#[test]
fn agent_restarted_without_a_server_keeps_serving_what_is_valid() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.agent.stop()?;
    deployment.agent.options.settings = "  persist_workload_svids = true".to_owned();
    deployment.agent.write_configuration()?;
    deployment.agent.launch()?;
    deployment.register("/web")?;
    deployment.agent.stop()?;
    deployment.server.stop()?;
    deployment.agent.launch()?;
    let answer = deployment
        .agent
        .wait_for_ids(&[&id("/web")], Duration::from_secs(60))?;
    ensure!(ids_of(&answer) == [id("/web")], "{answer}");
    Ok(())
}

#[test]
fn an_agent_that_logs_that_its_server_is_lost_logs_that_it_is_back() -> Result<()> {
    let mut deployment = Deployment::start()?;
    deployment.register("/web")?;
    deployment.server.stop()?;
    let limit = Duration::from_secs(60);
    let agent = &mut deployment.agent;
    wait::until("the outage in the agent's log", limit, || {
        let log = agent.process()?.log();
        Ok(log.contains("lost the update stream").then_some(()))
    })?;
    deployment.server.launch()?;
    wait::until("its end in the agent's log", limit, || {
        let log = deployment.agent.process()?.log();
        Ok(log.contains("the server answers again").then_some(()))
    })
}

#[test]
fn entry_reaches_the_workload_that_waits_for_it() -> Result<()> {
    let deployment = Deployment::start()?;
    deployment.register("/first")?;
    deployment.server.create_entry(&harness::Entry::new(
        &Deployment::node(),
        &id("/second"),
        &harness::deployment::own_user(),
    ))?;
    deployment
        .agent
        .wait_for_ids(&[&id("/first"), &id("/second")], Duration::from_secs(60))?;
    Ok(())
}

#[test]
fn agent_that_was_never_attested_says_that_nobody_answers() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    let options = AgentOptions::attesting(&server, &server.token(&Deployment::node())?)?;
    server.stop()?;
    let mut agent = Agent::prepare(options)?;
    agent.spawn()?;
    wait::until("a word about the server", Duration::from_secs(10), || {
        let log = agent.process()?.log();
        Ok((log.contains("PLA-1101") || log.contains("refused")).then_some(()))
    })?;
    server.launch()?;
    agent.wait_until_serving()
}
