//! A socket of the test's own plays systemd.

use std::collections::BTreeMap;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::*;

fn manager() -> (tempfile::TempDir, UnixDatagram, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    (directory, socket, path)
}

fn under(path: &Path) -> Systemd {
    let path = path.as_os_str().to_owned();
    Systemd::new(
        move |name| (name == "NOTIFY_SOCKET").then(|| path.clone()),
        1,
    )
}

fn received(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn sealed(content: &[u8], seals: SealFlag) -> OwnedFd {
    let made = memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let mut file = File::from(made);
    file.write_all(content).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

fn taken(descriptor: OwnedFd) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let stored = vec![("x".to_owned(), descriptor.into_raw_fd())];
    let mut systemd = Systemd::default().with_stored(stored);
    let taken = systemd.take("x").unwrap();
    assert!(systemd.take("x").is_none(), "once");
    taken
}

#[test]
fn states_are_notified() {
    let (_directory, socket, path) = manager();
    let systemd = under(&path);
    systemd.ready();
    systemd.stopping();
    assert_eq!(received(&socket), "READY=1");
    assert_eq!(received(&socket), "STOPPING=1");
}

#[test]
fn what_is_stored_comes_with_a_name_and_what_is_taken_is_removed() {
    let (_directory, socket, path) = manager();
    assert!(under(&path).store("secret", b"content").unwrap());
    assert_eq!(received(&socket), "FDSTORE=1\nFDNAME=secret\nFDPOLL=0");
    let descriptor = sealed(b"content", all_seals()).into_raw_fd();
    let mut next = under(&path).with_stored(vec![("secret".to_owned(), descriptor)]);
    assert_eq!(&**next.take("secret").unwrap().unwrap(), b"content");
    assert_eq!(received(&socket), "FDSTOREREMOVE=1\nFDNAME=secret");
    assert!(next.take("other").is_none());
}

#[test]
fn without_systemd_nothing_happens() {
    let systemd = Systemd::new(|_| None, 1);
    systemd.ready();
    assert!(!systemd.store("x", b"y").unwrap());
}

#[test]
fn a_manager_that_is_gone_stops_nobody() {
    let (directory, _socket, path) = manager();
    drop(directory);
    let systemd = under(&path);
    systemd.ready();
    systemd.store("x", b"y").unwrap_err();
}

#[test]
fn only_a_sealed_memfd_is_trusted() {
    assert_eq!(&**taken(sealed(b"good", all_seals())).unwrap(), b"good");
    let open = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    for descriptor in [
        sealed(b"x", SealFlag::empty()),
        sealed(b"x", open),
        tempfile::tempfile().unwrap().into(),
    ] {
        assert!(matches!(taken(descriptor), Err(Refused::NotSealed)));
    }
}

#[test]
#[ignore = "needs root, to give a file away"]
fn a_memfd_of_another_user_is_not_trusted() {
    let descriptor = sealed(b"x", all_seals());
    nix::unistd::fchown(&descriptor, Some(1234.into()), None).unwrap();
    assert!(matches!(taken(descriptor), Err(Refused::Foreign(1234))));
}

#[test]
fn descriptors_for_another_process_are_not_taken() {
    let variables = |pid: &str| {
        let variables = BTreeMap::from([
            ("LISTEN_PID", pid.to_owned()),
            ("LISTEN_FDS", "2".to_owned()),
            ("LISTEN_FDNAMES", "a:b:c".to_owned()),
        ]);
        Systemd::new(move |name| variables.get(name).map(Into::into), 7)
    };
    assert_eq!(variables("8").stored, []);
    assert_eq!(
        variables("7").stored,
        [("a".to_owned(), 3), ("b".to_owned(), 4)]
    );
    assert_eq!(variables("seven").stored, []);
}
