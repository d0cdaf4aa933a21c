//! A workload whose entry is below another node: the agent, which knows its own node's entries alone, names the command
//! with which the operator asks the server.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::deployment::own_user;
use harness::process::{self, Ran};
use harness::subject::plastron;
use harness::{Agent, AgentOptions, Deployment, Entry, id};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

fn run(words: &[&str]) -> Result<Ran> {
    let mut command = Command::new(plastron()?);
    command.args(words).env_remove("SPIFFE_ENDPOINT_SOCKET");
    process::run(&mut command, LIMIT)
}

/// What stands between backquotes and begins so.
fn quoted<'t>(text: &'t str, beginning: &str) -> Option<&'t str> {
    text.split('`').find(|part| part.starts_with(beginning))
}

#[test]
fn a_refusal_leads_to_the_entry_below_another_node() -> Result<()> {
    let deployment = Deployment::start()?;
    let server = &deployment.server;
    let elsewhere = id("/elsewhere");
    let _other = Agent::start(AgentOptions::attesting(server, &server.token(&elsewhere)?)?)?;
    let entry = server.create_entry(&Entry::new(&elsewhere, &id("/web"), &own_user()))?;

    let socket = deployment.agent.socket().display().to_string();
    let refused = run(&["agent", "api", "fetch", "x509", "--socket-path", &socket])?;
    ensure!(refused.code == 4, "{refused:?}");
    ensure!(
        !refused.text().contains("elsewhere") && !refused.text().contains(&entry),
        "a workload learns nothing of other nodes: {refused:?}"
    );
    let hint = quoted(&refused.stderr, "plastron server entry match ")
        .with_context(|| format!("no command to type: {refused:?}"))?;

    let socket = server.socket().display().to_string();
    let mut words: Vec<&str> = hint.split_whitespace().skip(1).collect();
    words.extend(["--socket-path", &socket, "-o", "json"]);
    let found = run(&words)?.json()?;
    let found = found.pointer("/entries").context("no entries")?;
    ensure!(
        found.as_array().is_some_and(|list| list.len() == 1),
        "{found}"
    );
    let member = |name: &str| found.pointer(&format!("/0/{name}"));
    for (name, value) in [
        ("entry_id", entry.as_str()),
        ("spiffe_id", &id("/web")),
        ("parent_id", &elsewhere),
    ] {
        ensure!(
            member(name).is_some_and(|found| found == value),
            "{name}: {found}"
        );
    }
    let nodes = member("nodes")
        .and_then(Value::as_array)
        .context("no nodes")?;
    let node = nodes.first().and_then(Value::as_str).unwrap_or_default();
    let is_an_agent = node.starts_with(&id("/spire/agent/join_token/"));
    ensure!(
        nodes.len() == 1 && is_an_agent && node != deployment.agent_id()?,
        "the entry is served by the other node alone: {found}"
    );
    Ok(())
}

#[test]
fn selectors_that_no_entry_has_match_none() -> Result<()> {
    let deployment = Deployment::start()?;
    deployment.register("/web")?;
    let socket = deployment.server.socket().display().to_string();
    let ask = |selectors: &[&str]| {
        let words = ["server", "entry", "match", "--socket-path", &socket];
        run(&[&words, selectors].concat())
    };
    let none = ask(&["--selector", "unix:uid:4294967294"])?;
    ensure!(
        none.code == 0 && none.stderr.contains("no entry of any node matches"),
        "{none:?}"
    );
    ensure!(!none.stdout.contains(&id("/web")), "{none:?}");
    for refused in [&[][..], &["--selector", "unix"]] {
        let ran = ask(refused)?;
        ensure!(ran.code == 2, "{refused:?}: {ran:?}");
    }
    Ok(())
}
