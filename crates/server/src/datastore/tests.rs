//! What one database alone can show: SQLite's faults and its files.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use daemon::telemetry::Telemetry;
use rusqlite::Connection;
use spiffe::clock::SystemClock;

use super::contract::{Subject, content, create, entry, td};
use super::sqlite::Job;
use super::sqlite::Sqlite;
use super::{
    DEFAULT_STALENESS, Datastore, DatastoreConfig, DatastoreError, DatastoreKind, Settings,
};
use crate::registry::{Condition, EntryFilter, Registry};

fn settings(subject: &Subject) -> Settings {
    Settings {
        telemetry: Telemetry::default(),
        trust_domain: td("example.org"),
        clock: Arc::new(subject.clock.clone()),
        max_staleness: DEFAULT_STALENESS,
    }
}

/// A datastore, and a way to its connection.
async fn open_with_back_door(subject: &Subject) -> (Datastore, Arc<Registry>, BackDoor) {
    let sqlite = Sqlite::open_unlocked(subject.path().unwrap())
        .await
        .unwrap();
    let back_door = BackDoor(sqlite.back_door());
    let (datastore, registry) = Datastore::start(sqlite, settings(subject)).await.unwrap();
    (datastore, registry, back_door)
}

/// Does something to the connection while a datastore uses it.
struct BackDoor(std::sync::mpsc::Sender<Job>);

impl BackDoor {
    fn run(&self, job: impl FnOnce(&mut Connection) + Send + 'static) {
        self.0.send(Box::new(job)).unwrap();
    }

    fn sql(&self, statements: &'static str) {
        let (done, wait) = std::sync::mpsc::channel();
        self.run(move |connection| {
            connection.execute_batch(statements).unwrap();
            done.send(()).unwrap();
        });
        wait.recv().unwrap();
    }
}

/// A datastore on whose connection statements were run.
async fn open_with(subject: &Subject, statements: &'static str) -> (Datastore, Arc<Registry>) {
    let (datastore, registry, back_door) = open_with_back_door(subject).await;
    back_door.sql(statements);
    (datastore, registry)
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_harms_nothing() {
    let subject = Subject::sqlite();
    let (datastore, registry) = open_with(&subject, "PRAGMA max_page_count = 60").await;
    create(&datastore, entry("/spire/agent/x", "/small", &["a:1"])).await;
    let big = (0..3000)
        .map(|n| entry("/spire/agent/x", &format!("/{n}"), &["a:1"]))
        .collect();
    let refused = datastore.entries.create(big).await.unwrap_err();
    assert!(matches!(refused, DatastoreError::Full { .. }), "{refused}");
    assert_eq!(registry.revision(), 1);
    assert_eq!(registry.entry_count(&EntryFilter::default()), 1);
    create(&datastore, entry("/spire/agent/x", "/after", &["a:1"])).await;
    let (_again, reloaded) = subject.open().await;
    assert_eq!(content(&reloaded), content(&registry));
}

#[tokio::test]
async fn a_copy_of_the_file_after_closing_is_a_whole_backup() {
    let subject = Subject::sqlite();
    let (datastore, registry) = subject.open().await;
    create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    datastore.close().await;
    let refused = datastore
        .entries
        .create(vec![entry("/spire/agent/x", "/late", &["a:1"])])
        .await;
    assert!(matches!(refused, Err(DatastoreError::Closed)));
    let copy = Subject::sqlite();
    std::fs::copy(subject.path().unwrap(), copy.path().unwrap()).unwrap();
    let (_datastore, restored) = copy.open().await;
    assert_eq!(content(&restored), content(&registry));
    assert_eq!(restored.entry_count(&EntryFilter::default()), 1);
}

#[tokio::test]
async fn a_database_locked_by_another_process_says_so() {
    let subject = Subject::sqlite();
    let (datastore, registry) = open_with(&subject, "PRAGMA busy_timeout = 20").await;
    let other = Connection::open(subject.path().unwrap()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = datastore
        .entries
        .create(vec![entry("/spire/agent/x", "/web", &["a:1"])])
        .await
        .unwrap_err();
    assert!(matches!(refused, DatastoreError::Locked { .. }));
    assert!(refused.to_string().contains("is locked by another process"));
    other.execute_batch("COMMIT").unwrap();
    create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    assert_eq!(registry.revision(), 1, "the refused write took no revision");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_write_that_the_database_refuses_does_not_harm_its_group() {
    let subject = Subject::sqlite();
    let trap = "CREATE TRIGGER trap BEFORE INSERT ON journals WHEN new.key = 'poison' \
                BEGIN SELECT RAISE(ABORT, 'no'); END";
    let (datastore, registry) = open_with(&subject, trap).await;
    let writers: Vec<_> = (0..30)
        .map(|n| {
            let datastore = datastore.clone();
            let id = if n == 7 {
                "poison".to_owned()
            } else {
                n.to_string()
            };
            tokio::spawn(async move { datastore.journals.save(&id, Vec::new()).await })
        })
        .collect();
    let mut refused = 0;
    for writer in writers {
        refused += usize::from(writer.await.unwrap().is_err());
    }
    assert_eq!(refused, 1);
    assert_eq!(registry.journals().len(), 29);
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_files_of_a_killed_process() {
    let subject = Subject::sqlite();
    let (datastore, registry) = subject.open().await;
    for n in 0..20 {
        create(
            &datastore,
            entry("/spire/agent/x", &format!("/{n}"), &["a:1"]),
        )
        .await;
    }
    // The files as they are, without a clean end: what a kill leaves behind.
    let copy = Subject::sqlite();
    for suffix in ["", "-wal"] {
        let name = |subject: &Subject| format!("{}{suffix}", subject.path().unwrap().display());
        std::fs::copy(name(&subject), name(&copy)).unwrap();
    }
    let (_again, reloaded) = copy.open().await;
    assert_eq!(content(&reloaded), content(&registry));
}

/// Writes until it is killed, naming each entry once it is acknowledged. Run by the next test in a process of its own.
#[tokio::test]
async fn writer_to_be_killed() {
    let Ok(path) = std::env::var("PLASTRON_TEST_KILLED_DATABASE") else {
        return;
    };
    let config = DatastoreConfig::new(DatastoreKind::Sqlite { path: path.into() });
    let (datastore, _) = Datastore::open(
        config,
        td("example.org"),
        Arc::new(SystemClock),
        Telemetry::default(),
    )
    .await
    .unwrap();
    for n in 0.. {
        let made = create(
            &datastore,
            entry("/spire/agent/x", &format!("/{n}"), &["a:1"]),
        )
        .await;
        println!("\nacknowledged {}", made.id);
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let subject = Subject::sqlite();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "datastore::tests::writer_to_be_killed",
            "--nocapture",
        ])
        .env("PLASTRON_TEST_KILLED_DATABASE", subject.path().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    while acknowledged.len() < 100 {
        let line = lines.next().expect("the writer goes on").unwrap();
        acknowledged.extend(line.strip_prefix("acknowledged ").map(str::to_owned));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before the kill came through counts as well.
    let rest = lines.map_while(Result::ok);
    acknowledged
        .extend(rest.filter_map(|line| line.strip_prefix("acknowledged ").map(str::to_owned)));
    // The last line may be cut short.
    acknowledged.pop_if(|id| id.len() != 36);
    let (_again, registry) = subject.open().await;
    for id in &acknowledged {
        assert!(registry.entry(id).is_some(), "{id} was acknowledged");
    }
    assert!(registry.entry_count(&EntryFilter::default()) <= acknowledged.len() + 1);
}

#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_says_it_may_be_read() {
    let subject = Subject::sqlite();
    drop(
        open_with(
            &subject,
            "UPDATE meta SET value = '3' WHERE name = 'schema_version'",
        )
        .await,
    );
    subject.open().await;
    drop(
        open_with(
            &subject,
            "UPDATE meta SET value = '3' WHERE name = 'readable_from'",
        )
        .await,
    );
    let refused = subject.try_open("example.org").await.unwrap_err();
    assert_eq!(
        refused,
        DatastoreError::NewerSchema {
            stored: 3,
            supported: 2
        }
    );
}

#[tokio::test]
async fn another_programs_database_is_refused_and_untouched() {
    let subject = Subject::sqlite();
    let other = Connection::open(subject.path().unwrap()).unwrap();
    other
        .execute_batch("CREATE TABLE attested_node_entries (id INTEGER)")
        .unwrap();
    let refused = subject.try_open("example.org").await.unwrap_err();
    assert!(matches!(refused, DatastoreError::NotOurs { .. }));
    let tables: i64 = other
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let subject = Subject::sqlite();
    std::fs::write(
        subject.path().unwrap(),
        "certainly no database, and long enough to have a header",
    )
    .unwrap();
    let refused = subject.try_open("example.org").await.unwrap_err();
    assert!(matches!(refused, DatastoreError::Open { .. }), "{refused}");
}

#[tokio::test]
async fn an_unreadable_row_names_its_table_and_key() {
    let subject = Subject::sqlite();
    let row = "INSERT INTO entries (row_number, key, revision, body) VALUES (1, 'k', 1, '{')";
    let (_datastore, _) = subject.open().await;
    subject.sql(row).await;
    let refused = subject.try_open("example.org").await.unwrap_err();
    assert!(
        matches!(refused, DatastoreError::Unreadable { table: "entries", key, .. } if key == "k")
    );
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let subject = Subject::sqlite();
    let (_datastore, _) = subject.open().await;
    let mode = std::fs::metadata(subject.path().unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_panic_in_an_operation_ends_the_writer_and_is_noticed() {
    let subject = Subject::sqlite();
    let (datastore, registry) = subject.open().await;
    create(&datastore, entry("/spire/agent/x", "/before", &["a:1"])).await;
    assert_eq!(datastore.poison().await, DatastoreError::Closed);
    datastore.stopped().await;
    let refused = datastore
        .entries
        .create(vec![entry("/spire/agent/x", "/after", &["a:1"])])
        .await;
    assert_eq!(refused.unwrap_err(), DatastoreError::Closed);
    datastore.close().await;
    let (_again, reloaded) = subject.open().await;
    assert_eq!(
        content(&reloaded),
        content(&registry),
        "nothing acknowledged is lost"
    );
}

#[tokio::test]
async fn a_writer_whose_database_thread_died_ends_as_well() {
    let subject = Subject::sqlite();
    let (datastore, _, back_door) = open_with_back_door(&subject).await;
    back_door.run(|_| panic!("killed by a test"));
    datastore.stopped().await;
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_noticed_and_comes_back() {
    let subject = Subject::sqlite();
    let (datastore, registry, back_door) = open_with_back_door(&subject).await;
    back_door.sql("PRAGMA query_only = 1");
    let refused = datastore
        .entries
        .create(vec![entry("/spire/agent/x", "/web", &["a:1"])])
        .await
        .unwrap_err();
    assert!(
        matches!(refused, DatastoreError::ReadOnly { .. }),
        "{refused}"
    );
    let condition = registry.freshness().condition();
    assert!(
        matches!(condition, Condition::Unwritable { .. }),
        "{condition:?}"
    );
    assert!(
        registry.freshness().check().is_ok(),
        "memory is current all the same"
    );
    back_door.sql("PRAGMA query_only = 0");
    let mut conditions = registry.freshness().conditions();
    // No write is needed to find out.
    conditions
        .wait_for(|condition| *condition == Condition::Well)
        .await
        .unwrap();
    create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
}

#[tokio::test]
async fn a_disk_stays_full_until_there_is_space() {
    let subject = Subject::sqlite();
    let (datastore, registry, back_door) = open_with_back_door(&subject).await;
    // Not above the size that it has: full for whatever needs another page.
    back_door.sql("PRAGMA max_page_count = 1");
    let big = (0..500)
        .map(|n| entry("/spire/agent/x", &format!("/{n}"), &["a:1"]))
        .collect();
    let refused = datastore.entries.create(big).await.unwrap_err();
    assert!(matches!(refused, DatastoreError::Full { .. }), "{refused}");
    let mut conditions = registry.freshness().conditions();
    // Each look at the database probes it, and then confirms that memory is current.
    for _look in 0..2 {
        let mut age = registry.freshness().age();
        while registry.freshness().age() >= age {
            age = registry.freshness().age();
            tokio::task::yield_now().await;
        }
        let condition = registry.freshness().condition();
        assert!(
            matches!(condition, Condition::Unwritable { .. }),
            "{condition:?}"
        );
    }
    back_door.sql("PRAGMA max_page_count = 100000");
    conditions
        .wait_for(|condition| *condition == Condition::Well)
        .await
        .unwrap();
    create(&datastore, entry("/spire/agent/x", "/web", &["a:1"])).await;
    back_door.run(|connection| {
        let left: u32 = connection
            .query_row(
                "SELECT count(*) FROM meta WHERE name = 'write_probe'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(left, 0, "the probe is removed");
    });
}

#[tokio::test]
async fn two_servers_on_one_file_are_refused() {
    let subject = Subject::sqlite();
    let open = || {
        let config = DatastoreConfig::new(DatastoreKind::Sqlite {
            path: subject.path().unwrap(),
        });
        Datastore::open(
            config,
            td("example.org"),
            Arc::new(SystemClock),
            Telemetry::default(),
        )
    };
    let (first, _) = open().await.unwrap();
    let refused = open().await.unwrap_err();
    assert!(matches!(refused, DatastoreError::InUse { .. }), "{refused}");
    let fault = config::fault::Fault::from(refused);
    assert_eq!(fault.code, config::fault::Code::DatabaseLocked);
    assert!(fault.to_string().contains("fuser"), "{fault}");
    create(&first, entry("/spire/agent/x", "/web", &["a:1"])).await;
    first.close().await;
    let (_second, registry) = open().await.unwrap();
    assert_eq!(registry.entry_count(&EntryFilter::default()), 1);
}

/// The server's own way to open the file, with its lock.
async fn open_locked(subject: &Subject) -> (Datastore, Arc<Registry>) {
    let config = DatastoreConfig::new(DatastoreKind::Sqlite {
        path: subject.path().unwrap(),
    });
    let clock = Arc::new(subject.clock.clone());
    Datastore::open(config, td("example.org"), clock, Telemetry::default())
        .await
        .unwrap()
}

/// A copy of a file with one entry, and the file again in use with one entry more, still in the write-ahead log.
async fn with_older_copy() -> (Subject, Subject, Datastore, Arc<Registry>, [Arc<str>; 2]) {
    let (subject, copy) = (Subject::sqlite(), Subject::sqlite());
    let (datastore, _) = open_locked(&subject).await;
    let kept = create(&datastore, entry("/spire/agent/x", "/kept", &["a:1"])).await;
    datastore.close().await;
    std::fs::copy(subject.path().unwrap(), copy.path().unwrap()).unwrap();
    let (datastore, registry) = open_locked(&subject).await;
    let lost = create(&datastore, entry("/spire/agent/x", "/lost", &["a:1"])).await;
    let ids = [Arc::clone(&kept.id), Arc::clone(&lost.id)];
    (subject, copy, datastore, registry, ids)
}

#[tokio::test]
async fn a_file_that_is_replaced_by_an_older_copy_is_noticed() {
    let (subject, copy, datastore, registry, [kept, lost]) = with_older_copy().await;
    let mut revisions = registry.subscribe();
    revisions.mark_unchanged();
    std::fs::rename(copy.path().unwrap(), subject.path().unwrap()).unwrap();
    while registry.entry(&lost).is_some() {
        revisions.changed().await.unwrap();
    }
    assert!(registry.entry(&kept).is_some());
    create(&datastore, entry("/spire/agent/x", "/new", &["a:1"])).await;
    let (_fresh, fresh) = subject.open().await;
    assert_eq!(
        content(&fresh),
        content(&registry),
        "it writes to the new file"
    );
}

#[tokio::test]
async fn a_directory_that_is_replaced_by_an_older_copy_is_noticed() {
    let (subject, copy, datastore, registry, [kept, lost]) = with_older_copy().await;
    let directory = subject.path().unwrap().parent().unwrap().to_owned();
    std::fs::rename(&directory, directory.with_extension("aside")).unwrap();
    std::fs::rename(copy.path().unwrap().parent().unwrap(), &directory).unwrap();
    create(&datastore, entry("/spire/agent/x", "/new", &["a:1"])).await;
    std::fs::remove_dir_all(directory.with_extension("aside")).unwrap();
    assert!(registry.entry(&lost).is_none() && registry.entry(&kept).is_some());
    let (_fresh, fresh) = subject.open().await;
    assert_eq!(content(&fresh), content(&registry));
}

#[tokio::test]
async fn no_write_is_acknowledged_that_goes_to_a_replaced_file() {
    let (subject, copy, datastore, registry, [kept, lost]) = with_older_copy().await;
    std::fs::rename(copy.path().unwrap(), subject.path().unwrap()).unwrap();
    // The write comes before the next look at the file.
    let new = create(&datastore, entry("/spire/agent/x", "/new", &["a:1"])).await;
    let (_fresh, fresh) = subject.open().await;
    assert!(fresh.entry(&new.id).is_some(), "it is in the new file");
    assert!(fresh.entry(&kept).is_some());
    assert!(fresh.entry(&lost).is_none(), "the old log was not replayed");
    assert_eq!(content(&fresh), content(&registry));
}

#[tokio::test]
async fn a_replacement_of_another_trust_domain_is_never_written_to() {
    let (subject, copy, datastore, _registry, _) = with_older_copy().await;
    copy.sql("UPDATE meta SET value = 'other.test' WHERE name = 'trust_domain'")
        .await;
    std::fs::rename(copy.path().unwrap(), subject.path().unwrap()).unwrap();
    for _ in 0..2 {
        let refused = datastore
            .entries
            .create(vec![entry("/spire/agent/x", "/new", &["a:1"])])
            .await
            .unwrap_err();
        assert!(
            matches!(refused, DatastoreError::WrongTrustDomain { .. }),
            "{refused}"
        );
    }
}
