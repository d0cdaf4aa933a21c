//! Malformed calls on the admin socket get the codes and texts that SPIRE's clients expect.
//!
//! `calls.txt` has one line a call: its name and what SPIRE answers. Items of batches answer one by one. With
//! `PLASTRON_TEST_BLESS` the file is written instead: with SPIRE only.

mod entries;
mod others;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use harness::{Server, ServerOptions, TRUST_DOMAIN, rpc};
use proto::spire::api::types::{Selector, Spiffeid, Status as ItemStatus};
use tonic::{Code, Status};

type Answers = BTreeMap<String, String>;

fn spiffe_id(path: &str) -> Option<Spiffeid> {
    Some(Spiffeid {
        trust_domain: TRUST_DOMAIN.to_owned(),
        path: path.to_owned(),
    })
}

fn foreign(path: &str) -> Option<Spiffeid> {
    Some(Spiffeid {
        trust_domain: "elsewhere.org".to_owned(),
        path: path.to_owned(),
    })
}

fn selector(kind: &str, value: &str) -> Selector {
    Selector {
        r#type: kind.to_owned(),
        value: value.to_owned(),
    }
}

/// What a call answered, in one line.
fn answer<T>(result: Result<tonic::Response<T>, Status>) -> String {
    match result {
        Ok(_) => "Ok".to_owned(),
        Err(status) => line(status.code(), status.message()),
    }
}

fn item(status: Option<&ItemStatus>) -> String {
    status.map_or_else(
        || "no status".to_owned(),
        |status| line(Code::from(status.code), &status.message),
    )
}

fn line(code: Code, message: &str) -> String {
    format!("{code:?} {}", message.replace('\n', "\\n"))
}

/// Error texts of decoders differ by language; what precedes them is what clients match on.
const DECODERS: [&str; 6] = [
    "failed to parse CSR: ",
    "failed to verify CSR signature: ",
    "failed to convert X.509 authority: ",
    "unable to parse X.509 authority: ",
    "malformed CSR: ",
    "JWT authority: ",
];

/// Calls that SPIRE refuses with Internal and a text of its database: that they are refused is what counts.
const REFUSED: [&str; 3] = [
    "bad page token",
    "empty selector set",
    "unknown federated trust domain",
];

fn transcript(name: &str, answer: &str) -> String {
    let answer = match answer {
        refusal if refusal != "Ok" && REFUSED.iter().any(|call| name.ends_with(call)) => "refused",
        other => without_decoder(other).trim(),
    };
    format!("{name} => {answer}")
}

fn without_decoder(text: &str) -> &str {
    DECODERS
        .iter()
        .find_map(|marker| {
            text.find(marker)
                .and_then(|at| text.get(..at + marker.len() - 2))
        })
        .unwrap_or(text)
}

#[tokio::test]
async fn malformed_calls_get_the_expected_answers() -> Result<()> {
    let server = Server::start(ServerOptions::default())?;
    let channel = rpc::unix(&server.socket()).await?;
    let mut answers = Answers::new();
    entries::create(&channel, &mut answers).await?;
    entries::change(&channel, &mut answers).await?;
    entries::filters(&channel, &mut answers).await?;
    others::agents(&channel, &mut answers).await?;
    others::bundles(&channel, &mut answers).await?;
    others::garbage_in_bundles(&channel, &mut answers).await?;
    others::svids(&channel, &mut answers).await?;

    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("it/refusal/calls.txt");
    let found: Vec<String> = answers
        .iter()
        .map(|(name, answer)| transcript(name, answer))
        .collect();
    if std::env::var_os("PLASTRON_TEST_BLESS").is_some() {
        return Ok(std::fs::write(path, found.join("\n") + "\n")?);
    }
    let expected = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let differences: Vec<String> = found
        .iter()
        .zip(expected.lines())
        // An answer may say more than SPIRE's.
        .filter(|(found, expected)| !found.starts_with(expected))
        .map(|(found, expected)| format!("\n  expected {expected}\n  found    {found}"))
        .collect();
    ensure!(
        differences.is_empty() && found.len() == expected.lines().count(),
        "{}",
        differences.concat()
    );
    let count = server.json(&["entry", "count"])?;
    ensure!(
        count.get("count").and_then(serde_json::Value::as_i64) == Some(0),
        "something was written: {count}"
    );
    Ok(())
}
