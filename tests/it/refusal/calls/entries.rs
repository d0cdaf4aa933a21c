//! Registration entries that must not be, and calls about entries that are not there.

use anyhow::{Result, ensure};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetAuthorizedEntriesRequest, GetEntryRequest, ListEntriesRequest, count_entries_request,
    list_entries_request,
};
use proto::spire::api::types::{Entry, SelectorMatch, Spiffeid};
use tonic::transport::Channel;

use super::{Answers, answer, foreign, item, selector, spiffe_id};

fn entry() -> Entry {
    Entry {
        spiffe_id: spiffe_id("/web"),
        parent_id: spiffe_id("/node"),
        selectors: vec![selector("unix", "uid:1")],
        ..Entry::default()
    }
}

/// A valid entry with one change.
fn with(change: impl FnOnce(&mut Entry)) -> Entry {
    let mut entry = entry();
    change(&mut entry);
    entry
}

fn shouting() -> Option<Spiffeid> {
    Some(Spiffeid {
        trust_domain: "Ex ample".to_owned(),
        path: "/a".to_owned(),
    })
}

/// Entries with one fault each, and its name.
fn bad_entries() -> Vec<(&'static str, Entry)> {
    vec![
        ("no SPIFFE ID", with(|entry| entry.spiffe_id = None)),
        ("no parent ID", with(|entry| entry.parent_id = None)),
        (
            "foreign SPIFFE ID",
            with(|entry| entry.spiffe_id = foreign("/web")),
        ),
        (
            "foreign parent ID",
            with(|entry| entry.parent_id = foreign("/node")),
        ),
        (
            "dot segment",
            with(|entry| entry.spiffe_id = spiffe_id("/a/../b")),
        ),
        (
            "trailing slash",
            with(|entry| entry.spiffe_id = spiffe_id("/a/")),
        ),
        (
            "no leading slash",
            with(|entry| entry.spiffe_id = spiffe_id("a")),
        ),
        (
            "bad path character",
            with(|entry| entry.spiffe_id = spiffe_id("/a b")),
        ),
        (
            "bad trust domain character",
            with(|entry| entry.spiffe_id = shouting()),
        ),
        ("no selectors", with(|entry| entry.selectors = Vec::new())),
        (
            "selector without a type",
            with(|entry| entry.selectors = vec![selector("", "uid:1")]),
        ),
        (
            "selector without a value",
            with(|entry| entry.selectors = vec![selector("unix", "")]),
        ),
        (
            "selector type with a colon",
            with(|entry| entry.selectors = vec![selector("a:b", "c")]),
        ),
        ("negative X.509 TTL", with(|entry| entry.x509_svid_ttl = -1)),
        ("negative JWT TTL", with(|entry| entry.jwt_svid_ttl = -1)),
        (
            "empty DNS name",
            with(|entry| entry.dns_names = vec![String::new()]),
        ),
        (
            "unknown federated trust domain",
            with(|entry| entry.federates_with = vec!["other.org".into()]),
        ),
        (
            "bad federated trust domain",
            with(|entry| entry.federates_with = vec!["Other Org".into()]),
        ),
        (
            "bad entry ID",
            with(|entry| entry.id = "no spaces please".into()),
        ),
        ("long entry ID", with(|entry| entry.id = "x".repeat(256))),
        ("long hint", with(|entry| entry.hint = "h".repeat(1025))),
    ]
}

pub(super) async fn create(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let bad = bad_entries();
    let request = BatchCreateEntryRequest {
        entries: bad.iter().map(|(_, entry)| entry.clone()).collect(),
        ..BatchCreateEntryRequest::default()
    };
    let mut client = EntryClient::new(channel.clone());
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
    Ok(())
}

pub(super) async fn change(channel: &Channel, answers: &mut Answers) -> Result<()> {
    let mut client = EntryClient::new(channel.clone());
    let request = BatchUpdateEntryRequest {
        entries: vec![entry(), with(|entry| entry.id = "absent".into())],
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

pub(super) async fn filters(channel: &Channel, answers: &mut Answers) -> Result<()> {
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
