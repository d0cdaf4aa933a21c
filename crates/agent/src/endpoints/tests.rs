use std::os::unix::fs::PermissionsExt as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::stop::Stopper;

#[derive(Debug, Clone)]
struct Echo;

impl Serve for Echo {
    async fn serve(
        &self,
        _peer: Arc<Peer>,
        _request: Request<Incoming>,
    ) -> Response<tonic::body::Body> {
        tonic::Status::ok("").into_http()
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_gets_complete_is_given_up() {
    let answer = in_time(std::future::pending()).await;
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("made/api.sock")
}

#[tokio::test]
async fn a_bound_socket_has_its_mode_and_goes_with_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    let socket = Socket::bind(&path, 0o777).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o777
    );
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_left_over_socket_is_replaced_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let alive = Socket::bind(&path, 0o770).unwrap();
    let fault = Socket::bind(&path, 0o770).unwrap_err();
    assert_eq!(fault.code, Code::SocketInUse);
    assert!(path.exists());
    drop(alive);
}

#[tokio::test]
async fn what_is_not_a_socket_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    assert_eq!(
        Socket::bind(&file, 0o777).unwrap_err().code,
        Code::SocketUnusable
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    let under = file.join("api.sock");
    assert_eq!(
        Socket::bind(&under, 0o777).unwrap_err().code,
        Code::SocketUnusable
    );
    let long = directory.path().join("x".repeat(200));
    assert_eq!(
        Socket::bind(&long, 0o777).unwrap_err().code,
        Code::SocketUnusable
    );
}

#[tokio::test]
async fn garbage_ends_a_connection_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    let socket = Socket::bind(&path, 0o777).unwrap();
    let (_stopper, stop) = Stopper::new();
    tokio::spawn(socket.serve(Echo, stop));
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
            .await
            .expect("closed")
            .ok();
    }
    proto::channel::connect_uds(&path).await.unwrap();
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    let socket = Socket::bind(&path, 0o777).unwrap();
    let (stopper, stop) = Stopper::new();
    let serving = tokio::spawn(socket.serve(Echo, stop));
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(UnixStream::connect(&path).await.unwrap());
    }
    proto::channel::connect_uds(&path).await.unwrap();
    stopper.stop();
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("stops in time")
        .unwrap()
        .unwrap();
}
