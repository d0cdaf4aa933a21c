//! The attestor on real processes.

use super::*;
use crate::error::ErrorKind;
use config::Document;
use spiffe::clock::{ManualClock, SystemClock};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A process that waits until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start(program: &Path) -> Self {
        Self(
            Command::new(program)
                .arg("60")
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    fn peer(&self) -> Peer {
        let pid = i32::try_from(self.0.id()).unwrap();
        let (uid, gid) = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        Peer::of_process_as(pid, uid, gid).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn config(discover_workload_path: bool, workload_size_limit: i64) -> UnixConfig {
    UnixConfig {
        discover_workload_path,
        workload_size_limit: Some(workload_size_limit),
    }
}

fn attestor(config: UnixConfig) -> UnixAttestor {
    UnixAttestor::new(config, Arc::new(SystemClock))
}

fn texts(attested: &Attested) -> Vec<String> {
    assert!(attested.incomplete.is_none(), "{attested:?}");
    values(attested)
}

fn values(attested: &Attested) -> Vec<String> {
    attested
        .selectors
        .iter()
        .map(|selector| selector.value().to_owned())
        .collect()
}

/// A copy of `sleep` of our own, and what `sha256sum` says of it.
fn own_program(directory: &Path) -> (std::path::PathBuf, String) {
    let path = directory.join("workload");
    std::fs::copy("/bin/sleep", &path).unwrap();
    let output = Command::new("sha256sum").arg(&path).output().unwrap();
    let digest = String::from_utf8(output.stdout).unwrap();
    (path, digest.split(' ').next().unwrap().to_owned())
}

#[tokio::test]
async fn tells_user_and_groups_without_looking_at_the_program() {
    let sleeper = Sleeper::start(Path::new("/bin/sleep"));
    let selectors = attestor(UnixConfig::default())
        .attest(&sleeper.peer())
        .await
        .unwrap();
    assert!(
        selectors
            .selectors
            .iter()
            .all(|selector| selector.kind() == "unix")
    );
    let texts = texts(&selectors);
    let id = |flags: &[&str]| {
        let output = Command::new("id").args(flags).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let want = |kind: &str, value: String| {
        assert!(
            texts.contains(&format!("{kind}:{value}")),
            "{kind}:{value} in {texts:?}"
        );
    };
    want("uid", id(&["-u"]));
    want("user", id(&["-un"]));
    want("gid", id(&["-g"]));
    want("group", id(&["-gn"]));
    assert_eq!(texts[0], format!("uid:{}", id(&["-u"])));
    assert!(
        !texts
            .iter()
            .any(|text| text.starts_with("path:") || text.starts_with("sha256:"))
    );
}

#[tokio::test]
#[ignore = "changes the groups of a process, for which it needs root"]
async fn tells_supplementary_groups() {
    let mut command = Command::new("setpriv");
    command
        .args(["--groups", "4,12345", "sleep", "60"])
        .stdin(Stdio::null());
    let sleeper = Sleeper(command.spawn().unwrap());
    let peer = sleeper.peer();
    // Until setpriv has changed the groups and become sleep, the process has those of this test.
    let texts = loop {
        let texts = texts(&attestor(UnixConfig::default()).attest(&peer).await.unwrap());
        if texts.contains(&"supplementary_gid:12345".to_owned()) {
            break texts;
        }
        tokio::task::yield_now().await;
    };
    assert!(texts.contains(&"supplementary_gid:4".to_owned()));
    assert!(
        texts.contains(&"supplementary_group:adm".to_owned()),
        "{texts:?}"
    );
}

#[tokio::test]
async fn tells_path_and_digest_of_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let (path, digest) = own_program(directory.path());
    let sleeper = Sleeper::start(&path);
    let texts = texts(
        &attestor(config(true, 0))
            .attest(&sleeper.peer())
            .await
            .unwrap(),
    );
    let path = path.canonicalize().unwrap();
    assert_eq!(
        texts[texts.len() - 2..],
        [
            format!("path:{}", path.display()),
            format!("sha256:{digest}")
        ]
    );
}

#[tokio::test]
async fn digest_is_that_of_the_running_program_even_when_its_file_was_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (path, digest) = own_program(directory.path());
    let sleeper = Sleeper::start(&path);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "something else").unwrap();
    let texts = texts(
        &attestor(config(true, 0))
            .attest(&sleeper.peer())
            .await
            .unwrap(),
    );
    assert!(texts.contains(&format!("sha256:{digest}")), "{texts:?}");
}

#[tokio::test]
async fn a_negative_limit_leaves_the_digest_out() {
    let sleeper = Sleeper::start(Path::new("/bin/sleep"));
    let texts = texts(
        &attestor(config(true, -1))
            .attest(&sleeper.peer())
            .await
            .unwrap(),
    );
    assert!(texts.iter().any(|text| text.starts_with("path:/")));
    assert!(!texts.iter().any(|text| text.starts_with("sha256:")));
}

#[tokio::test]
async fn a_program_beyond_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = own_program(directory.path());
    let size = i64::try_from(path.metadata().unwrap().len()).unwrap();
    let sleeper = Sleeper::start(&path);
    let error = attestor(config(true, size - 1))
        .attest(&sleeper.peer())
        .await
        .unwrap_err();
    let path = path.canonicalize().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "workload {} exceeds size limit ({size} > {})",
            path.display(),
            size - 1
        )
    );
    attestor(config(true, size))
        .attest(&sleeper.peer())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_process_that_ended_gets_nothing() {
    let sleeper = Sleeper::start(Path::new("/bin/sleep"));
    let peer = sleeper.peer();
    drop(sleeper);
    for config in [config(false, 0), config(true, 0), config(true, -1)] {
        let error = attestor(config).attest(&peer).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    }
}

#[tokio::test]
async fn a_process_that_is_not_who_connected_gets_nothing() {
    let sleeper = Sleeper::start(Path::new("/bin/sleep"));
    let pid = sleeper.peer().pid;
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    for (uid, gid) in [(uid + 1, gid), (uid, gid + 1)] {
        let peer = Peer::of_process_as(pid, uid, gid).unwrap();
        let error = attestor(UnixConfig::default())
            .attest(&peer)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[tokio::test]
async fn a_digest_is_remembered_once_the_file_has_settled() {
    let directory = tempfile::tempdir().unwrap();
    let (path, digest) = own_program(directory.path());
    let sleeper = Sleeper::start(&path);
    let changed = path.metadata().unwrap().modified().unwrap();
    let clock = ManualClock::new(changed);
    let attestor = UnixAttestor::new(config(true, 0), Arc::new(clock.clone()));
    attestor.attest(&sleeper.peer()).await.unwrap();
    assert_eq!(attestor.digests.remembered(), 0);
    clock.advance(Duration::from_secs(60));
    for _ in 0..2 {
        let texts = texts(&attestor.attest(&sleeper.peer()).await.unwrap());
        assert!(texts.contains(&format!("sha256:{digest}")));
        assert_eq!(attestor.digests.remembered(), 1);
    }
}

/// A program of this many bytes, all but the first of which are a hole.
fn sparse_program(directory: &Path, size: u64) -> std::path::PathBuf {
    let (path, _) = own_program(directory);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size).unwrap();
    path
}

/// A clock by which every file is settled.
fn later() -> Arc<ManualClock> {
    let clock = ManualClock::new(std::time::SystemTime::UNIX_EPOCH);
    clock.advance(Duration::from_secs(10_000_000_000));
    Arc::new(clock)
}

#[tokio::test]
async fn a_hundred_processes_of_one_program_are_one_reading() {
    let directory = tempfile::tempdir().unwrap();
    let path = sparse_program(directory.path(), 32 << 20);
    let sleepers: Vec<_> = (0..100).map(|_| Sleeper::start(&path)).collect();
    let attestor = Arc::new(UnixAttestor::new(config(true, 0), later()));
    let mut asking = tokio::task::JoinSet::new();
    for peer in sleepers.iter().map(Sleeper::peer) {
        let attestor = Arc::clone(&attestor);
        asking.spawn(async move { attestor.attest(&peer).await.unwrap() });
    }
    let all = asking.join_all().await;
    let first = texts(&all[0]);
    assert!(first.iter().any(|text| text.starts_with("sha256:")));
    assert!(all.iter().all(|one| texts(one) == first));
    assert_eq!(attestor.digests.readings.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_huge_program_costs_nothing_and_keeps_its_other_selectors() {
    let directory = tempfile::tempdir().unwrap();
    let path = sparse_program(directory.path(), 500 << 30);
    let sleeper = Sleeper::start(&path);
    let attestor = attestor(UnixConfig {
        discover_workload_path: true,
        workload_size_limit: None,
    });
    let attested = attestor.attest(&sleeper.peer()).await.unwrap();
    let incomplete = attested.incomplete.as_ref().unwrap();
    assert_eq!(incomplete.kind(), ErrorKind::Permanent, "{incomplete}");
    let texts = values(&attested);
    assert!(texts.iter().any(|text| text.starts_with("uid:")));
    assert!(texts.iter().any(|text| text.starts_with("path:")));
    assert!(!texts.iter().any(|text| text.starts_with("sha256:")));
    assert_eq!(attestor.digests.readings.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_reading_that_nobody_waits_for_ends_and_gives_its_turn_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = sparse_program(directory.path(), 500 << 30);
    let sleeper = Sleeper::start(&path);
    let mut digests = Digests::new(later(), 0);
    digests.finished_anyway = 0;
    let digests = Arc::new(digests);
    let pid = sleeper.peer().pid;
    let opened = digests.open(pid, 1).await.unwrap();
    let reading = tokio::spawn({
        let digests = Arc::clone(&digests);
        async move { digests.digest(opened, 1).await.is_ok() }
    });
    while digests.readings.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    reading.abort();
    digests.until_idle().await;
    assert_eq!(digests.remembered(), 0);
}

#[tokio::test]
async fn a_user_that_waits_for_its_turn_holds_up_no_other_users_reading_of_the_same_program() {
    let directory = tempfile::tempdir().unwrap();
    let (path, digest) = own_program(directory.path());
    let sleeper = Sleeper::start(&path);
    let pid = sleeper.peer().pid;
    let digests = Arc::new(Digests::new(later(), 0));
    let turn = digests.take_turn(1).await;
    let opened = digests.open(pid, 1).await.unwrap();
    let waiting = tokio::spawn({
        let digests = Arc::clone(&digests);
        async move { digests.digest(opened, 1).await }
    });
    tokio::task::yield_now().await;
    let opened = digests.open(pid, 2).await.unwrap();
    assert_eq!(*digests.digest(opened, 2).await.unwrap(), *digest);
    assert!(!waiting.is_finished());
    // What was read for one user is remembered for all.
    drop(turn);
    assert_eq!(*waiting.await.unwrap().unwrap(), *digest);
    assert_eq!(digests.readings.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn names_that_cannot_be_looked_up_leave_the_numbers_and_say_so() {
    #[derive(Debug)]
    struct Down;
    impl names::Directory for Down {
        fn name(&self, _number: names::Number) -> io::Result<Option<String>> {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
    let sleeper = Sleeper::start(Path::new("/bin/sleep"));
    let mut attestor = attestor(UnixConfig::default());
    attestor.names = Arc::new(Names::of(Arc::new(SystemClock), Arc::new(Down)));
    let attested = attestor.attest(&sleeper.peer()).await.unwrap();
    let incomplete = attested.incomplete.as_ref().unwrap();
    assert_eq!(incomplete.kind(), ErrorKind::Transient, "{incomplete}");
    let values = values(&attested);
    assert!(values.contains(&format!("uid:{}", nix::unistd::geteuid())));
    assert!(!values.iter().any(|value| value.starts_with("user:")));
}

#[tokio::test]
async fn a_process_with_more_groups_than_are_looked_at_keeps_what_is_known_and_says_so() {
    let attestor = attestor(UnixConfig::default());
    // Names are first looked up, then remembered: both say so.
    for _ in 0..2 {
        let mut found = Found {
            pid: 1,
            values: Vec::new(),
            incomplete: None,
        };
        let credentials = Credentials {
            uid: 0,
            gid: 0,
            supplementary_gids: vec![4_000_000_000],
            more_groups: true,
        };
        attestor.who(&mut found, &credentials).await.unwrap();
        let values = &found.values;
        assert!(values.contains(&"supplementary_gid:4000000000".to_owned()));
        let error = Error::from(found.incomplete.unwrap());
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains("1024 supplementary groups"));
    }
}

#[test]
fn remembers_a_bounded_number_of_digests() {
    let digests = Digests::new(Arc::new(SystemClock), 0);
    digests.remember_some(5000);
    assert_eq!(digests.remembered(), 1024);
}

#[test]
fn reads_its_configuration() {
    let text = "discover_workload_path = true\nworkload_size_limit = -1";
    let document = Document::parse("unix.conf", text, None).unwrap();
    assert_eq!(UnixConfig::read(&document.root()), config(true, -1));
    document.check().unwrap();
    let wrong = Document::parse(
        "unix.conf",
        "discover_workload_path = 1\nworkload_size = 5",
        None,
    )
    .unwrap();
    assert_eq!(UnixConfig::read(&wrong.root()), UnixConfig::default());
    assert_eq!(wrong.check().unwrap_err().len(), 2);
}
