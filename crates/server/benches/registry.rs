//! What the registry and its store can do: entries created durably, listed, looked up, loaded; and what they weigh.
//!
//! `cargo bench -p plastron-server --bench registry -- [ENTRIES] [POSTGRES_URL | DIRECTORY]`. Without the second it uses
//! SQLite in a temporary directory (TMPDIR says where, and so on which disk). With 0 entries it only loads what is
//! there, which shows the memory that a restarted server needs.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program to be read and run by hand"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use plastron_server::datastore::{Datastore, DatastoreConfig, DatastoreKind, PostgresConfig};
use plastron_server::registry::{EntryFilter, Page, Registry};
use spiffe::clock::SystemClock;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

const BATCH: usize = 50;
const CALLERS: usize = 8;

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"));
    let entries: usize = arguments
        .next()
        .map_or(100_000, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let kind = match arguments.next() {
        Some(url) if url.contains("://") => DatastoreKind::Postgres(PostgresConfig::new(url)),
        Some(kept) => DatastoreKind::Sqlite {
            path: PathBuf::from(kept).join("datastore.sqlite3"),
        },
        None => DatastoreKind::Sqlite {
            path: directory.path().join("datastore.sqlite3"),
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    println!("idle: {} MB", resident_mb());
    if entries > 0 {
        runtime.block_on(write(&kind, entries));
    }
    let began = Instant::now();
    runtime.block_on(async {
        let (_datastore, registry) = open(&kind).await;
        let count = registry.entry_count(&EntryFilter::default());
        let took = began.elapsed().as_secs_f64();
        println!("loaded {count} in {took:.2} s, {} MB", resident_mb());
        reads(&registry, count);
    });
}

async fn write(kind: &DatastoreKind, entries: usize) {
    let (datastore, registry) = open(kind).await;
    let step = (entries / 10).max(BATCH * CALLERS);
    let mut done = registry.entry_count(&EntryFilter::default());
    while done < entries {
        let began = Instant::now();
        fill(&datastore, done, step).await;
        done += step;
        let rate = step as f64 / began.elapsed().as_secs_f64();
        println!(
            "created up to {done}: {rate:.0} entries/s, {} MB",
            resident_mb()
        );
    }
}

async fn open(kind: &DatastoreKind) -> (Datastore, Arc<Registry>) {
    let config = DatastoreConfig::new(kind.clone());
    Datastore::open(
        config,
        trust_domain(),
        Arc::new(SystemClock),
        daemon::telemetry::Telemetry::default(),
    )
    .await
    .unwrap()
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn agent(n: usize) -> SpiffeId {
    SpiffeId::from_path(&trust_domain(), &format!("/spire/agent/join_token/{n:08}")).unwrap()
}

async fn fill(datastore: &Datastore, from: usize, count: usize) {
    let next = Arc::new(AtomicUsize::new(from));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (datastore, next) = (datastore.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    if first >= from + count {
                        return;
                    }
                    let batch = (first..first + BATCH).map(entry).collect();
                    for outcome in datastore.entries.create(batch).await.unwrap() {
                        outcome.unwrap();
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

/// Fifty entries to an agent, each with a selector of its own and a common one.
fn entry(n: usize) -> Entry {
    let selectors = vec![
        Selector::parse(&format!("unix:uid:{n}")).unwrap(),
        Selector::parse("k8s:ns:production").unwrap(),
    ];
    Entry {
        id: Arc::from(""),
        spiffe_id: SpiffeId::from_path(&trust_domain(), &format!("/ns/production/sa/workload-{n}"))
            .unwrap(),
        parent_id: agent(n / 50),
        selectors: SelectorSet::from(selectors),
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        hint: String::new(),
        created_at: 0,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn reads(registry: &Registry, count: usize) {
    let began = Instant::now();
    let rounds = 100_000;
    let mut found = 0;
    for n in 0..rounds {
        found += registry
            .authorized_entries(&agent(n % (count / 50).max(1)))
            .len();
    }
    let rate = f64::from(u32::try_from(rounds).unwrap()) / began.elapsed().as_secs_f64();
    println!(
        "authorized_entries: {rate:.0}/s on one core, {} entries each",
        found / rounds
    );

    let began = Instant::now();
    let mut page = Page {
        size: 1_000,
        token: String::new(),
    };
    let mut listed = 0;
    loop {
        let listing = registry.entries(&EntryFilter::default(), &page).unwrap();
        listed += listing.items.len();
        if listing.next_token.is_empty() {
            break;
        }
        page.token = listing.next_token;
    }
    println!(
        "listed {listed} in pages of 1000: {:.0} entries/s",
        listed as f64 / began.elapsed().as_secs_f64()
    );
}

fn resident_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        / 1024
}
