//! What a workload gets after a change, after a long rest, and when time withdraws its identity.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use harness::agent::ids_of;
use harness::deployment::{CHANGE, own_user};
use harness::{Deployment, Entry, Ran, id, wait};
use serde_json::Value;

/// Below the five seconds and more that callers waited in vain.
const SOON: &str = "2s";

fn brief(path: &str, life: Duration) -> Result<Entry> {
    let entry = Entry::new(&Deployment::node(), &id(path), &own_user());
    Ok(entry.flag("-entryExpiry", &wait::unix_time(life)?))
}

fn fetch(deployment: &Deployment) -> Result<Ran> {
    deployment
        .agent
        .cli(&["api", "fetch", "x509", "-timeout", SOON, "-output", "json"])
}

/// The first SVID's certificates, DER.
fn chain(answer: &Value) -> Result<Vec<u8>> {
    let text = answer.pointer("/svids/0/x509_svid").and_then(Value::as_str);
    Ok(STANDARD.decode(text.with_context(|| format!("no SVID in {answer}"))?)?)
}

fn token(deployment: &Deployment) -> Result<String> {
    let answer = deployment
        .agent
        .cli(&[
            "api",
            "fetch",
            "jwt",
            "-audience",
            "x",
            "-timeout",
            SOON,
            "-output",
            "json",
        ])?
        .json()?;
    let token = answer.pointer("/0/svids/0/svid").and_then(Value::as_str);
    Ok(token
        .with_context(|| format!("no token in {answer}"))?
        .to_owned())
}

fn expiry_of(token: &str) -> Result<u64> {
    let claims = token.split('.').nth(1).context("no claims")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let expiry = claims.get("exp").and_then(Value::as_u64);
    expiry.with_context(|| format!("no expiry in {claims}"))
}

fn is_denied(ran: &Ran) -> bool {
    !ran.succeeded() && ran.text().contains("no identity issued")
}

#[test]
fn an_expired_entry_is_withdrawn_by_the_agent_also_while_the_server_is_away() -> Result<()> {
    let mut deployment = Deployment::start()?;
    let life = Duration::from_secs(8);
    let expiry: u64 = wait::unix_time(life)?.parse()?;
    deployment.server.create_entry(&brief("/brief", life)?)?;
    deployment.agent.wait_for_ids(&[&id("/brief")], CHANGE)?;
    let expires = expiry_of(&token(&deployment)?)?;
    ensure!(
        expires <= expiry + 1,
        "the token expires at {expires}, its entry at {expiry}"
    );
    deployment.server.stop()?;
    wait::until("the entry to be withdrawn", CHANGE, || {
        let ran = fetch(&deployment)?;
        if is_denied(&ran) {
            return Ok(Some(()));
        }
        bail!("{ran:?}")
    })?;
    let refused =
        deployment
            .agent
            .cli(&["api", "fetch", "jwt", "-audience", "x", "-timeout", SOON])?;
    ensure!(is_denied(&refused), "{refused:?}");
    let log = deployment.agent.process()?.log();
    ensure!(log.contains("registration entry expired"), "{log}");
    Ok(())
}

#[test]
fn an_entry_that_expires_while_the_server_restarts_does_not_come_back() -> Result<()> {
    let mut deployment = Deployment::start()?;
    let stays = Entry::new(&Deployment::node(), &id("/stays"), &own_user());
    deployment.server.create_entry(&stays)?;
    let life = Duration::from_secs(6);
    deployment.server.create_entry(&brief("/brief", life)?)?;
    deployment
        .agent
        .wait_for_ids(&[&id("/brief"), &id("/stays")], CHANGE)?;
    deployment.server.stop()?;
    wait::pause(life);
    deployment.server.launch()?;
    // A later entry shows that the agent follows the server again.
    let later = Entry::new(&Deployment::node(), &id("/later"), &own_user());
    deployment.server.create_entry(&later)?;
    deployment
        .agent
        .wait_for_ids(&[&id("/stays"), &id("/later")], CHANGE * 2)?;
    Ok(())
}

#[test]
fn nobody_waits_for_an_entry_that_expired_before_it_was_fetched() -> Result<()> {
    let deployment = Deployment::start()?;
    let life = Duration::from_secs(2);
    deployment.server.create_entry(&brief("/brief", life)?)?;
    wait::pause(life);
    let alone = fetch(&deployment)?;
    ensure!(is_denied(&alone), "{alone:?}");
    deployment.register("/lasting")?;
    let answer = fetch(&deployment)?.json()?;
    ensure!(ids_of(&answer) == [id("/lasting")], "{answer}");
    Ok(())
}

#[test]
fn the_first_fetch_after_an_update_of_the_entry_gets_the_new_certificate() -> Result<()> {
    let deployment = Deployment::start()?;
    let entry = Entry::new(&Deployment::node(), &id("/web"), &own_user());
    let entry_id = deployment.server.create_entry(&entry)?;
    deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?;
    for round in 0..5 {
        let name = format!("name-{round}.example");
        deployment
            .server
            .cli(&[
                "entry",
                "update",
                "-entryID",
                &entry_id,
                "-parentID",
                &Deployment::node(),
                "-spiffeID",
                &id("/web"),
                "-selector",
                &own_user(),
                "-dns",
                &name,
            ])?
            .ok()?;
        let der = chain(&fetch(&deployment)?.json()?)?;
        ensure!(
            der.windows(name.len())
                .any(|bytes| bytes == name.as_bytes()),
            "round {round}: the certificate is one from before the update"
        );
    }
    Ok(())
}

#[test]
fn who_fetches_once_after_a_long_rest_gets_a_certificate_with_most_of_its_life_left() -> Result<()>
{
    let deployment = Deployment::start()?;
    let entry = Entry::new(&Deployment::node(), &id("/job"), &own_user());
    deployment
        .server
        .create_entry(&entry.flag("-x509SVIDTTL", "30"))?;
    let first = chain(&deployment.agent.wait_for_ids(&[&id("/job")], CHANGE)?)?;
    // Beyond half of its life, which begins ten seconds before it was issued, and before its end.
    wait::pause(Duration::from_secs(20));
    let after = chain(&fetch(&deployment)?.json()?)?;
    ensure!(first != after, "the certificate is near its end");
    Ok(())
}

#[test]
fn with_a_server_that_hangs_cached_svids_and_tokens_come_in_time() -> Result<()> {
    let mut deployment = Deployment::start()?;
    let entry = Entry::new(&Deployment::node(), &id("/web"), &own_user())
        .flag("-jwtSVIDTTL", "20")
        .flag("-x509SVIDTTL", "30");
    deployment.server.create_entry(&entry)?;
    let svid = chain(&deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?)?;
    let before = token(&deployment)?;
    // Beyond half of the life of both.
    wait::pause(Duration::from_secs(14));
    deployment.server.process()?.signal(libc::SIGSTOP)?;
    let hanging = (token(&deployment), fetch(&deployment));
    deployment.server.process()?.signal(libc::SIGCONT)?;
    ensure!(hanging.0? == before, "the token is not the cached one");
    ensure!(
        chain(&hanging.1?.json()?)? == svid,
        "the certificate is not the cached one"
    );
    // The renewal went on behind.
    wait::until("the renewed token", CHANGE, || {
        if token(&deployment)? == before {
            bail!("still the one of before");
        }
        Ok(Some(()))
    })
}
