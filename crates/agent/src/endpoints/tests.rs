use std::path::PathBuf;

use daemon::tasks::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

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
async fn garbage_ends_a_connection_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    let socket = Socket::bind(&path, Modes::PUBLIC).unwrap();
    let _tasks = Tasks::new();
    let shutdown = _tasks.shutdown();
    tokio::spawn(socket.serve(
        Router::default(),
        budgets(&Telemetry::default()).0,
        shutdown,
    ));
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
    let socket = Socket::bind(&path, Modes::PUBLIC).unwrap();
    let tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let serving = tokio::spawn(socket.serve(
        Router::default(),
        budgets(&Telemetry::default()).0,
        shutdown,
    ));
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(UnixStream::connect(&path).await.unwrap());
    }
    proto::channel::connect_uds(&path).await.unwrap();
    tasks.request_shutdown();
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("stops in time")
        .unwrap()
        .unwrap();
}

#[test]
fn a_connection_that_is_idle_needs_little_room() {
    fn accepted<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }
    fn spoken<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }
    let needed = accepted(connection) + spoken(converse);
    assert!(needed <= 4 << 10, "{needed} bytes, of a thousand streams");
}
