//! Lets every gRPC client in over a Unix socket. Clients built on gRPC's C core (Python, Ruby, PHP, C++) and
//! Java's send the socket's path as `:authority`; the HTTP/2 server under tonic resets such requests. The filter
//! sits between `accept` and the server and replaces the characters that no authority may have.
//!
//! It changes nothing else: bytes it does not have to change pass as they came, and so does all that follows a
//! breach of the protocol, for the server to refuse. The authority of a local socket carries no trust, so nothing
//! may be decided by it.

mod hpack;
mod huffman;
#[cfg(test)]
mod tests;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use hpack::Walker;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// The frame size that every HTTP/2 peer must take (RFC 9113 §4.2).
const FRAME_PAYLOAD: usize = 16_384;
/// More header bytes than a server with hyper's limits accepts; beyond it nothing is held back or changed.
const LARGEST_BLOCK: usize = 64 * 1024;
const PRIORITY: usize = 5;
/// The room an idle connection keeps.
const KEPT: usize = 64;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const HAS_PRIORITY: u8 = 0x20;

/// The server's side of a connection with the requests' `:authority` made legal.
pub struct AuthorityFilter<S> {
    stream: S,
    rewriter: AuthorityRewriter,
    /// Rewritten bytes that the reader has not taken yet, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl<S> AuthorityFilter<S> {
    /// Wraps a connection of which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            rewriter: AuthorityRewriter::new(),
            ready: Vec::new(),
            taken: 0,
            ended: false,
        }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Moves what fits from `ready` to the reader's buffer; false when there was nothing.
    fn hand_over(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let waiting = self.ready.get(self.taken..).unwrap_or_default();
        if waiting.is_empty() {
            return false;
        }
        let now = waiting.len().min(buffer.remaining());
        buffer.put_slice(waiting.get(..now).unwrap_or_default());
        self.taken += now;
        if self.taken == self.ready.len() {
            self.ready.clear();
            self.ready.shrink_to(KEPT);
            self.taken = 0;
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFilter<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.hand_over(buffer) || this.ended {
                return Poll::Ready(Ok(()));
            }
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            let fresh = buffer.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                this.ended = true;
                this.rewriter.finish(&mut this.ready);
            } else if this.rewriter.passes(fresh.len()) {
                // The body of a frame that is of no interest: it is in the right place already.
                return Poll::Ready(Ok(()));
            } else {
                this.rewriter.push(fresh, &mut this.ready);
                buffer.set_filled(before);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityFilter<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }
}

impl<S: Connected> Connected for AuthorityFilter<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Preface,
    /// Collecting a frame's header.
    Header,
    /// Collecting a frame that is part of a header block.
    Block,
    /// Passing the given number of bytes on: the body of any other frame.
    Body(usize),
    /// Passing everything on, for good.
    Raw,
}

/// The filter without the input and output: bytes of a client in, bytes for the server out.
pub struct AuthorityRewriter {
    mode: Mode,
    /// Held back until it is complete: the preface, a frame's header, or the frames of a header block so far.
    held: Vec<u8>,
    /// Where in `held` the current frame starts.
    frame: usize,
    /// The length of `held` at which there is something to decide.
    wanted: usize,
    /// The stream of the header block that is being held.
    block_of: Option<u32>,
    walker: Walker,
}

impl Default for AuthorityRewriter {
    fn default() -> Self {
        Self::new()
    }
}

impl AuthorityRewriter {
    /// For a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            mode: Mode::Preface,
            held: Vec::new(),
            frame: 0,
            wanted: PREFACE.len(),
            block_of: None,
            walker: Walker::new(),
        }
    }

    /// Takes the next bytes of the client and appends to `out` what the server shall read.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let mut rest = input;
        while !rest.is_empty() {
            let room = match self.mode {
                Mode::Raw => usize::MAX,
                Mode::Body(left) => left,
                Mode::Preface | Mode::Header | Mode::Block => {
                    self.wanted.saturating_sub(self.held.len())
                }
            };
            let (now, later) = rest.split_at(room.min(rest.len()));
            rest = later;
            match self.mode {
                Mode::Raw => out.extend_from_slice(now),
                Mode::Body(left) => {
                    out.extend_from_slice(now);
                    self.pass(left - now.len());
                }
                Mode::Preface | Mode::Header | Mode::Block => {
                    self.held.extend_from_slice(now);
                    self.decide(out);
                }
            }
        }
    }

    /// The client will send no more: gives out what is held, for the server to see where it stopped.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.give_up(out);
    }

    /// Whether the next `count` bytes need no look; if so they are taken as pushed.
    fn passes(&mut self, count: usize) -> bool {
        match self.mode {
            Mode::Raw => true,
            Mode::Body(left) if count <= left => {
                self.pass(left - count);
                true
            }
            _ => false,
        }
    }

    fn pass(&mut self, left: usize) {
        if left == 0 {
            self.next_frame();
        } else {
            self.mode = Mode::Body(left);
        }
    }

    fn next_frame(&mut self) {
        self.mode = Mode::Header;
        self.frame = self.held.len();
        self.wanted = self.frame + FRAME_HEADER;
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.held);
        self.forget_held();
    }

    fn forget_held(&mut self) {
        self.held.clear();
        // Idle connections are many: none of them keeps room for the headers of its last request.
        self.held.shrink_to(KEPT);
        self.block_of = None;
    }

    fn give_up(&mut self, out: &mut Vec<u8>) {
        self.flush(out);
        self.mode = Mode::Raw;
    }

    fn decide(&mut self, out: &mut Vec<u8>) {
        if self.mode == Mode::Preface && !PREFACE.starts_with(&self.held) {
            return self.give_up(out);
        }
        while self.held.len() == self.wanted {
            match self.mode {
                Mode::Preface => {
                    self.flush(out);
                    self.next_frame();
                }
                Mode::Header => self.frame_starts(out),
                Mode::Block => self.block_frame_ends(out),
                Mode::Body(_) | Mode::Raw => return,
            }
        }
    }

    fn current_frame(&self) -> Option<Frame<'_>> {
        Frame::first_of(self.held.get(self.frame..)?)
    }

    fn frame_starts(&mut self, out: &mut Vec<u8>) {
        let Some(frame) = self.current_frame() else {
            return self.give_up(out);
        };
        let (length, kind, stream) = (frame.length, frame.kind, frame.stream);
        match (self.block_of, kind) {
            (None, HEADERS) => self.block_of = Some(stream),
            (Some(open), CONTINUATION) if open == stream => {}
            (None, _) => {
                self.flush(out);
                return self.pass(length);
            }
            (Some(_), _) => return self.give_up(out),
        }
        self.wanted = self.held.len() + length;
        if self.wanted > LARGEST_BLOCK {
            return self.give_up(out);
        }
        self.mode = Mode::Block;
    }

    fn block_frame_ends(&mut self, out: &mut Vec<u8>) {
        let Some(frame) = self.current_frame() else {
            return self.give_up(out);
        };
        if frame.flags & END_HEADERS == 0 {
            return self.next_frame();
        }
        let Some(block) = Block::of(&self.held) else {
            return self.give_up(out);
        };
        match self.walker.walk(&block.fragment) {
            Err(hpack::Malformed) => self.give_up(out),
            Ok(edits) => {
                if edits.is_empty() {
                    self.flush(out);
                } else {
                    block.write_edited(&edits, out);
                    self.forget_held();
                }
                self.next_frame();
            }
        }
    }
}

/// A frame of HTTP/2 (RFC 9113 §4.1); the payload may not have come yet.
struct Frame<'a> {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
    after: &'a [u8],
}

impl<'a> Frame<'a> {
    fn first_of(bytes: &'a [u8]) -> Option<Self> {
        let (&[l0, l1, l2, kind, flags, s0, s1, s2, s3], after) =
            bytes.split_first_chunk::<FRAME_HEADER>()?;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        Some(Self {
            length,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            after,
        })
    }

    fn put(kind: u8, flags: u8, stream: u32, parts: [&[u8]; 2], out: &mut Vec<u8>) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        // Never above `FRAME_PAYLOAD`.
        let length = u32::try_from(length).unwrap_or_default().to_be_bytes();
        out.extend_from_slice(length.get(1..).unwrap_or_default());
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&stream.to_be_bytes());
        for part in parts {
            out.extend_from_slice(part);
        }
    }
}

/// A header block without its framing.
struct Block {
    stream: u32,
    flags: u8,
    priority: Vec<u8>,
    fragment: Vec<u8>,
}

impl Block {
    /// From a HEADERS frame and its CONTINUATIONs; `None` when padding or priority do not fit the first frame.
    fn of(frames: &[u8]) -> Option<Self> {
        let head = Frame::first_of(frames)?;
        let (mut payload, mut rest) = head.after.split_at_checked(head.length)?;
        if head.flags & PADDED != 0 {
            let (padding, padded) = payload.split_first()?;
            payload = padded.get(..padded.len().checked_sub(usize::from(*padding))?)?;
        }
        let mut priority: &[u8] = &[];
        if head.flags & HAS_PRIORITY != 0 {
            (priority, payload) = payload.split_at_checked(PRIORITY)?;
        }
        let mut fragment = payload.to_vec();
        while !rest.is_empty() {
            let frame = Frame::first_of(rest)?;
            let (more, later) = frame.after.split_at_checked(frame.length)?;
            fragment.extend_from_slice(more);
            rest = later;
        }
        Some(Self {
            stream: head.stream,
            flags: head.flags,
            priority: priority.to_vec(),
            fragment,
        })
    }

    /// The block with `edits` made, in as few frames as it needs and without padding.
    fn write_edited(&self, edits: &[hpack::Edit], out: &mut Vec<u8>) {
        let mut fragment = Vec::with_capacity(self.fragment.len() + 64);
        let mut done = 0;
        for edit in edits {
            fragment.extend_from_slice(
                self.fragment
                    .get(done..edit.place.start)
                    .unwrap_or_default(),
            );
            hpack::put_string(&edit.value, &mut fragment);
            done = edit.place.end;
        }
        fragment.extend_from_slice(self.fragment.get(done..).unwrap_or_default());

        let (first, mut rest) = fragment.split_at(fragment.len().min(FRAME_PAYLOAD - PRIORITY));
        let last = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
        let flags = self.flags & !(PADDED | END_HEADERS) | last(rest);
        Frame::put(HEADERS, flags, self.stream, [&self.priority, first], out);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(FRAME_PAYLOAD));
            rest = later;
            Frame::put(CONTINUATION, last(rest), self.stream, [now, &[]], out);
        }
    }
}
