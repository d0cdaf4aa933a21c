//! A gRPC codec whose answers are encoded before they come here.

use std::marker::PhantomData;

use bytes::BufMut as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::messages::Encoded;

/// Each open stream keeps its buffers: a thousand streams are common, long messages are not.
const BUFFER: usize = 1024;
const YIELD_AT: usize = 32 << 10;

/// Requests of type `M`, answers as bytes.
#[derive(Debug)]
pub(super) struct PreEncoded<M>(PhantomData<fn() -> M>);

impl<M> Default for PreEncoded<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: prost::Message + Default + Send + 'static> Codec for PreEncoded<M> {
    type Encode = Encoded;
    type Decode = M;
    type Encoder = Copy;
    type Decoder = Parse<M>;

    fn encoder(&mut self) -> Copy {
        Copy
    }

    fn decoder(&mut self) -> Parse<M> {
        Parse(PhantomData)
    }
}

/// Copies the bytes into the connection's buffer.
#[derive(Debug)]
pub(super) struct Copy;

impl Encoder for Copy {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, item: Encoded, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.bytes().len());
        out.put_slice(item.bytes());
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}

/// Decodes a request.
#[derive(Debug)]
pub(super) struct Parse<M>(PhantomData<fn() -> M>);

impl<M: prost::Message + Default> Decoder for Parse<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        M::decode(input)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("malformed request: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}
