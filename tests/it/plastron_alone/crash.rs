//! SIGKILL of the server in the middle of writes: what it acknowledged is there, and its change log has no gap.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::postgres::PostgresDatabase;
use harness::{Database, Server, ServerOptions, TRUST_DOMAIN, rpc};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, ListEntriesRequest,
};
use proto::spire::api::types::{Entry, Selector, Spiffeid};

const KILLS: u32 = 50;
const WRITERS: u32 = 4;

/// What the server has promised.
#[derive(Debug, Default)]
struct Promises {
    /// Entry ID to SPIFFE ID path.
    present: BTreeMap<String, String>,
    absent: BTreeSet<String>,
    /// Deletions that were asked for and not answered: either outcome is right.
    unknown: BTreeSet<String>,
}

type Shared = Arc<Mutex<Promises>>;

fn spiffe_id(path: &str) -> Option<Spiffeid> {
    Some(Spiffeid {
        trust_domain: TRUST_DOMAIN.to_owned(),
        path: path.to_owned(),
    })
}

fn entry(path: &str) -> Entry {
    Entry {
        spiffe_id: spiffe_id(path),
        parent_id: spiffe_id("/node"),
        selectors: vec![Selector {
            r#type: "unix".to_owned(),
            value: "uid:70000".to_owned(),
        }],
        ..Entry::default()
    }
}

/// Creates and deletes until the server is gone.
async fn write(socket: &Path, name: String, promises: &Shared) -> Result<()> {
    let mut client = EntryClient::new(rpc::unix(socket).await?);
    let locked = || promises.lock().unwrap_or_else(PoisonError::into_inner);
    for batch in 0_u32.. {
        let paths: Vec<String> = (0..5).map(|at| format!("/{name}/{batch}/{at}")).collect();
        let entries = paths.iter().map(|path| entry(path)).collect();
        let request = BatchCreateEntryRequest {
            entries,
            ..BatchCreateEntryRequest::default()
        };
        let results = client
            .batch_create_entry(request)
            .await?
            .into_inner()
            .results;
        let mut ids = Vec::new();
        for (result, path) in results.into_iter().zip(paths) {
            ensure!(
                result.status.is_some_and(|status| status.code == 0),
                "not created"
            );
            let id = result.entry.context("no entry")?.id;
            locked().present.insert(id.clone(), path);
            ids.push(id);
        }
        let gone = ids.first().context("an entry")?.clone();
        locked().present.remove(&gone);
        locked().unknown.insert(gone.clone());
        let request = BatchDeleteEntryRequest {
            ids: vec![gone.clone()],
        };
        let results = client
            .batch_delete_entry(request)
            .await?
            .into_inner()
            .results;
        ensure!(
            results
                .first()
                .and_then(|result| result.status.as_ref())
                .is_some_and(|status| status.code == 0)
        );
        locked().unknown.remove(&gone);
        locked().absent.insert(gone);
    }
    Ok(())
}

/// What the server has now.
async fn read(socket: &Path) -> Result<BTreeMap<String, String>> {
    let mut client = EntryClient::new(rpc::unix(socket).await?);
    let mut found = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest {
            page_size: 1000,
            page_token,
            ..ListEntriesRequest::default()
        };
        let page = client.list_entries(request).await?.into_inner();
        for entry in page.entries {
            found.insert(
                entry.id,
                entry.spiffe_id.map(|id| id.path).unwrap_or_default(),
            );
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(found);
        }
    }
}

fn check(promises: &Promises, found: &BTreeMap<String, String>) -> Result<()> {
    for (id, path) in &promises.present {
        ensure!(
            found.get(id) == Some(path),
            "acknowledged entry {path} is lost"
        );
    }
    for id in &promises.absent {
        ensure!(!found.contains_key(id), "deleted entry {id} is back");
    }
    Ok(())
}

async fn kill_again_and_again(database: Database) -> Result<Server> {
    let mut server = Server::start(ServerOptions {
        database,
        ..ServerOptions::default()
    })?;
    let promises = Shared::default();
    for kill in 0..KILLS {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (socket, promises) = (server.socket(), Arc::clone(&promises));
            writers
                .spawn(async move { write(&socket, format!("{kill}-{writer}"), &promises).await });
        }
        // A different moment each time, from the first write on.
        tokio::time::sleep(Duration::from_millis(u64::from(kill * 37 % 100) + 15)).await;
        server.kill()?;
        while let Some(ended) = writers.join_next().await {
            // Each ends with the error of its broken connection.
            ensure!(ended?.is_err(), "a writer ended without an error");
        }
        server.launch()?;
        let found = read(&server.socket()).await?;
        check(
            &promises.lock().unwrap_or_else(PoisonError::into_inner),
            &found,
        )
        .with_context(|| format!("after kill {}", kill + 1))?;
    }
    let promised = promises
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .present
        .len();
    ensure!(
        promised > 500,
        "only {promised} entries were acknowledged: the test has no weight"
    );
    server.stop()?;
    Ok(server)
}

/// The revisions in the change log are all the numbers up to the counter.
fn has_no_gap(revisions: &[i64], counter: i64) -> Result<()> {
    ensure!(
        revisions.last() == Some(&counter),
        "the log ends at {:?}, the counter is {counter}",
        revisions.last()
    );
    for (before, after) in revisions.iter().zip(revisions.iter().skip(1)) {
        ensure!(before + 1 == *after, "a gap between {before} and {after}");
    }
    Ok(())
}

const REVISIONS: &str = "SELECT DISTINCT revision FROM changes ORDER BY revision";
const COUNTER: &str = "SELECT revision FROM revision";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_what_was_acknowledged() -> Result<()> {
    let server = kill_again_and_again(Database::Sqlite).await?;
    let connection = rusqlite::Connection::open(server.data_dir().join("datastore.sqlite3"))?;
    let revisions: Vec<i64> = connection
        .prepare(REVISIONS)?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    has_no_gap(
        &revisions,
        connection.query_row(COUNTER, [], |row| row.get(0))?,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the PostgreSQL that tests/run starts"]
async fn postgresql_keeps_what_was_acknowledged() -> Result<()> {
    let database = PostgresDatabase::create()?;
    let server = kill_again_and_again(Database::Postgres(database.url())).await?;
    let numbers = |query: &str| -> Result<Vec<i64>> {
        database
            .column(query)?
            .iter()
            .map(|number| Ok(number.parse()?))
            .collect()
    };
    has_no_gap(
        &numbers(REVISIONS)?,
        *numbers(COUNTER)?.first().context("a counter")?,
    )?;
    drop(server);
    Ok(())
}
