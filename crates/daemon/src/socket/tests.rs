use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("made/api.sock")
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o7777
}

fn code(path: &Path) -> Code {
    Socket::bind(path, Modes::PUBLIC).unwrap_err().code
}

/// A socket file that nobody listens on, as a killed daemon leaves it.
fn stale(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(path).unwrap());
    assert!(path.exists());
}

#[test]
fn a_socket_and_its_directory_have_their_modes_and_the_file_goes_with_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    for (modes, socket, around) in [(Modes::PUBLIC, 0o777, 0o755), (Modes::ADMIN, 0o770, 0o750)] {
        let bound = Socket::bind(&path, modes).unwrap();
        assert_eq!(bound.path(), path);
        assert_eq!(mode(&path), socket);
        assert_eq!(mode(path.parent().unwrap()), around);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }
}

#[test]
fn the_descriptor_has_its_mode_before_it_has_a_name() {
    // What the file is created with: the descriptor's mode, less the umask.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let descriptor = new_socket().unwrap();
    fchmod(&descriptor, Mode::from_bits_truncate(0o700)).unwrap();
    bind(descriptor.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    assert_eq!(mode(&path) & 0o077, 0);
    // And nobody connects before `listen`.
    assert_eq!(
        UnixStream::connect(&path).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    stale(&path);
    let alive = Socket::bind(&path, Modes::ADMIN).unwrap();
    assert_eq!(code(&path), Code::SocketInUse);
    UnixStream::connect(&path).unwrap();
    drop(alive);
    assert!(!path.exists());
}

#[test]
fn a_socket_whose_queue_is_full_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let full = new_socket().unwrap();
    bind(full.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&full, Backlog::new(0).unwrap()).unwrap();
    let waiting = new_socket().unwrap();
    connect(waiting.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    assert_eq!(code(&path), Code::SocketInUse);
    assert!(path.exists());
}

#[test]
fn another_programs_datagram_socket_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let _syslog = UnixDatagram::bind(&log).unwrap();
    assert_eq!(code(&log), Code::SocketUnusable);
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"x", &log)
        .unwrap();
}

#[test]
fn what_is_not_a_socket_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for taken in [file.clone(), link, file.join("api.sock")] {
        assert_eq!(code(&taken), Code::SocketUnusable, "{taken:?}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    assert_eq!(mode(&file) & 0o111, 0);
}

#[test]
fn a_link_to_a_stale_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    stale(&target);
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(code(&link), Code::SocketUnusable);
    assert!(target.exists());
}

#[test]
fn a_stale_socket_of_another_user_is_left_alone() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    stale(&path);
    chown(&path, Some(4_242), None).unwrap();
    let fault = Socket::bind(&path, Modes::PUBLIC).unwrap_err();
    assert_eq!(fault.code, Code::SocketUnusable);
    assert!(fault.to_string().contains("4242"), "{fault}");
    assert!(path.exists());
}

#[test]
fn a_directory_that_others_can_change_is_refused_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let fault = Socket::bind(&shared.join("api.sock"), Modes::PUBLIC).unwrap_err();
    assert_eq!(fault.code, Code::SocketDirectoryUnsafe);
    assert!(
        fault.to_string().contains(shared.to_str().unwrap()),
        "{fault}"
    );
    assert_eq!(std::fs::read_dir(&shared).unwrap().count(), 0);
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("spire-agent");
    std::fs::create_dir(&made).unwrap();
    chown(&made, Some(4_242), Some(4_242)).unwrap();
    let fault = Socket::bind(&made.join("public/api.sock"), Modes::PUBLIC).unwrap_err();
    assert_eq!(fault.code, Code::SocketDirectoryUnsafe);
    assert_eq!(std::fs::read_dir(&made).unwrap().count(), 0);
}

#[test]
fn another_file_in_its_place_survives_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    let bound = Socket::bind(&path, Modes::PUBLIC).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let inode = std::fs::symlink_metadata(&path).unwrap().ino();
    drop(bound);
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().ino(), inode);
    drop(other);
}

#[test]
fn a_path_that_clients_cannot_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(200));
    assert_eq!(code(&long), Code::SocketUnusable);
    assert_eq!(code(Path::new("/")), Code::SocketUnusable);
}
