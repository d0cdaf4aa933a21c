//! Entries hang under the node's alias when nobody names their parent, so that they survive the node's token.

use anyhow::{Context as _, Result, ensure};
use harness::deployment::{CHANGE, own_user};
use harness::subject::{Subject, plastron};
use harness::{Agent, AgentOptions, Deployment, id, process, server};
use serde_json::Value;
use std::process::Command;

#[test]
fn an_entry_without_a_parent_is_served_by_the_node_that_comes_with_a_new_token() -> Result<()> {
    if !Subject::only_plastron()? {
        return Ok(());
    }
    let mut deployment = Deployment::start()?;
    let native = |line: &str| {
        let mut command = Command::new(plastron()?);
        command.args(line.split(' ')).arg("--socket-path");
        command.arg(deployment.server.socket());
        process::run(&mut command, server::COMMAND)
    };
    let user = own_user();
    let created = native(&format!(
        "server entry create --spiffe-id web --selector {user} -o json"
    ))?
    .json()?;
    let parent = created
        .pointer("/results/0/entry/parent_id/path")
        .and_then(Value::as_str)
        .with_context(|| format!("no parent: {created}"))?;
    ensure!(
        id(parent) == Deployment::node(),
        "the parent is {parent}, which ends with its token"
    );
    deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?;

    // The node is set up again: another token, another data directory, the same alias.
    let former = deployment.agent_id()?;
    deployment.agent.stop()?;
    let token = deployment.server.token(&Deployment::node())?;
    deployment.agent = Agent::start(AgentOptions::attesting(&deployment.server, &token)?)?;
    deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?;
    let list = deployment.server.json(&["agent", "list"])?;
    let nodes = list.pointer("/agents").and_then(Value::as_array);
    let nodes = nodes.context("no nodes")?;
    let is_former = |node: &&Value| {
        let path = node.pointer("/id/path").and_then(Value::as_str);
        path.map(id).as_deref() == Some(former.as_str())
    };
    ensure!(
        nodes.len() == 2 && nodes.iter().filter(is_former).count() == 1,
        "the new node is the former one: {list}"
    );
    Ok(())
}
