//! Workloads of different languages prove their identities to each other.

use anyhow::{Context, Result, ensure};
use harness::clients::{Client, Language, objects};
use harness::deployment::running;
use harness::{Deployment, Entry, ServerOptions, id};
use serde_json::json;

/// A deployment in which each client is identified by the file it runs.
fn deployment_of(clients: &[&Client]) -> Result<Deployment> {
    let mut entries = Vec::new();
    for client in clients {
        entries.push(Entry::new(
            &Deployment::node(),
            &name(client),
            &running(&client.executable()?)?,
        ));
    }
    Deployment::start_with(ServerOptions::default(), &entries, |_| {})
}

fn name(client: &Client) -> String {
    id(&format!("/{:?}", client.language).to_lowercase())
}

/// Each greets the other over mutual TLS, first one listening, then the other.
fn greet_each_other(one: Language, other: Language) -> Result<()> {
    let (one, other) = (Client::of(one)?, Client::of(other)?);
    let deployment = deployment_of(&[&one, &other])?;
    for (server, dialer) in [(&one, &other), (&other, &one)] {
        let (listening, address) = server.serve(&deployment.agent, &name(dialer))?;
        let answer = dialer.one(
            &deployment.agent,
            &["dial", "--address", &address, "--peer", &name(server)],
        )?;
        let greeting = format!("hello from {}\n", name(server));
        ensure!(
            answer == json!({ "peer": name(server), "message": greeting }),
            "{answer}"
        );
        let seen = objects(&listening.log());
        ensure!(
            seen.contains(&json!({ "peer": name(dialer) })),
            "the server saw {seen:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs clients that tests/run builds"]
fn go_and_python_greet_each_other() -> Result<()> {
    greet_each_other(Language::Go, Language::Python)
}

#[test]
#[ignore = "needs clients that tests/run builds"]
fn go_and_java_greet_each_other() -> Result<()> {
    greet_each_other(Language::Go, Language::Java)
}

#[test]
#[ignore = "needs clients that tests/run builds"]
fn node_and_go_greet_each_other() -> Result<()> {
    greet_each_other(Language::Node, Language::Go)
}

#[test]
#[ignore = "needs clients that tests/run builds"]
fn go_refuses_a_peer_with_another_id() -> Result<()> {
    let (go, python) = (Client::of(Language::Go)?, Client::of(Language::Python)?);
    let deployment = deployment_of(&[&go, &python])?;
    let (listening, address) = go.serve(&deployment.agent, &id("/somebody"))?;
    let refused = python.one(
        &deployment.agent,
        &["dial", "--address", &address, "--peer", &name(&go)],
    );
    refused.err().context("the server greeted a stranger")?;
    let seen = objects(&listening.log());
    ensure!(
        seen.iter().all(|line| line.get("peer").is_none()),
        "{seen:?}"
    );
    Ok(())
}
