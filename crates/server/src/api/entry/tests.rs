use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetAuthorizedEntriesRequest, GetEntryRequest, ListEntriesRequest, SyncAuthorizedEntriesRequest,
    SyncAuthorizedEntriesResponse, count_entries_request, list_entries_request,
};
use proto::spire::api::types::{self, EntryMask};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::testing::{Identity, TestServer, entry, wire_id, wire_selector};

type Spoil = fn(&mut types::Entry);

fn agent_mask() -> EntryMask {
    proto::convert::agent_entry_mask()
}

/// What spoils an entry, and the status that it then gets.
const BAD: [(Spoil, i32, &str); 9] = [
    (
        |entry| entry.parent_id = None,
        3,
        "failed to convert entry: invalid parent ID: request must specify SPIFFE ID",
    ),
    (
        |entry| entry.spiffe_id = None,
        3,
        "failed to convert entry: invalid spiffe ID: request must specify SPIFFE ID",
    ),
    (
        |entry| entry.spiffe_id = Some(wire_id("/spire/agent/x")),
        3,
        "path is in the reserved namespace",
    ),
    (
        |entry| entry.selectors.clear(),
        3,
        "failed to convert entry: selector list is empty",
    ),
    (
        |entry| entry.selectors[0].value.clear(),
        3,
        "missing selector value",
    ),
    (
        |entry| entry.dns_names.push("*".to_owned()),
        3,
        "invalid DNS name",
    ),
    (
        |entry| entry.federates_with.push("unknown.example".to_owned()),
        3,
        "unable to find federated bundle",
    ),
    (
        |entry| entry.hint = "x".repeat(1025),
        3,
        "hint is too long, max length is 1024 characters",
    ),
    (|entry| entry.x509_svid_ttl = -1, 3, "X509SvidTtl"),
];

#[tokio::test]
async fn refuses_each_bad_entry_of_a_batch_and_creates_the_good() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let mut entries = vec![entry("/spire/agent/x", "/first")];
    for (index, (spoil, ..)) in BAD.iter().enumerate() {
        let mut bad = entry("/spire/agent/x", &format!("/bad/{index}"));
        spoil(&mut bad);
        entries.push(bad);
    }
    entries.push(entry("/spire/agent/x", "/last"));
    let request = BatchCreateEntryRequest {
        entries,
        output_mask: None,
    };
    let results = client
        .batch_create_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(results.len(), BAD.len() + 2);
    for (result, (_, code, text)) in results[1..].iter().zip(BAD) {
        let status = result.status.clone().unwrap();
        assert_eq!(status.code, code, "{status:?}");
        assert!(status.message.contains(text), "{status:?} lacks {text}");
        assert!(result.entry.is_none());
    }
    for (result, path) in [
        (&results[0], "/first"),
        (&results[results.len() - 1], "/last"),
    ] {
        assert_eq!(result.status.clone().unwrap().code, 0);
        let made = result.entry.clone().unwrap();
        assert_eq!(
            (made.spiffe_id.unwrap().path.as_str(), made.revision_number),
            (path, 0)
        );
        assert!(!made.id.is_empty() && made.created_at > 0);
    }
    let count = client
        .count_entries(CountEntriesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .count;
    assert_eq!(count, 2);
}

#[tokio::test]
async fn answers_a_similar_entry_with_the_one_that_is_there() {
    let server = TestServer::start().await;
    let first = server.create(entry("/spire/agent/x", "/web")).await;
    let mut client = EntryClient::new(server.local().await);
    let mut again = entry("/spire/agent/x", "/web");
    again.hint = "another".to_owned();
    let request = BatchCreateEntryRequest {
        entries: vec![again.clone(), again],
        output_mask: None,
    };
    for result in client
        .batch_create_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results
    {
        let status = result.status.unwrap();
        assert_eq!(
            (status.code, status.message.as_str()),
            (6, "similar entry already exists")
        );
        assert_eq!(result.entry.unwrap().id, first.id);
    }
}

#[tokio::test]
async fn updates_what_the_mask_names_and_counts_the_revision() {
    let server = TestServer::start().await;
    let made = server.create(entry("/spire/agent/x", "/web")).await;
    let mut client = EntryClient::new(server.local().await);
    let change = types::Entry {
        id: made.id.clone(),
        hint: "new".to_owned(),
        ..types::Entry::default()
    };
    let mask = EntryMask {
        hint: true,
        ..EntryMask::default()
    };
    let request = BatchUpdateEntryRequest {
        entries: vec![change],
        input_mask: Some(mask),
        output_mask: None,
    };
    let result = client
        .batch_update_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    let updated = result.entry.unwrap();
    assert_eq!((updated.hint.as_str(), updated.revision_number), ("new", 1));
    assert_eq!(
        (updated.selectors, updated.spiffe_id),
        (made.selectors, made.spiffe_id)
    );
}

#[tokio::test]
async fn refuses_updates_item_by_item() {
    let server = TestServer::start().await;
    let made = server.create(entry("/spire/agent/x", "/web")).await;
    let mut client = EntryClient::new(server.local().await);
    let missing = types::Entry {
        id: "nosuch".to_owned(),
        ..entry("/spire/agent/x", "/other")
    };
    let sparse = types::Entry {
        id: made.id,
        ..types::Entry::default()
    };
    let request = BatchUpdateEntryRequest {
        entries: vec![missing, sparse],
        input_mask: None,
        output_mask: None,
    };
    let results = client
        .batch_update_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let statuses: Vec<_> = results
        .into_iter()
        .map(|result| result.status.unwrap())
        .collect();
    assert_eq!(
        (statuses[0].code, statuses[0].message.as_str()),
        (5, "failed to update entry")
    );
    assert_eq!(statuses[1].code, 3);
    assert!(
        statuses[1]
            .message
            .starts_with("failed to convert entry: invalid parent ID"),
        "{}",
        statuses[1].message
    );
}

#[tokio::test]
async fn refuses_to_find_and_delete_what_is_not_there() {
    let server = TestServer::start().await;
    let made = server.create(entry("/spire/agent/x", "/web")).await;
    let mut client = EntryClient::new(server.local().await);
    let get = |id: &str| GetEntryRequest {
        id: id.to_owned(),
        output_mask: None,
    };
    let refused = client.get_entry(get("")).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "missing ID")
    );
    let refused = client.get_entry(get("nosuch")).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "entry not found")
    );
    let ids = vec![String::new(), "nosuch".to_owned(), made.id.clone()];
    let results = client
        .batch_delete_entry(BatchDeleteEntryRequest { ids })
        .await
        .unwrap()
        .into_inner()
        .results;
    let statuses: Vec<_> = results
        .into_iter()
        .map(|result| result.status.unwrap())
        .collect();
    assert_eq!(
        (statuses[0].code, statuses[0].message.as_str()),
        (3, "missing entry ID")
    );
    assert_eq!(
        (statuses[1].code, statuses[1].message.as_str()),
        (5, "entry not found")
    );
    assert_eq!((statuses[2].code, statuses[2].message.as_str()), (0, "OK"));
    assert_eq!(
        client.get_entry(get(&made.id)).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn refuses_filters_and_pages_that_mean_nothing() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let list = |change: fn(&mut list_entries_request::Filter)| {
        let mut filter = list_entries_request::Filter::default();
        change(&mut filter);
        ListEntriesRequest {
            filter: Some(filter),
            ..ListEntriesRequest::default()
        }
    };
    let cases = [
        (
            list(|filter| filter.by_parent_id = Some(wire_id(""))),
            "malformed parent ID filter: ",
        ),
        (
            list(|filter| filter.by_spiffe_id = Some(wire_id("/spire/server"))),
            "malformed SPIFFE ID filter: ",
        ),
        (
            list(|filter| filter.by_selectors = Some(types::SelectorMatch::default())),
            "malformed selectors filter: empty selector set",
        ),
        (
            list(|filter| filter.by_federates_with = Some(types::FederatesWithMatch::default())),
            "malformed federates with filter: empty trust domain set",
        ),
        (
            list(|filter| {
                let trust_domains = vec!["BAD!".to_owned()];
                filter.by_federates_with = Some(types::FederatesWithMatch {
                    trust_domains,
                    r#match: 0,
                });
            }),
            "malformed federates with filter: ",
        ),
        (
            ListEntriesRequest {
                page_size: 1,
                page_token: "x".to_owned(),
                ..ListEntriesRequest::default()
            },
            "failed to list entries: could not parse token 'x'",
        ),
    ];
    for (request, text) in cases {
        let refused = client.list_entries(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused.message().starts_with(text),
            "{refused} lacks {text}"
        );
    }
    let filter = count_entries_request::Filter {
        by_selectors: Some(types::SelectorMatch {
            selectors: vec![wire_selector("")],
            r#match: 0,
        }),
        ..count_entries_request::Filter::default()
    };
    let refused = client
        .count_entries(CountEntriesRequest {
            filter: Some(filter),
        })
        .await
        .unwrap_err();
    assert_eq!(
        refused.message(),
        "malformed selectors filter: missing selector value"
    );
}

#[tokio::test]
async fn answers_a_page_of_any_size_without_making_room_for_it() {
    let server = TestServer::start().await;
    server.create(entry("/spire/agent/x", "/a")).await;
    server.create(entry("/spire/agent/x", "/b")).await;
    let mut client = EntryClient::new(server.local().await);
    for page_size in [i32::MAX, 0, -1, i32::MIN] {
        let request = ListEntriesRequest {
            page_size,
            ..ListEntriesRequest::default()
        };
        let answer = client.list_entries(request).await.unwrap().into_inner();
        assert_eq!(
            (answer.entries.len(), answer.next_page_token.as_str()),
            (2, "")
        );
    }
}

#[tokio::test]
async fn shows_agents_their_own_entries_only() {
    let server = TestServer::start().await;
    let (one, other) = (server.agent().await, server.agent().await);
    let mine = server.entry(&one, "/mine").await;
    server.entry(&other, "/theirs").await;
    let mut client = EntryClient::new(server.remote(Some(&one)).await);
    let request = GetAuthorizedEntriesRequest {
        output_mask: Some(agent_mask()),
    };
    let entries = client
        .get_authorized_entries(request)
        .await
        .unwrap()
        .into_inner()
        .entries;
    assert_eq!(
        entries
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>(),
        [mine.id.as_str()]
    );
    assert!(
        entries[0].parent_id.is_none(),
        "the mask leaves the parent out"
    );
}

struct Sync {
    requests: mpsc::Sender<SyncAuthorizedEntriesRequest>,
    answers: tonic::Streaming<SyncAuthorizedEntriesResponse>,
}

async fn sync(
    server: &TestServer,
    agent: &Identity,
    first: SyncAuthorizedEntriesRequest,
) -> Result<Sync, Status> {
    let mut client = EntryClient::new(server.remote(Some(agent)).await);
    let (requests, stream) = mpsc::channel(8);
    requests.send(first).await.unwrap();
    let answers = client
        .sync_authorized_entries(ReceiverStream::new(stream))
        .await?
        .into_inner();
    Ok(Sync { requests, answers })
}

fn first(mask: Option<EntryMask>) -> SyncAuthorizedEntriesRequest {
    SyncAuthorizedEntriesRequest {
        output_mask: mask,
        ids: Vec::new(),
    }
}

#[tokio::test]
async fn syncs_a_short_list_in_one_message_and_ends() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    server.entry(&node, "/web").await;
    let mut sync = sync(&server, &node, first(Some(agent_mask())))
        .await
        .unwrap();
    let answer = sync.answers.message().await.unwrap().unwrap();
    assert_eq!(
        (
            answer.entries.len(),
            answer.entry_revisions.len(),
            answer.more
        ),
        (1, 0, false)
    );
    assert!(sync.answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn syncs_a_long_list_as_revisions_and_then_what_is_asked_for() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let mut client = EntryClient::new(server.local().await);
    let entries: Vec<_> = (0..501)
        .map(|n| entry(node.id.path(), &format!("/w/{n}")))
        .collect();
    client
        .batch_create_entry(BatchCreateEntryRequest {
            entries,
            output_mask: None,
        })
        .await
        .unwrap();
    let mut sync = sync(&server, &node, first(Some(agent_mask())))
        .await
        .unwrap();
    let one = sync.answers.message().await.unwrap().unwrap();
    let two = sync.answers.message().await.unwrap().unwrap();
    assert_eq!((one.entry_revisions.len(), one.more), (500, true));
    assert_eq!((two.entry_revisions.len(), two.more), (1, false));
    let mut ids: Vec<_> = one
        .entry_revisions
        .iter()
        .chain(&two.entry_revisions)
        .map(|it| it.id.clone())
        .collect();
    ids.push("nosuch".to_owned());
    sync.requests
        .send(SyncAuthorizedEntriesRequest {
            output_mask: None,
            ids: ids.clone(),
        })
        .await
        .unwrap();
    let one = sync.answers.message().await.unwrap().unwrap();
    let two = sync.answers.message().await.unwrap().unwrap();
    assert_eq!(
        (one.entries.len(), one.more, two.entries.len(), two.more),
        (500, true, 1, false)
    );
    sync.requests
        .send(SyncAuthorizedEntriesRequest {
            output_mask: None,
            ids: ids[..1].to_vec(),
        })
        .await
        .unwrap();
    assert_eq!(
        sync.answers.message().await.unwrap().unwrap().entries.len(),
        1
    );
    drop(sync.requests);
    assert!(sync.answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn refuses_syncs_that_ask_wrongly() {
    let server = TestServer::start().await;
    let node = server.agent().await;
    let ids = SyncAuthorizedEntriesRequest {
        output_mask: None,
        ids: vec!["x".to_owned()],
    };
    let masked = first(Some(EntryMask {
        spiffe_id: true,
        ..EntryMask::default()
    }));
    for (request, text) in [
        (ids, "specifying IDs on initial request is not supported"),
        (masked, "revision number cannot be masked"),
    ] {
        let refused = sync(&server, &node, request).await.map(|_| ()).unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, text)
        );
    }
}

#[tokio::test]
async fn refuses_a_list_that_no_default_client_could_take() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let big = |path: String| types::Entry {
        hint: "x".repeat(1_000),
        dns_names: (0..200)
            .map(|name| format!("{name}.{}.example.org", "y".repeat(60)))
            .collect(),
        ..entry("/spire/agent/x", &path)
    };
    let request = |part: usize| BatchCreateEntryRequest {
        entries: (0..150).map(|one| big(format!("/{part}/{one}"))).collect(),
        output_mask: Some(EntryMask::default()),
    };
    for part in 0..2 {
        client.batch_create_entry(request(part)).await.unwrap();
    }
    let refused = client
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("page_size"), "{refused}");
    let page = ListEntriesRequest {
        page_size: 100,
        ..ListEntriesRequest::default()
    };
    let listed = client.list_entries(page).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 100);
}
