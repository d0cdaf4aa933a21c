//! A disk without room, a real one: a small file system that a test mounts and fills.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// A file system of 256 KiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let point = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(point.path())
            .status();
        assert!(mounted.unwrap().success(), "mounting needs root");
        Self(point)
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[1; 1024]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
        assert!(unmounted.unwrap().success());
    }
}

/// A node whose SVID was renewed while its disk was full.
async fn renewed_on_a_full_disk(disk: &SmallDisk) -> Fixture {
    let directory = tempfile::tempdir_in(disk.0.path()).unwrap();
    let mut f = start_in(directory, None, |_| {}).await;
    f.status(|status| status.connected).await;
    let stored = f.stored().svid;
    f.ends.identity.borrow_and_update();
    disk.fill();
    f.clock.advance(Duration::from_secs(1900));
    // Wakes the task.
    f.token(&entry("a", "/a", &["unix:uid:1"]), "x").await.ok();
    tokio::time::timeout(LONG, f.ends.identity.changed())
        .await
        .expect("in time")
        .unwrap();
    // What was there is whole, and no half-written file takes room.
    assert_eq!(f.stored().svid[0].der(), stored[0].der());
    assert_ne!(in_use(&f), stored[0].der());
    let names = || f.directory.path().read_dir().unwrap();
    assert!(names().all(|file| {
        let name = file.unwrap().file_name();
        !name.to_string_lossy().ends_with(".tmp")
    }));
    f
}

fn in_use(f: &Fixture) -> Vec<u8> {
    f.ends.identity.borrow().svid.chain[0].der().to_vec()
}

#[tokio::test]
#[ignore = "mounts a file system, for which it needs root"]
async fn an_svid_that_was_renewed_on_a_full_disk_is_written_once_there_is_room() {
    let disk = SmallDisk::mount();
    let mut f = Box::pin(renewed_on_a_full_disk(&disk)).await;
    f.status(|status| status.connected).await;
    disk.make_room();
    let written = async {
        while f.stored().svid[0].der() != in_use(&f) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, written).await.expect("in time");
}

#[tokio::test]
#[ignore = "mounts a file system, for which it needs root"]
async fn an_agent_that_stops_writes_what_it_could_not_write_before() {
    let disk = SmallDisk::mount();
    let f = Box::pin(renewed_on_a_full_disk(&disk)).await;
    disk.make_room();
    f.tasks.request_shutdown();
    f.running.await.unwrap().unwrap();
    let state = StateDir::open(f.directory.path()).unwrap();
    let in_use = f.ends.identity.borrow().svid.chain[0].clone();
    assert_eq!(state.load().unwrap().svid[0].der(), in_use.der());
}

#[tokio::test]
#[ignore = "mounts a file system, for which it needs root"]
async fn an_agent_that_stops_on_a_full_disk_leaves_the_former_svid_whole() {
    let disk = SmallDisk::mount();
    let f = Box::pin(renewed_on_a_full_disk(&disk)).await;
    let former = f.stored().svid;
    f.tasks.request_shutdown();
    f.running.await.unwrap().unwrap();
    let state = StateDir::open(f.directory.path()).unwrap();
    let stored = state.load().unwrap().svid;
    assert_eq!(stored.len(), former.len());
    assert_eq!(stored[0].der(), former[0].der());
}
