//! Agents that must not be attested, and what they report.

mod calls;

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{Agent, AgentOptions, Bootstrap, Deployment, Server, ServerOptions, Subject};

/// Starts an agent that must end by itself, with a failure and one of these texts.
fn is_refused(options: AgentOptions, texts: &[&str]) -> Result<()> {
    let mut agent = Agent::prepare(options)?;
    agent.spawn()?;
    // SPIRE's agent tries for three quarters of a minute; ours says so and exits at once.
    let limit = match agent.subject {
        Subject::Plastron => Duration::from_secs(5),
        Subject::Spire => Duration::from_secs(90),
    };
    let code = agent.process()?.wait(limit)?;
    let log = agent.process()?.log();
    ensure!(code != 0, "exit code {code}: {log}");
    ensure!(
        texts.iter().any(|text| log.contains(text)),
        "none of {texts:?} in: {log}"
    );
    Ok(())
}

#[test]
fn unknown_token() -> Result<()> {
    let server = Server::start(ServerOptions::default())?;
    let options = AgentOptions::attesting(&server, "11111111-2222-3333-4444-555555555555")?;
    is_refused(
        options,
        &["join token does not exist or has already been used"],
    )
}

#[test]
fn used_token() -> Result<()> {
    let server = Server::start(ServerOptions::default())?;
    let token = server.token(&Deployment::node())?;
    let first = Agent::start(AgentOptions::attesting(&server, &token)?)?;
    is_refused(
        AgentOptions::attesting(&server, &token)?,
        &["join token does not exist or has already been used"],
    )?;
    ensure!(
        first.cli(&["healthcheck"])?.succeeded(),
        "the first agent suffered"
    );
    Ok(())
}

#[test]
fn bundle_of_another_server() -> Result<()> {
    let server = Server::start(ServerOptions::default())?;
    let other = Server::start(ServerOptions::default())?;
    let mut options = AgentOptions::attesting(&server, &server.token(&Deployment::node())?)?;
    options.bootstrap = Bootstrap::Bundle(other.bundle()?);
    is_refused(
        options,
        &[
            "x509svid: could not verify leaf certificate",
            "trust bundle",
            "certificate",
        ],
    )
}

#[test]
fn another_trust_domain() -> Result<()> {
    let server = Server::start(ServerOptions::default())?;
    let mut options = AgentOptions::attesting(&server, &server.token(&Deployment::node())?)?;
    options.trust_domain = "elsewhere.org".to_owned();
    is_refused(options, &["elsewhere.org"])
}

#[test]
fn of_two_agents_with_one_token_exactly_one_is_attested() -> Result<()> {
    let server = Server::start(ServerOptions::default())?;
    let token = server.token(&Deployment::node())?;
    let mut agents = Vec::new();
    for _ in 0..4 {
        let mut agent = Agent::prepare(AgentOptions::attesting(&server, &token)?)?;
        agent.spawn()?;
        agents.push(agent);
    }
    let joined = agents
        .iter_mut()
        .map(|agent| agent.wait_until_serving().is_ok())
        .filter(|joined| *joined)
        .count();
    ensure!(joined == 1, "{joined} agents joined with one token");
    let count = server.json(&["agent", "count"])?;
    ensure!(
        count.get("count").and_then(serde_json::Value::as_i64) == Some(1),
        "{count}"
    );
    Ok(())
}
