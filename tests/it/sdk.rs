//! The published SDKs of five languages, unmodified, against the running agent.
//!
//! `tests/run` builds the clients; so a plain `cargo test` ignores all but Rust's, which is a dependency of this package.

mod mtls;
mod rust;

use anyhow::{Context, Result, ensure};
use harness::clients::{Client, Language};
use harness::deployment::own_user;
use harness::{Deployment, Entry, ServerOptions, TRUST_DOMAIN, id};
use serde_json::{Value, json};

/// An entry for every process of this user, present before the agent attests.
fn workload() -> Entry {
    Entry::new(&Deployment::node(), &id("/web"), &own_user())
}

/// A deployment in which a workload's X509-SVID lives a few seconds.
fn short_lived() -> Result<Deployment> {
    let entry = workload().flag("-x509SVIDTTL", "12");
    Deployment::start_with(ServerOptions::default(), &[entry], |_| {})
}

fn fetches_and_validates(language: Language) -> Result<()> {
    let client = Client::of(language)?;
    let deployment = Deployment::start_with(ServerOptions::default(), &[workload()], |_| {})?;
    let agent = &deployment.agent;

    let x509 = client.one(agent, &["x509"])?;
    ensure!(
        x509.pointer("/svids/0/id") == Some(&json!(id("/web"))),
        "{x509}"
    );
    ensure!(
        x509.get("bundles") == Some(&json!({ TRUST_DOMAIN: 1 })),
        "{x509}"
    );

    let jwt = client.one(agent, &["jwt", "--audience", "aud"])?;
    ensure!(jwt.get("id") == Some(&json!(id("/web"))), "{jwt}");
    ensure!(jwt.get("audience") == Some(&json!(["aud"])), "{jwt}");

    let token = jwt
        .get("token")
        .and_then(Value::as_str)
        .context("no token")?;
    let valid = client.one(agent, &["validate", "--token", token, "--audience", "aud"])?;
    ensure!(valid.get("id") == Some(&json!(id("/web"))), "{valid}");
    let refusal = client.one(
        agent,
        &["validate", "--token", token, "--audience", "other"],
    );
    let refusal = refusal
        .err()
        .context("a token for another audience was accepted")?;
    ensure!(format!("{refusal:#}").contains("audience"), "{refusal:#}");

    let bundles = client.one(agent, &["bundles"])?;
    ensure!(
        bundles == json!({ "x509": { TRUST_DOMAIN: 1 }, "jwt": { TRUST_DOMAIN: 1 } }),
        "{bundles}"
    );
    Ok(())
}

fn follows_a_rotation(language: Language) -> Result<()> {
    let client = Client::of(language)?;
    let deployment = short_lived()?;
    let updates = client.run(
        &deployment.agent,
        &["watch", "--count", "3", "--timeout", "60"],
    )?;
    ensure!(updates.len() == 3, "{updates:?}");
    let field = |at: usize, name: &str| {
        updates
            .get(at)
            .and_then(|update| update.pointer(&format!("/svids/0/{name}")))
            .cloned()
    };
    for at in 1..3 {
        ensure!(
            field(at, "serial") != field(at - 1, "serial"),
            "{updates:?}"
        );
        let later = field(at, "not_after").and_then(|value| value.as_f64());
        let earlier = field(at - 1, "not_after").and_then(|value| value.as_f64());
        ensure!(
            later > earlier,
            "the new SVID does not live longer: {updates:?}"
        );
    }
    Ok(())
}

fn is_denied_without_an_entry(language: Language) -> Result<()> {
    let client = Client::of(language)?;
    let deployment = Deployment::start()?;
    let refusal = client
        .one(&deployment.agent, &["x509"])
        .err()
        .context("an identity without an entry")?;
    ensure!(
        format!("{refusal:#}").contains("no identity issued"),
        "{refusal:#}"
    );
    Ok(())
}

macro_rules! language {
    ($module:ident, $language:expr) => {
        mod $module {
            use super::Language;

            #[test]
            #[ignore = "needs a client that tests/run builds"]
            fn fetches_and_validates() -> anyhow::Result<()> {
                super::fetches_and_validates($language)
            }

            #[test]
            #[ignore = "needs a client that tests/run builds"]
            fn follows_a_rotation() -> anyhow::Result<()> {
                super::follows_a_rotation($language)
            }

            #[test]
            #[ignore = "needs a client that tests/run builds"]
            fn is_denied_without_an_entry() -> anyhow::Result<()> {
                super::is_denied_without_an_entry($language)
            }
        }
    };
}

language!(go, Language::Go);
language!(java, Language::Java);
language!(python, Language::Python);
language!(node, Language::Node);
