//! Renewal of what expires.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Deployment, ServerOptions, id, wait};
use serde_json::Value;

fn chain(answer: &Value) -> Option<String> {
    Some(answer.pointer("/svids/0/x509_svid")?.as_str()?.to_owned())
}

fn bundle(answer: &Value) -> Option<String> {
    Some(answer.pointer("/svids/0/bundle")?.as_str()?.to_owned())
}

#[test]
fn authority_is_replaced_before_it_expires_and_workloads_follow() -> Result<()> {
    let settings = "  ca_ttl = \"60s\"\n  default_x509_svid_ttl = \"20s\"".to_owned();
    let deployment = Deployment::start_with(
        ServerOptions {
            settings,
            ..ServerOptions::default()
        },
        &[],
        |_| {},
    )?;
    let first = deployment.register("/web")?;
    let old = bundle(&first).context("no bundle")?;
    wait::until(
        "a second authority in the workload's bundle",
        Duration::from_secs(60),
        || {
            let now = bundle(&deployment.agent.fetch_x509()?).context("no bundle")?;
            Ok((now.len() > old.len() + 100).then_some(()))
        },
    )?;
    let count = deployment
        .server
        .bundle()?
        .matches("BEGIN CERTIFICATE")
        .count();
    ensure!(count >= 2, "the server's bundle has {count} authorities");
    Ok(())
}

#[test]
fn svid_is_renewed_before_half_of_its_life_is_left() -> Result<()> {
    let settings = "  default_x509_svid_ttl = \"20s\"".to_owned();
    let deployment = Deployment::start_with(
        ServerOptions {
            settings,
            ..ServerOptions::default()
        },
        &[],
        |_| {},
    )?;
    let first = deployment.register("/web")?;
    ensure!(harness::agent::ids_of(&first) == [id("/web")], "{first}");
    wait::until("another SVID", Duration::from_secs(18), || {
        Ok((chain(&deployment.agent.fetch_x509()?) != chain(&first)).then_some(()))
    })
}
