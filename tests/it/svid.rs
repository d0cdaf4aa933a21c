//! From a join token to an SVID in a workload's hands.

use anyhow::{Result, ensure};
use harness::deployment::{CHANGE, own_user};
use harness::{Deployment, Entry, id};
use serde_json::Value;

#[test]
fn workload_gets_its_svid_after_registration() -> Result<()> {
    let deployment = Deployment::start()?;
    let answer = deployment.register("/web")?;
    ensure!(
        answer
            .pointer("/svids/0/x509_svid")
            .and_then(Value::as_str)
            .is_some_and(|der| der.len() > 100),
        "{answer}"
    );
    Ok(())
}

#[test]
fn unregistered_workload_is_denied() -> Result<()> {
    let deployment = Deployment::start()?;
    let ran = deployment.agent.cli(&["api", "fetch", "x509"])?;
    ensure!(
        ran.code == 1 && ran.text().contains("no identity issued"),
        "{ran:?}"
    );
    Ok(())
}

#[test]
fn workload_with_two_entries_gets_both_identities() -> Result<()> {
    let deployment = Deployment::start()?;
    for path in ["/one", "/two"] {
        deployment
            .server
            .create_entry(&Entry::new(&Deployment::node(), &id(path), &own_user()))?;
    }
    deployment
        .agent
        .wait_for_ids(&[&id("/one"), &id("/two")], CHANGE)?;
    Ok(())
}
