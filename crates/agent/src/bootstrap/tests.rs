use config::Document;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;
use crate::config::{Config, Overrides};
use crate::testing::bundle;

fn config(trust: &str) -> NodeConfig {
    let text = format!(
        "agent {{\n trust_domain = \"example.org\"\n server_address = \"srv\"\n server_port = 8081\n {trust}\n }}\n\
         plugins {{\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n KeyManager \"memory\" {{ plugin_data {{}} }}\n\
         WorkloadAttestor \"unix\" {{ plugin_data {{}} }}\n }}"
    );
    let document = Document::parse("agent.conf", &text, None).unwrap();
    Config::from_document(&document, &Overrides::default())
        .unwrap_or_else(|faults| panic!("{faults}"))
        .node
}

async fn get(config: &NodeConfig) -> Result<Trust, BootstrapError> {
    trust(config, 3, crate::testing::at(0)).await
}

/// A web server on a Unix socket that gives one answer, and what it was asked.
fn web(path: &Path, answer: Vec<u8>) -> tokio::task::JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).await.unwrap();
        stream.write_all(&answer).await.ok();
        String::from_utf8(asked[..length].to_vec()).unwrap()
    })
}

fn http(status: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn over_socket(path: &Path, more: &str) -> NodeConfig {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    config(&format!(
        "trust_bundle_url = \"http://localhost/bundle?a=1\"\n trust_bundle_unix_socket = \"{}\"\n {more}",
        path.display()
    ))
}

#[tokio::test]
async fn both_formats_are_read_from_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bundle("example.org").to_pem()).unwrap();
    let pem = config(&format!(
        "trust_bundle_path = \"{}\"",
        file.path().display()
    ));
    assert!(
        matches!(get(&pem).await, Ok(Trust::Bundle(found)) if found.x509_authorities.len() == 1)
    );
    std::fs::write(file.path(), bundle("example.org").to_spiffe_json()).unwrap();
    let spiffe = config(&format!(
        "trust_bundle_path = \"{}\"\n trust_bundle_format = \"spiffe\"",
        file.path().display()
    ));
    assert!(
        matches!(get(&spiffe).await, Ok(Trust::Bundle(found)) if found.x509_authorities.len() == 1)
    );
    assert!(
        matches!(get(&pem).await, Err(BootstrapError::Permanent(_))),
        "the wrong format"
    );
}

#[tokio::test]
async fn a_web_server_on_a_unix_socket_is_told_who_asks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    let asked = web(
        &path,
        http("200 OK", bundle("example.org").to_pem().as_bytes()),
    );
    assert!(matches!(
        get(&over_socket(&path, "")).await,
        Ok(Trust::Bundle(_))
    ));
    let asked = asked.await.unwrap();
    for part in [
        "a=1",
        "spire-attest-mode=bootstrap",
        "spire-connection-attempts=3",
        "spire-attest-start-time=2027-01-15T08%3A00%3A00Z",
        "spire-server-address=srv",
        "spire-server-port=8081",
        "spiffe-trust-domain=example.org",
    ] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
}

#[tokio::test]
async fn errors_of_the_web_server_may_pass_but_its_garbage_will_not() {
    let directory = tempfile::tempdir().unwrap();
    for (number, (answer, permanent)) in [
        (http("500 Oops", b"x"), false),
        (http("404 Not Found", b""), false),
        (http("200 OK", b"garbage"), true),
        (http("200 OK", b""), true),
        (Vec::new(), false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = directory.path().join(format!("web{number}.sock"));
        web(&path, answer);
        match get(&over_socket(&path, "")).await {
            Err(BootstrapError::Permanent(fault)) => assert!(permanent, "{number}: {fault}"),
            Err(BootstrapError::Transient(fault)) => assert!(!permanent, "{number}: {fault}"),
            Ok(_) => panic!("{number}: must fail"),
        }
    }
    let nobody = over_socket(&directory.path().join("nobody.sock"), "");
    assert!(
        matches!(get(&nobody).await, Err(BootstrapError::Transient(fault)) if fault.code == Code::BootstrapUrlFailed)
    );
}

#[tokio::test]
async fn an_agent_above_that_is_not_there_may_come() {
    let directory = tempfile::tempdir().unwrap();
    let above = config(&format!(
        "trust_bundle_spiffe_workload_api = \"unix://{}/none.sock\"",
        directory.path().display()
    ));
    assert!(matches!(
        get(&above).await,
        Err(BootstrapError::Transient(_))
    ));
}
