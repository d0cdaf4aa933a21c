//! gRPC answers of messages that are encoded already, and sent without a copy.
//!
//! tonic encodes each message into a buffer of its stream, and an open stream keeps that buffer: a thousand workloads
//! that were sent the same long message would be a thousand copies of it. Here a message is a [`Bytes`], so streams share
//! it, and an idle stream holds none.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{self, Ready};
use futures_util::stream::{Once, once};
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tower::service_fn;

/// What stands before each message: whether it is compressed, and its length in four bytes (gRPC over HTTP/2).
pub const PREFIX: usize = 5;
/// For decoding a request; small ones are common.
const BUFFER: usize = 1024;

/// The message as it is sent, its prefix included. With exactly the room it needs, so that no copy of a secret is left
/// behind by a buffer that moved.
pub fn frame(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(PREFIX + length);
    framed.push(0);
    // A message of more than 4 GiB is refused by every peer, whatever its prefix says.
    framed.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut framed);
    framed
}

/// The stream of one message.
pub fn single(message: &impl prost::Message) -> Once<Ready<Result<Bytes, Status>>> {
    once(future::ready(Ok(Bytes::from(frame(message)))))
}

/// Answers a call with the framed messages of a stream, one or many. Requests are decoded by tonic, which also refuses
/// those that are malformed, compressed or longer than `most`.
pub async fn answer<B, M, F, S>(
    request: http::Request<B>,
    most: usize,
    call: impl FnOnce(Request<M>) -> F,
) -> http::Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    M: prost::Message + Default + Send + 'static,
    F: Future<Output = Result<S, Status>>,
    S: Stream<Item = Result<Bytes, Status>> + Send + 'static,
{
    let messages = Mutex::new(None);
    let mut call = Some(call);
    let service = service_fn(|request: Request<M>| {
        let answering = call.take().map(|call| call(request));
        let messages = &messages;
        async move {
            let answering = answering.ok_or_else(|| Status::internal("a call is answered once"))?;
            let answered = answering.await?;
            *messages.lock().unwrap_or_else(PoisonError::into_inner) = Some(answered);
            // tonic makes the headers of it, and a body that is replaced.
            Ok(Response::new(futures_util::stream::empty()))
        }
    });
    let mut grpc = Grpc::new(Requests::default()).apply_max_message_size_config(Some(most), None);
    let response = grpc.server_streaming(service, request).await;
    let messages = messages
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match messages {
        Some(messages) => response.map(|_empty| {
            Body::new(Messages {
                messages: Some(Box::pin(messages)),
            })
        }),
        None => response,
    }
}

/// A body of framed messages and the trailers after them.
struct Messages<S> {
    /// Nothing once the trailers were given.
    messages: Option<Pin<Box<S>>>,
}

impl<S: Stream<Item = Result<Bytes, Status>>> HttpBody for Messages<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(messages) = &mut self.messages else {
            return Poll::Ready(None);
        };
        let status = match ready!(messages.as_mut().poll_next(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.messages = None;
        let mut trailers = HeaderMap::new();
        let given = status.add_header(&mut trailers);
        Poll::Ready(Some(given.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none()
    }
}

/// Decodes requests of type `M`, and encodes nothing.
struct Requests<M>(PhantomData<fn() -> M>);

impl<M> Default for Requests<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: prost::Message + Default + Send + 'static> Codec for Requests<M> {
    type Encode = Infallible;
    type Decode = M;
    type Encoder = Nothing;
    type Decoder = Parse<M>;

    fn encoder(&mut self) -> Nothing {
        Nothing
    }

    fn decoder(&mut self) -> Parse<M> {
        Parse(PhantomData)
    }
}

struct Nothing;

impl Encoder for Nothing {
    type Item = Infallible;
    type Error = Status;

    fn encode(&mut self, never: Infallible, _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match never {}
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(0, 0)
    }
}

struct Parse<M>(PhantomData<fn() -> M>);

impl<M: prost::Message + Default> Decoder for Parse<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::decode(input)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("malformed request: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, BUFFER)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;
    use http_body_util::BodyExt as _;
    use prost::Message as _;

    use super::*;
    use crate::workload::{JwtsvidRequest, ValidateJwtsvidRequest};

    fn message(audience: &str) -> JwtsvidRequest {
        JwtsvidRequest {
            audience: vec![audience.to_owned()],
            spiffe_id: String::new(),
        }
    }

    fn request(body: Vec<u8>) -> http::Request<Body> {
        let body = http_body_util::Full::new(Bytes::from(body));
        http::Request::new(Body::new(body))
    }

    /// Answers with the request's audiences, one message each, and then this.
    async fn echo(request: http::Request<Body>, end: Option<Status>) -> http::Response<Body> {
        answer(request, 1000, |asked: Request<JwtsvidRequest>| async {
            let audiences = asked.into_inner().audience;
            let messages = audiences.iter().map(|one| Ok(frame(&message(one)).into()));
            let end = end.map(Err);
            Ok::<_, Status>(iter(messages.chain(end).collect::<Vec<_>>()))
        })
        .await
    }

    fn status_of(response: &http::Response<Body>) -> Status {
        Status::from_header_map(response.headers()).unwrap()
    }

    #[tokio::test]
    async fn messages_are_followed_by_the_status() {
        for (end, code) in [
            (None, tonic::Code::Ok),
            (Some(Status::not_found("gone")), tonic::Code::NotFound),
        ] {
            let mut asked = message("a");
            asked.audience.push("bb".into());
            let response = echo(request(frame(&asked)), end).await;
            assert_eq!(response.headers()["content-type"], "application/grpc");
            let collected = response.into_body().collect().await.unwrap();
            let trailers = collected.trailers().unwrap().clone();
            let status = Status::from_header_map(&trailers).unwrap();
            assert_eq!(status.code(), code);
            let sent = [frame(&message("a")), frame(&message("bb"))].concat();
            assert_eq!(collected.to_bytes(), sent);
        }
    }

    #[test]
    fn a_frame_is_a_prefix_and_the_message_in_exactly_the_room_it_needs() {
        let framed = frame(&message("audience"));
        assert_eq!(framed.capacity(), framed.len());
        let (prefix, rest) = framed.split_at(PREFIX);
        assert_eq!(prefix, [0, 0, 0, 0, 10]);
        assert_eq!(JwtsvidRequest::decode(rest).unwrap(), message("audience"));
    }

    #[tokio::test]
    async fn a_message_is_sent_from_where_it_lies() {
        let shared = Bytes::from(frame(&message("a")));
        let sent = shared.clone();
        let asked = request(frame(&ValidateJwtsvidRequest::default()));
        let response = answer(asked, 1000, |_: Request<ValidateJwtsvidRequest>| async {
            Ok::<_, Status>(iter([Ok(sent)]))
        });
        let mut body = response.await.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.as_ptr(), shared.as_ptr());
    }

    #[tokio::test]
    async fn requests_that_are_malformed_compressed_too_long_or_missing_are_refused() {
        let mut compressed = frame(&message("a"));
        compressed[0] = 1;
        let mut garbage = frame(&message("a"));
        garbage[PREFIX] = 0xff;
        for (body, code) in [
            (garbage, tonic::Code::InvalidArgument),
            (compressed, tonic::Code::Internal),
            (frame(&message(&"x".repeat(1000))), tonic::Code::OutOfRange),
            (Vec::new(), tonic::Code::Internal),
        ] {
            let response = echo(request(body), None).await;
            assert_eq!(status_of(&response).code(), code);
        }
        let mut encoded = request(frame(&message("a")));
        let headers = encoded.headers_mut();
        headers.insert("grpc-encoding", "gzip".parse().unwrap());
        let status = status_of(&echo(encoded, None).await);
        assert_eq!(status.code(), tonic::Code::Unimplemented);
    }

    #[tokio::test]
    async fn a_call_that_is_refused_is_a_status_without_messages() {
        let asked = request(frame(&message("a")));
        let response = answer(asked, 1000, |_: Request<JwtsvidRequest>| async {
            Err::<futures_util::stream::Empty<_>, _>(Status::permission_denied("no"))
        });
        let response = response.await;
        assert_eq!(status_of(&response).code(), tonic::Code::PermissionDenied);
        let collected = response.into_body().collect().await.unwrap();
        assert!(collected.to_bytes().is_empty());
    }
}
