//! The filter before the HTTP/2 server that it serves, with frames written by hand and by chance.

mod randomized;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Request, Response};
use http_body_util::Empty;
use hyper::{body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{
    AuthorityFilter, AuthorityRewriter, CONTINUATION, END_HEADERS, Frame, HAS_PRIORITY, HEADERS,
    LARGEST_BLOCK, PADDED, PREFACE, hpack, huffman,
};

const END_STREAM: u8 = 0x1;
const DATA: u8 = 0x0;
const SETTINGS: u8 = 0x4;
const RESET: u8 = 0x3;
const GO_AWAY: u8 = 0x7;

/// How a field of a header block is written.
#[derive(Clone, Copy, Debug)]
enum Form {
    Indexed,
    NotIndexed,
    NeverIndexed,
}

/// How a field's name is written.
#[derive(Clone, Copy, Debug)]
enum NameForm {
    Index(u8),
    Spelled { huffman: bool },
}

fn string(value: &[u8], coded: bool, out: &mut Vec<u8>) {
    let start = out.len();
    if coded {
        hpack::put_string(&huffman::encode(value), out);
        out[start] |= 0x80;
    } else {
        hpack::put_string(value, out);
    }
}

fn field(form: Form, name: NameForm, name_text: &str, value: &str, coded: bool, out: &mut Vec<u8>) {
    let (pattern, full) = match form {
        Form::Indexed => (0x40, 0x3f),
        Form::NotIndexed => (0x00, 0x0f),
        Form::NeverIndexed => (0x10, 0x0f),
    };
    match name {
        NameForm::Index(index) if index < full => out.push(pattern | index),
        NameForm::Index(index) => out.extend([pattern | full, index - full]),
        NameForm::Spelled { huffman } => {
            out.push(pattern);
            string(name_text.as_bytes(), huffman, out);
        }
    }
    string(value.as_bytes(), coded, out);
}

/// `POST`, `http` and `/`: the rest of what a request needs, from the static table.
const METHOD_SCHEME_PATH: [u8; 3] = [0x83, 0x86, 0x84];

fn simple_block(authority: &str, coded: bool) -> Vec<u8> {
    let mut block = METHOD_SCHEME_PATH.to_vec();
    field(
        Form::Indexed,
        NameForm::Index(1),
        "",
        authority,
        coded,
        &mut block,
    );
    block
}

fn start() -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    Frame::put(SETTINGS, 0, 0, [&[], &[]], &mut bytes);
    bytes
}

fn headers(flags: u8, stream: u32, block: &[u8], out: &mut Vec<u8>) {
    Frame::put(HEADERS, flags, stream, [block, &[]], out);
}

fn rewritten(input: &[u8]) -> Vec<u8> {
    rewritten_in_parts(input, input.len().max(1))
}

fn rewritten_in_parts(input: &[u8], part: usize) -> Vec<u8> {
    let mut rewriter = AuthorityRewriter::new();
    let mut out = Vec::new();
    for part in input.chunks(part) {
        rewriter.push(part, &mut out);
    }
    rewriter.finish(&mut out);
    out
}

type SeenRequest = (Option<String>, HeaderMap);
type Seen = Arc<Mutex<Vec<SeenRequest>>>;

/// What an HTTP/2 server behind the filter makes of the bytes: the requests it saw and the frames it sent.
async fn served_by(input: Vec<u8>, requests: usize, filtered: bool) -> (Vec<SeenRequest>, Vec<u8>) {
    let (client, server) = UnixStream::pair().unwrap();
    let seen: Seen = Arc::default();
    let noted = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let authority = request.uri().authority().map(ToString::to_string);
        noted
            .lock()
            .unwrap()
            .push((authority, request.headers().clone()));
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let serving = tokio::spawn(async move {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // It ends with an error when the client breaks the protocol, which the frames it sent show.
        let _ended = if filtered {
            builder
                .serve_connection(TokioIo::new(AuthorityFilter::new(server)), service)
                .await
        } else {
            builder
                .serve_connection(TokioIo::new(server), service)
                .await
        };
    });
    let (mut reader, mut writer) = client.into_split();
    // The server answers while the client keeps the connection open.
    let writing = tokio::spawn(async move {
        // The server may hang up first.
        let _written = writer.write_all(&input).await;
        writer
    });
    let mut answer = Vec::new();
    while answered(&answer) < requests
        && reader
            .read_buf(&mut answer)
            .await
            .is_ok_and(|count| count > 0)
    {}
    drop(writing.await.unwrap());
    serving.await.unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, answer)
}

fn kinds(frames: &[u8]) -> Vec<u8> {
    whole_frames(frames)
        .into_iter()
        .map(|(kind, _)| kind)
        .collect()
}

fn whole_frames(mut frames: &[u8]) -> Vec<(u8, u32)> {
    let mut whole = Vec::new();
    while let Some(frame) = Frame::first_of(frames) {
        let Some(rest) = frame.after.get(frame.length..) else {
            break;
        };
        whole.push((frame.kind, frame.stream));
        frames = rest;
    }
    whole
}

/// How many streams got their headers or were reset; all of them when the server gave up.
fn answered(frames: &[u8]) -> usize {
    let frames = whole_frames(frames);
    if frames.iter().any(|(kind, _)| *kind == GO_AWAY) {
        return usize::MAX;
    }
    let answers = frames
        .iter()
        .filter(|(kind, _)| matches!(*kind, HEADERS | RESET));
    answers
        .map(|(_, stream)| stream)
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

async fn served(input: Vec<u8>, requests: usize) -> (Vec<SeenRequest>, Vec<u8>) {
    served_by(input, requests, true).await
}

async fn authorities(input: Vec<u8>, requests: usize) -> Vec<String> {
    served(input, requests)
        .await
        .0
        .into_iter()
        .map(|(authority, _)| authority.unwrap())
        .collect()
}

#[tokio::test]
async fn without_the_filter_the_server_resets_a_socket_path() {
    let mut bytes = start();
    headers(
        END_HEADERS | END_STREAM,
        1,
        &simple_block("tmp%2Fagent.sock", false),
        &mut bytes,
    );
    let (seen, answer) = served_by(bytes, 1, false).await;
    assert!(seen.is_empty());
    let kinds = kinds(&answer);
    assert!(
        kinds.contains(&RESET) || kinds.contains(&GO_AWAY),
        "frames {kinds:?}"
    );
}

#[tokio::test]
async fn serves_socket_paths_plain_and_huffman_coded() {
    for coded in [false, true] {
        let mut bytes = start();
        headers(
            END_HEADERS | END_STREAM,
            1,
            &simple_block("tmp%2Fagent.sock", coded),
            &mut bytes,
        );
        headers(
            END_HEADERS | END_STREAM,
            3,
            &simple_block("/tmp/x.sock", coded),
            &mut bytes,
        );
        headers(
            END_HEADERS | END_STREAM,
            5,
            &simple_block("localhost", coded),
            &mut bytes,
        );
        let (seen, answer) = served(bytes, 3).await;
        let authorities: Vec<_> = seen
            .into_iter()
            .map(|(authority, _)| authority.unwrap())
            .collect();
        assert_eq!(
            authorities,
            ["tmp-2Fagent.sock", "-tmp-x.sock", "localhost"]
        );
        assert!(kinds(&answer).contains(&HEADERS));
        assert!(!kinds(&answer).contains(&RESET));
    }
}

#[tokio::test]
async fn an_indexed_authority_serves_later_requests() {
    let mut bytes = start();
    headers(
        END_HEADERS | END_STREAM,
        1,
        &simple_block("tmp%2Fagent.sock", true),
        &mut bytes,
    );
    let again = [0x83, 0x86, 0x84, 0x80 | 62];
    headers(END_HEADERS | END_STREAM, 3, &again, &mut bytes);
    assert_eq!(authorities(bytes, 2).await, ["tmp-2Fagent.sock"; 2]);
}

#[tokio::test]
async fn follows_a_name_in_the_dynamic_table_and_its_eviction() {
    let mut bytes = start();
    let mut block = METHOD_SCHEME_PATH.to_vec();
    field(
        Form::Indexed,
        NameForm::Spelled { huffman: true },
        ":authority",
        "a/b",
        false,
        &mut block,
    );
    headers(END_HEADERS | END_STREAM, 1, &block, &mut bytes);

    let mut block = METHOD_SCHEME_PATH.to_vec();
    field(
        Form::NotIndexed,
        NameForm::Index(62),
        "",
        "c/d",
        true,
        &mut block,
    );
    field(
        Form::Indexed,
        NameForm::Spelled { huffman: false },
        "x-long",
        &"v".repeat(3000),
        true,
        &mut block,
    );
    headers(END_HEADERS | END_STREAM, 3, &block, &mut bytes);

    // 63 is `:authority` still; after the next long field 62 and 63 are not.
    let mut block = METHOD_SCHEME_PATH.to_vec();
    field(
        Form::NeverIndexed,
        NameForm::Index(63),
        "",
        "e/f",
        false,
        &mut block,
    );
    field(
        Form::Indexed,
        NameForm::Index(62),
        "",
        &"/".repeat(3000),
        false,
        &mut block,
    );
    headers(END_HEADERS | END_STREAM, 5, &block, &mut bytes);

    let (seen, _) = served(bytes, 3).await;
    let authorities: Vec<_> = seen
        .iter()
        .map(|(authority, _)| authority.as_deref().unwrap())
        .collect();
    assert_eq!(authorities, ["a-b", "c-d", "e-f"]);
    assert_eq!(seen[2].1["x-long"], "/".repeat(3000));
}

#[tokio::test]
async fn keeps_priority_and_joins_padding_and_continuations() {
    let block = simple_block("tmp%2Fagent.sock", true);
    let (first, rest) = block.split_at(5);
    let mut payload = vec![3, 0, 0, 0, 0, 9];
    payload.extend_from_slice(first);
    payload.extend([0; 3]);
    let mut bytes = start();
    headers(PADDED | HAS_PRIORITY | END_STREAM, 1, &payload, &mut bytes);
    Frame::put(CONTINUATION, 0, 1, [&rest[..3], &[]], &mut bytes);
    Frame::put(CONTINUATION, END_HEADERS, 1, [&rest[3..], &[]], &mut bytes);
    headers(
        END_HEADERS | END_STREAM,
        3,
        &simple_block("/tmp/x.sock", false),
        &mut bytes,
    );

    let out = rewritten(&bytes);
    let head = Frame::first_of(&out[start().len()..]).unwrap();
    assert_eq!(
        (head.kind, head.flags),
        (HEADERS, HAS_PRIORITY | END_STREAM | END_HEADERS)
    );
    assert_eq!(head.after[..5], [0, 0, 0, 0, 9]);
    for part in [1, 7, bytes.len()] {
        assert_eq!(rewritten_in_parts(&bytes, part), out);
    }
    assert_eq!(
        authorities(bytes, 2).await,
        ["tmp-2Fagent.sock", "-tmp-x.sock"]
    );
}

#[tokio::test]
async fn a_block_that_outgrows_a_frame_is_continued() {
    let mut block = METHOD_SCHEME_PATH.to_vec();
    field(
        Form::NotIndexed,
        NameForm::Spelled { huffman: false },
        "x-long",
        &"v".repeat(15_000),
        false,
        &mut block,
    );
    let path = "/0".repeat(700);
    field(
        Form::NotIndexed,
        NameForm::Index(1),
        "",
        &path,
        true,
        &mut block,
    );
    assert!(block.len() < 16_384);
    let mut bytes = PREFACE.to_vec();
    headers(END_HEADERS, 1, &block, &mut bytes);
    let out = rewritten(&bytes);
    assert_eq!(kinds(&out[PREFACE.len()..]), [HEADERS, CONTINUATION]);
    let block = super::Block::of(&out[PREFACE.len()..]).unwrap();
    assert!(
        hpack::Walker::new()
            .walk(&block.fragment)
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn tonic_serves_a_client_that_sends_the_socket_path() {
    use crate::go_plugin::{
        Empty,
        grpc_controller_server::{GrpcController, GrpcControllerServer},
    };
    struct Plugin;
    #[tonic::async_trait]
    impl GrpcController for Plugin {
        async fn shutdown(
            &self,
            _: tonic::Request<Empty>,
        ) -> Result<tonic::Response<Empty>, tonic::Status> {
            Ok(tonic::Response::new(Empty {}))
        }
    }

    let (mut client, server) = UnixStream::pair().unwrap();
    let incoming =
        futures_util::stream::iter([Ok::<_, std::io::Error>(AuthorityFilter::new(server))]);
    let service = GrpcControllerServer::new(Plugin);
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    let serving = tokio::spawn(serving);

    let mut block = vec![0x83, 0x86];
    field(
        Form::Indexed,
        NameForm::Index(4),
        "",
        "/plugin.GRPCController/Shutdown",
        true,
        &mut block,
    );
    field(
        Form::Indexed,
        NameForm::Index(1),
        "",
        "tmp%2Fagent.sock",
        true,
        &mut block,
    );
    field(
        Form::Indexed,
        NameForm::Index(31),
        "",
        "application/grpc",
        true,
        &mut block,
    );
    field(
        Form::Indexed,
        NameForm::Spelled { huffman: true },
        "te",
        "trailers",
        true,
        &mut block,
    );
    let mut bytes = start();
    headers(END_HEADERS, 1, &block, &mut bytes);
    Frame::put(DATA, END_STREAM, 1, [&[0; 5], &[]], &mut bytes);
    client.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let done = |answer: &[u8]| {
        kinds(answer)
            .iter()
            .filter(|kind| **kind == HEADERS)
            .count()
            == 2
    };
    while !done(&answer) && client.read_buf(&mut answer).await.unwrap() > 0 {}
    drop(client);
    serving.await.unwrap().unwrap();
    // Headers, the message, trailers.
    let kinds = kinds(&answer);
    assert_eq!(
        kinds.iter().filter(|kind| **kind == HEADERS).count(),
        2,
        "frames {kinds:?}"
    );
    assert!(kinds.contains(&DATA));
}

#[test]
fn what_breaks_the_protocol_passes_as_it_is() {
    let bad = simple_block("/tmp/x.sock", false);
    let mut cases = vec![b"GET / HTTP/1.1\r\nhost: /tmp\r\n\r\n".to_vec()];
    let mut case = |build: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = start();
        build(&mut bytes);
        headers(END_HEADERS, 9, &bad, &mut bytes);
        cases.push(bytes);
    };
    // A block that another frame interrupts.
    case(&|out| {
        headers(0, 1, &bad, out);
        Frame::put(DATA, 0, 1, [b"data", &[]], out);
    });
    // A continuation of another stream, and more padding than there is payload.
    case(&|out| {
        headers(0, 1, &bad, out);
        Frame::put(CONTINUATION, END_HEADERS, 3, [&bad, &[]], out);
    });
    case(&|out| headers(PADDED | END_HEADERS, 1, &[200, 0, 0], out));
    case(&|out| headers(HAS_PRIORITY | END_HEADERS, 1, &[0, 0], out));
    // Index 0, an index beyond the table, a cut string, an endless integer, a table larger than allowed.
    for block in [
        &[0x80][..],
        &[0xff, 0x80, 0x01],
        &[0x41, 0x0a, b'/'],
        &[0xff; 12],
        &[0x3f, 0xe2, 0x1f],
    ] {
        case(&|out| headers(END_HEADERS, 1, block, out));
    }
    for bytes in cases {
        assert_eq!(rewritten(&bytes), bytes);
        assert_eq!(rewritten_in_parts(&bytes, 1), bytes);
    }
}

#[test]
fn an_endless_header_block_is_not_held() {
    let mut rewriter = AuthorityRewriter::new();
    let mut out = Vec::new();
    let mut bytes = start();
    headers(0, 1, &[0; 16_000], &mut bytes);
    rewriter.push(&bytes, &mut out);
    for _ in 0..20 {
        let mut more = Vec::new();
        Frame::put(CONTINUATION, 0, 1, [&[0; 16_000], &[]], &mut more);
        rewriter.push(&more, &mut out);
        bytes.extend_from_slice(&more);
        assert!(rewriter.held.len() <= LARGEST_BLOCK);
    }
    rewriter.finish(&mut out);
    assert_eq!(out, bytes);
}

#[test]
fn an_idle_connection_holds_almost_nothing() {
    let mut rewriter = AuthorityRewriter::new();
    let mut bytes = start();
    let mut block = simple_block("/tmp/x.sock", false);
    field(
        Form::NotIndexed,
        NameForm::Spelled { huffman: false },
        "x",
        &"v".repeat(9000),
        false,
        &mut block,
    );
    headers(END_HEADERS | END_STREAM, 1, &block, &mut bytes);
    rewriter.push(&bytes, &mut Vec::new());
    assert!(
        rewriter.held.capacity() <= 256,
        "{}",
        rewriter.held.capacity()
    );
}
