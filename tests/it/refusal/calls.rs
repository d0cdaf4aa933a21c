//! Malformed calls on the admin socket get the codes and texts that SPIRE's clients expect.
//!
//! `calls.txt` has one line a call: its name and what SPIRE answers. Items of batches answer one by one. With
//! `PLASTRON_TEST_BLESS` the file is written instead: with SPIRE only.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use harness::{Server, ServerOptions, TRUST_DOMAIN, rpc};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, list_agents_request,
};
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetAuthorizedEntriesRequest, GetEntryRequest, ListEntriesRequest, count_entries_request,
    list_entries_request,
};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, MintJwtsvidRequest, MintX509svidRequest, NewDownstreamX509caRequest,
    NewJwtsvidRequest,
};
use proto::spire::api::types::{
    Bundle, Entry, JwtKey, Selector, SelectorMatch, Spiffeid, Status as ItemStatus, X509Certificate,
};
use tonic::transport::Channel;
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

fn entry() -> Entry {
    Entry {
        spiffe_id: spiffe_id("/web"),
        parent_id: spiffe_id("/node"),
        selectors: vec![selector("unix", "uid:1")],
        ..Entry::default()
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

async fn entries(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = EntryClient::new(channel.clone());
    let bad: Vec<(&str, Entry)> = vec![
        (
            "no SPIFFE ID",
            Entry {
                spiffe_id: None,
                ..entry()
            },
        ),
        (
            "no parent ID",
            Entry {
                parent_id: None,
                ..entry()
            },
        ),
        (
            "foreign SPIFFE ID",
            Entry {
                spiffe_id: foreign("/web"),
                ..entry()
            },
        ),
        (
            "foreign parent ID",
            Entry {
                parent_id: foreign("/node"),
                ..entry()
            },
        ),
        (
            "dot segment",
            Entry {
                spiffe_id: spiffe_id("/a/../b"),
                ..entry()
            },
        ),
        (
            "trailing slash",
            Entry {
                spiffe_id: spiffe_id("/a/"),
                ..entry()
            },
        ),
        (
            "no leading slash",
            Entry {
                spiffe_id: spiffe_id("a"),
                ..entry()
            },
        ),
        (
            "bad path character",
            Entry {
                spiffe_id: spiffe_id("/a b"),
                ..entry()
            },
        ),
        (
            "bad trust domain character",
            Entry {
                spiffe_id: Some(Spiffeid {
                    trust_domain: "Ex ample".to_owned(),
                    path: "/a".to_owned(),
                }),
                ..entry()
            },
        ),
        (
            "no selectors",
            Entry {
                selectors: Vec::new(),
                ..entry()
            },
        ),
        (
            "selector without a type",
            Entry {
                selectors: vec![selector("", "uid:1")],
                ..entry()
            },
        ),
        (
            "selector without a value",
            Entry {
                selectors: vec![selector("unix", "")],
                ..entry()
            },
        ),
        (
            "selector type with a colon",
            Entry {
                selectors: vec![selector("a:b", "c")],
                ..entry()
            },
        ),
        (
            "negative X.509 TTL",
            Entry {
                x509_svid_ttl: -1,
                ..entry()
            },
        ),
        (
            "negative JWT TTL",
            Entry {
                jwt_svid_ttl: -1,
                ..entry()
            },
        ),
        (
            "empty DNS name",
            Entry {
                dns_names: vec![String::new()],
                ..entry()
            },
        ),
        (
            "DNS name with a space",
            Entry {
                dns_names: vec!["a b".to_owned()],
                ..entry()
            },
        ),
        (
            "unknown federated trust domain",
            Entry {
                federates_with: vec!["other.org".to_owned()],
                ..entry()
            },
        ),
        (
            "bad federated trust domain",
            Entry {
                federates_with: vec!["Other Org".to_owned()],
                ..entry()
            },
        ),
        (
            "federates with itself",
            Entry {
                federates_with: vec![TRUST_DOMAIN.to_owned()],
                ..entry()
            },
        ),
        (
            "bad entry ID",
            Entry {
                id: "no spaces please".to_owned(),
                ..entry()
            },
        ),
        (
            "long entry ID",
            Entry {
                id: "x".repeat(256),
                ..entry()
            },
        ),
        (
            "bad hint",
            Entry {
                hint: "h".repeat(1025),
                ..entry()
            },
        ),
    ];
    let request = BatchCreateEntryRequest {
        entries: bad.iter().map(|(_, entry)| entry.clone()).collect(),
        ..BatchCreateEntryRequest::default()
    };
    let results = client
        .batch_create_entry(request)
        .await?
        .into_inner()
        .results;
    ensure!(
        results.len() == bad.len(),
        "{} results for {} entries",
        results.len(),
        bad.len()
    );
    for ((name, _), result) in bad.iter().zip(&results) {
        answers.insert(
            format!("create entry: {name}"),
            item(result.status.as_ref()),
        );
    }
    let request = BatchUpdateEntryRequest {
        entries: vec![
            entry(),
            Entry {
                id: "absent".to_owned(),
                ..entry()
            },
        ],
        ..BatchUpdateEntryRequest::default()
    };
    let results = client
        .batch_update_entry(request)
        .await?
        .into_inner()
        .results;
    for (name, result) in ["no ID", "absent"].iter().zip(&results) {
        answers.insert(
            format!("update entry: {name}"),
            item(result.status.as_ref()),
        );
    }
    let request = BatchDeleteEntryRequest {
        ids: vec![String::new(), "absent".to_owned()],
    };
    let results = client
        .batch_delete_entry(request)
        .await?
        .into_inner()
        .results;
    for (name, result) in ["no ID", "absent"].iter().zip(&results) {
        answers.insert(
            format!("delete entry: {name}"),
            item(result.status.as_ref()),
        );
    }
    for (name, id) in [("no ID", ""), ("absent", "absent")] {
        let request = GetEntryRequest {
            id: id.to_owned(),
            ..GetEntryRequest::default()
        };
        answers.insert(
            format!("get entry: {name}"),
            answer(client.get_entry(request).await),
        );
    }
    let request = GetAuthorizedEntriesRequest::default();
    answers.insert(
        "authorized entries: not an agent".into(),
        answer(client.get_authorized_entries(request).await),
    );
    Ok(())
}

async fn entry_filters(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = EntryClient::new(channel.clone());
    use list_entries_request::Filter;
    let filters = [
        (
            "foreign parent",
            Filter {
                by_parent_id: foreign("/node"),
                ..Filter::default()
            },
        ),
        (
            "bad SPIFFE ID",
            Filter {
                by_spiffe_id: spiffe_id("x"),
                ..Filter::default()
            },
        ),
        (
            "empty selector set",
            Filter {
                by_selectors: Some(SelectorMatch::default()),
                ..Filter::default()
            },
        ),
        (
            "bad selector",
            Filter {
                by_selectors: Some(SelectorMatch {
                    selectors: vec![selector("", "x")],
                    r#match: 0,
                }),
                ..Filter::default()
            },
        ),
    ];
    for (name, filter) in filters {
        let request = ListEntriesRequest {
            filter: Some(filter),
            ..ListEntriesRequest::default()
        };
        answers.insert(
            format!("list entries: {name}"),
            answer(client.list_entries(request).await),
        );
    }
    let request = ListEntriesRequest {
        page_size: 2,
        page_token: "nonsense".to_owned(),
        ..ListEntriesRequest::default()
    };
    answers.insert(
        "list entries: bad page token".into(),
        answer(client.list_entries(request).await),
    );
    let filter = count_entries_request::Filter {
        by_parent_id: foreign("/x"),
        ..Default::default()
    };
    let request = CountEntriesRequest {
        filter: Some(filter),
    };
    answers.insert(
        "count entries: foreign parent".into(),
        answer(client.count_entries(request).await),
    );
    Ok(())
}

async fn agents(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = AgentClient::new(channel.clone());
    for (name, id) in [
        ("no ID", None),
        ("foreign", foreign("/spire/agent/x")),
        ("not an agent", spiffe_id("/web")),
        ("absent", spiffe_id("/spire/agent/join_token/absent")),
    ] {
        let request = GetAgentRequest {
            id: id.clone(),
            ..GetAgentRequest::default()
        };
        answers.insert(
            format!("get agent: {name}"),
            answer(client.get_agent(request).await),
        );
        answers.insert(
            format!("ban agent: {name}"),
            answer(client.ban_agent(BanAgentRequest { id: id.clone() }).await),
        );
        answers.insert(
            format!("delete agent: {name}"),
            answer(client.delete_agent(DeleteAgentRequest { id }).await),
        );
    }
    let filter = list_agents_request::Filter {
        by_selector_match: Some(SelectorMatch::default()),
        ..Default::default()
    };
    let request = ListAgentsRequest {
        filter: Some(filter),
        ..ListAgentsRequest::default()
    };
    answers.insert(
        "list agents: empty selector set".into(),
        answer(client.list_agents(request).await),
    );
    let request = ListAgentsRequest {
        page_size: 2,
        page_token: "nonsense".to_owned(),
        ..ListAgentsRequest::default()
    };
    answers.insert(
        "list agents: bad page token".into(),
        answer(client.list_agents(request).await),
    );
    for (name, ttl, agent_id) in [
        ("no TTL", 0, None),
        ("negative TTL", -1, None),
        ("foreign alias", 60, foreign("/node")),
        ("bad alias", 60, spiffe_id("node")),
    ] {
        let request = CreateJoinTokenRequest {
            ttl,
            agent_id,
            ..CreateJoinTokenRequest::default()
        };
        answers.insert(
            format!("join token: {name}"),
            answer(client.create_join_token(request).await),
        );
    }
    let request = CreateJoinTokenRequest {
        ttl: 60,
        token: "taken".to_owned(),
        ..CreateJoinTokenRequest::default()
    };
    client.create_join_token(request.clone()).await?;
    answers.insert(
        "join token: taken".into(),
        answer(client.create_join_token(request).await),
    );
    Ok(())
}

async fn bundles(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = BundleClient::new(channel.clone());
    for (name, trust_domain) in [
        ("own", TRUST_DOMAIN),
        ("absent", "other.org"),
        ("bad", "Other Org"),
        ("none", ""),
    ] {
        let trust_domain = trust_domain.to_owned();
        let request = GetFederatedBundleRequest {
            trust_domain: trust_domain.clone(),
            ..Default::default()
        };
        answers.insert(
            format!("get bundle: {name}"),
            answer(client.get_federated_bundle(request).await),
        );
        let bundle = Bundle {
            trust_domain: trust_domain.clone(),
            ..Bundle::default()
        };
        if name != "absent" {
            let request = BatchCreateFederatedBundleRequest {
                bundle: vec![bundle],
                ..Default::default()
            };
            let results = client
                .batch_create_federated_bundle(request)
                .await?
                .into_inner()
                .results;
            answers.insert(
                format!("create bundle: {name}"),
                item(results.first().and_then(|result| result.status.as_ref())),
            );
        }
        let request = BatchDeleteFederatedBundleRequest {
            trust_domains: vec![trust_domain],
            mode: 0,
        };
        let results = client
            .batch_delete_federated_bundle(request)
            .await?
            .into_inner()
            .results;
        answers.insert(
            format!("delete bundle: {name}"),
            item(results.first().and_then(|result| result.status.as_ref())),
        );
    }
    let garbage = X509Certificate {
        asn1: b"garbage".to_vec(),
        ..X509Certificate::default()
    };
    let key = JwtKey {
        public_key: b"garbage".to_vec(),
        key_id: "k".to_owned(),
        ..JwtKey::default()
    };
    let bad = [
        (
            "garbage certificate",
            Bundle {
                x509_authorities: vec![garbage.clone()],
                ..Bundle::default()
            },
        ),
        (
            "garbage JWT key",
            Bundle {
                jwt_authorities: vec![key.clone()],
                ..Bundle::default()
            },
        ),
        (
            "JWT key without an ID",
            Bundle {
                jwt_authorities: vec![JwtKey {
                    key_id: String::new(),
                    ..key.clone()
                }],
                ..Bundle::default()
            },
        ),
    ];
    for (name, bundle) in bad {
        let bundle = Bundle {
            trust_domain: "other.org".to_owned(),
            ..bundle
        };
        let request = BatchSetFederatedBundleRequest {
            bundle: vec![bundle],
            ..Default::default()
        };
        let results = client
            .batch_set_federated_bundle(request)
            .await?
            .into_inner()
            .results;
        answers.insert(
            format!("set bundle: {name}"),
            item(results.first().and_then(|result| result.status.as_ref())),
        );
    }
    let request = AppendBundleRequest {
        x509_authorities: vec![garbage],
        ..Default::default()
    };
    answers.insert(
        "append bundle: garbage certificate".into(),
        answer(client.append_bundle(request).await),
    );
    answers.insert(
        "append bundle: nothing".into(),
        answer(client.append_bundle(AppendBundleRequest::default()).await),
    );
    let request = ListFederatedBundlesRequest {
        page_size: 2,
        page_token: "nonsense".to_owned(),
        ..Default::default()
    };
    answers.insert(
        "list bundles: bad page token".into(),
        answer(client.list_federated_bundles(request).await),
    );
    Ok(())
}

fn request(uris: &[&str], dns: &[&str]) -> Result<Vec<u8>> {
    let mut parameters = rcgen::CertificateParams::default();
    for uri in uris {
        parameters
            .subject_alt_names
            .push(rcgen::SanType::URI((*uri).try_into()?));
    }
    for name in dns {
        parameters
            .subject_alt_names
            .push(rcgen::SanType::DnsName((*name).try_into()?));
    }
    let key = rcgen::KeyPair::generate()?;
    Ok(parameters.serialize_request(&key)?.der().to_vec())
}

async fn svids(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = SvidClient::new(channel.clone());
    let own = format!("spiffe://{TRUST_DOMAIN}/x");
    let mut tampered = request(&[&own], &[])?;
    if let Some(last) = tampered.last_mut() {
        *last ^= 1;
    }
    let requests = [
        ("nothing", Vec::new(), 0),
        ("garbage", b"garbage".to_vec(), 0),
        ("wrong signature", tampered, 0),
        ("no URI", request(&[], &[])?, 0),
        (
            "two URIs",
            request(&[&own, "spiffe://example.org/y"], &[])?,
            0,
        ),
        (
            "foreign URI",
            request(&["spiffe://elsewhere.org/x"], &[])?,
            0,
        ),
        (
            "not a SPIFFE ID",
            request(&["https://example.org/x"], &[])?,
            0,
        ),
        (
            "trust domain ID",
            request(&["spiffe://example.org"], &[])?,
            0,
        ),
    ];
    for (name, csr, ttl) in requests {
        let result = client.mint_x509svid(MintX509svidRequest { csr, ttl }).await;
        answers.insert(format!("mint X509-SVID: {name}"), answer(result));
    }
    for (name, id, audience) in [
        ("no ID", None, vec!["aud"]),
        ("foreign", foreign("/x"), vec!["aud"]),
        ("no audience", spiffe_id("/x"), vec![]),
    ] {
        let audience = audience.into_iter().map(str::to_owned).collect();
        let request = MintJwtsvidRequest {
            id,
            audience,
            ttl: 0,
        };
        answers.insert(
            format!("mint JWT-SVID: {name}"),
            answer(client.mint_jwtsvid(request).await),
        );
    }
    let request = BatchNewX509svidRequest::default();
    answers.insert(
        "new X509-SVIDs: not an agent".into(),
        answer(client.batch_new_x509svid(request).await),
    );
    let request = NewJwtsvidRequest {
        entry_id: "x".to_owned(),
        audience: vec!["aud".to_owned()],
    };
    answers.insert(
        "new JWT-SVID: not an agent".into(),
        answer(client.new_jwtsvid(request).await),
    );
    let request = NewDownstreamX509caRequest::default();
    answers.insert(
        "new downstream CA: not downstream".into(),
        answer(client.new_downstream_x509ca(request).await),
    );
    Ok(())
}

/// Error texts of decoders differ by language; what precedes them is what clients match on.
const DECODERS: [&str; 4] = [
    "failed to parse CSR: ",
    "unable to parse X.509 authority: ",
    "malformed CSR: ",
    "JWT authority: ",
];

/// SPIRE answers a page token of nobody's with Internal; that it is refused is what counts.
fn told(name: &str, answer: &str) -> String {
    let answer = match answer {
        refusal if name.ends_with("bad page token") && refusal != "Ok" => "refused",
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
    entries(&channel, &mut answers).await?;
    entry_filters(&channel, &mut answers).await?;
    agents(&channel, &mut answers).await?;
    bundles(&channel, &mut answers).await?;
    svids(&channel, &mut answers).await?;

    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("it/refusal/calls.txt");
    let found: Vec<String> = answers
        .iter()
        .map(|(name, answer)| format!("{name} => {}", without_decoder(answer).trim()))
        .collect();
    if std::env::var_os("PLASTRON_TEST_BLESS").is_some() {
        return Ok(std::fs::write(path, found.join("\n") + "\n")?);
    }
    let expected = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let differences: Vec<String> = found
        .iter()
        .zip(expected.lines())
        .filter(|(found, expected)| found.as_str() != *expected)
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
