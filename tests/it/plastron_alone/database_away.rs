//! PostgreSQL goes away under a running server: stopped, or frozen with all its connections.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::agent::ids_of;
use harness::deployment::{CHANGE, own_user};
use harness::{Database, Deployment, Entry, PostgresServer, ServerOptions, id, wait};

/// The smallest bound that is kept.
const STALENESS: &str = "max_attested_node_info_staleness = \"5s\"";
/// Within this a database that hangs is noticed, and one that is back is found again.
const NOTICED: Duration = Duration::from_secs(20);

fn served(deployment: &Deployment) -> Result<()> {
    let answer = deployment.agent.fetch_x509()?;
    ensure!(ids_of(&answer) == [id("/web")], "{answer}");
    Ok(())
}

fn is_healthy(deployment: &Deployment) -> Result<bool> {
    Ok(deployment.server.cli(&["healthcheck"])?.succeeded())
}

/// What holds whichever way the database goes and comes back.
fn survives(
    go: impl FnOnce(&mut PostgresServer) -> Result<()>,
    come_back: impl FnOnce(&mut PostgresServer) -> Result<()>,
) -> Result<()> {
    let mut database = PostgresServer::start()?;
    let options = ServerOptions {
        database: Database::Postgres(database.socket_string("postgres")),
        settings: format!("  {STALENESS}"),
        ..ServerOptions::default()
    };
    let mut deployment = Deployment::start_with(options, &[], |_| {})?;
    deployment.register("/web")?;
    ensure!(
        is_healthy(&deployment)?,
        "healthy while the database is there"
    );
    go(&mut database)?;
    wait::until("the server to say that it is not ready", NOTICED, || {
        Ok((!is_healthy(&deployment)?).then_some(()))
    })?;
    served(&deployment)?;
    let entry = Entry::new(&Deployment::node(), &id("/new"), &own_user());
    let refused = deployment.server.create_entry(&entry);
    let refused = refused.err().context("an entry was created")?;
    ensure!(
        format!("{refused:#}").contains("out of reach"),
        "{refused:#}"
    );
    wait::until("the agent to be refused", NOTICED, || {
        let log = deployment.agent.process()?.log();
        Ok(log
            .contains("has not been able to confirm its state")
            .then_some(()))
    })?;
    served(&deployment)?;
    come_back(&mut database)?;
    wait::until("the server to be ready again", NOTICED, || {
        Ok(is_healthy(&deployment)?.then_some(()))
    })?;
    served(&deployment)?;
    deployment.server.create_entry(&entry)?;
    deployment
        .agent
        .wait_for_ids(&[&id("/web"), &id("/new")], CHANGE)?;
    let log = deployment.server.process()?.log();
    for once in [
        "the database is away",
        "agents are refused until",
        "takes writes again",
    ] {
        let times = log.matches(once).count();
        ensure!(times == 1, "{once:?} is in the log {times} times:\n{log}");
    }
    Ok(())
}

#[test]
#[ignore = "needs PostgreSQL's programs"]
fn a_database_that_is_stopped_and_started_again_costs_no_workload_its_identity() -> Result<()> {
    survives(PostgresServer::stop, PostgresServer::launch)
}

#[test]
#[ignore = "needs PostgreSQL's programs"]
fn a_database_that_is_frozen_and_thawed_costs_no_workload_its_identity() -> Result<()> {
    survives(|database| database.freeze(), |database| database.thaw())
}
