//! JWT-SVIDs through the agent's command line.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harness::deployment::{CHANGE, own_user};
use harness::{Deployment, Entry, id};
use serde_json::{Value, json};

fn fetch(deployment: &Deployment, audience: &str) -> Result<String> {
    let answer = deployment
        .agent
        .cli(&[
            "api",
            "fetch",
            "jwt",
            "-audience",
            audience,
            "-output",
            "json",
        ])?
        .json()?;
    let token = answer.pointer("/0/svids/0/svid").and_then(Value::as_str);
    Ok(token
        .with_context(|| format!("no token in {answer}"))?
        .to_owned())
}

fn part(token: &str, at: usize) -> Result<Value> {
    let part = token
        .split('.')
        .nth(at)
        .context("a token has three parts")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
}

fn validate(deployment: &Deployment, token: &str, audience: &str) -> Result<harness::Ran> {
    deployment.agent.cli(&[
        "api",
        "validate",
        "jwt",
        "-audience",
        audience,
        "-svid",
        token,
    ])
}

#[test]
fn wa_01_wa_21_token_names_subject_audience_and_life() -> Result<()> {
    let deployment = Deployment::start()?;
    deployment.register("/web")?;
    let token = fetch(&deployment, "one,two")?;
    let claims = part(&token, 1)?;
    ensure!(claims.get("sub") == Some(&json!(id("/web"))), "{claims}");
    ensure!(
        claims.get("aud") == Some(&json!(["one", "two"])),
        "{claims}"
    );
    let (issued, expires) = (
        claims.get("iat").and_then(Value::as_i64),
        claims.get("exp").and_then(Value::as_i64),
    );
    ensure!(
        issued
            .zip(expires)
            .is_some_and(|(issued, expires)| expires - issued == 300),
        "{claims}"
    );
    let header = part(&token, 0)?;
    ensure!(
        header.get("alg") == Some(&json!("ES256")) && header.get("typ") == Some(&json!("JWT")),
        "{header}"
    );
    ensure!(
        header
            .get("kid")
            .and_then(Value::as_str)
            .is_some_and(|kid| !kid.is_empty()),
        "{header}"
    );
    for audience in ["one", "two"] {
        validate(&deployment, &token, audience)?.ok()?;
    }
    Ok(())
}

#[test]
fn token_is_kept_for_its_audience_alone() -> Result<()> {
    let deployment = Deployment::start()?;
    deployment.register("/web")?;
    let first = fetch(&deployment, "one")?;
    ensure!(
        fetch(&deployment, "one")? == first,
        "the second call got another token"
    );
    ensure!(
        fetch(&deployment, "two")? != first,
        "another audience got the same token"
    );
    Ok(())
}

#[test]
fn entry_decides_the_life_of_the_token() -> Result<()> {
    let entry = Entry::new(&Deployment::node(), &id("/web"), &own_user()).flag("-jwtSVIDTTL", "77");
    let deployment = Deployment::start()?;
    deployment.server.create_entry(&entry)?;
    deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?;
    let claims = part(&fetch(&deployment, "aud")?, 1)?;
    let life = claims
        .get("exp")
        .and_then(Value::as_i64)
        .zip(claims.get("iat").and_then(Value::as_i64));
    ensure!(
        life.is_some_and(|(expires, issued)| expires - issued == 77),
        "{claims}"
    );
    Ok(())
}

#[test]
fn changed_token_is_refused() -> Result<()> {
    let deployment = Deployment::start()?;
    deployment.register("/web")?;
    let token = fetch(&deployment, "aud")?;
    let (rest, signature) = token.rsplit_once('.').context("three parts")?;
    let (header, _) = rest.split_once('.').context("three parts")?;
    let mut claims = part(&token, 1)?;
    claims
        .as_object_mut()
        .context("claims")?
        .insert("sub".into(), json!(id("/admin")));
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    for forged in [
        format!("{header}.{claims}.{signature}"),
        format!("{rest}."),
        format!("{unsigned}.{claims}."),
        "a.b.c".to_owned(),
    ] {
        let ran = validate(&deployment, &forged, "aud")?;
        ensure!(
            ran.code == 1 && ran.text().contains("SVID is not valid"),
            "{forged}: {ran:?}"
        );
    }
    Ok(())
}
