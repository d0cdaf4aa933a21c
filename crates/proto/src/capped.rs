//! Requests whose lists are cut while they are decoded.
//!
//! An empty item of a list is two bytes on the wire and some fifty in memory, and a peer that does not end its stream keeps a
//! decoded request waiting. So of the lists of such a request no more items are read than make it too long: who handles it
//! counts them and refuses it.

use prost::DecodeError;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, skip_field};
use spiffe::svid::jwt::MAX_AUDIENCES;

use crate::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewJwtsvidRequest};
use crate::workload::JwtsvidRequest;

/// The most X509-SVIDs in one call. SPIRE: its agents ask for no more in one call, and its rate limit refuses more.
pub const MAX_BATCH: usize = 500;

/// A message with lists that have a limit.
pub trait Lists {
    /// Whether the list in the field of this number has more items than it may.
    fn is_too_long(&self, field: u32) -> bool;
}

impl Lists for JwtsvidRequest {
    fn is_too_long(&self, field: u32) -> bool {
        field == 1 && self.audience.len() > MAX_AUDIENCES
    }
}

impl Lists for NewJwtsvidRequest {
    fn is_too_long(&self, field: u32) -> bool {
        field == 2 && self.audience.len() > MAX_AUDIENCES
    }
}

impl Lists for BatchNewX509svidRequest {
    fn is_too_long(&self, field: u32) -> bool {
        field == 1 && self.params.len() > MAX_BATCH
    }
}

/// A message that is decoded without what exceeds the limits of its lists by more than one item.
#[derive(Debug, Default)]
pub struct Capped<M>(pub M);

impl<M: prost::Message + Lists> prost::Message for Capped<M> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.0.encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if self.0.is_too_long(tag) {
            skip_field(wire_type, tag, buf, ctx)
        } else {
            self.0.merge_field(tag, wire_type, buf, ctx)
        }
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::spire::api::server::svid::v1::NewX509svidParams;

    #[test]
    fn of_a_list_that_is_too_long_one_item_too_many_is_read_and_no_more() {
        let fetch = JwtsvidRequest {
            audience: vec!["a".to_owned(); 10_000],
            spiffe_id: "spiffe://example.org/web".to_owned(),
        };
        let read = Capped::<JwtsvidRequest>::decode(&*fetch.encode_to_vec()).unwrap();
        assert_eq!(read.0.audience.len(), MAX_AUDIENCES + 1);
        assert_eq!(read.0.spiffe_id, fetch.spiffe_id, "what follows is read");

        let new = NewJwtsvidRequest {
            entry_id: "e".to_owned(),
            audience: vec![String::new(); 10_000],
        };
        let read = Capped::<NewJwtsvidRequest>::decode(&*new.encode_to_vec()).unwrap();
        assert_eq!(read.0.audience.len(), MAX_AUDIENCES + 1);
        assert_eq!(read.0.entry_id, "e");

        let batch = BatchNewX509svidRequest {
            params: vec![NewX509svidParams::default(); 10_000],
        };
        let read = Capped::<BatchNewX509svidRequest>::decode(&*batch.encode_to_vec()).unwrap();
        assert_eq!(read.0.params.len(), MAX_BATCH + 1);
        assert!(
            read.0.params.capacity() < 2 * MAX_BATCH,
            "no room for the others"
        );
    }

    #[test]
    fn a_list_that_is_as_long_as_it_may_be_is_read_whole_and_a_cut_one_is_still_checked() {
        let batch = BatchNewX509svidRequest {
            params: vec![NewX509svidParams::default(); MAX_BATCH],
        };
        let read = Capped::<BatchNewX509svidRequest>::decode(&*batch.encode_to_vec()).unwrap();
        assert_eq!(read.0, batch);
        let mut bytes = JwtsvidRequest {
            audience: vec!["a".to_owned(); 100],
            spiffe_id: String::new(),
        }
        .encode_to_vec();
        // The last item says that it is longer than what is there.
        bytes.extend([0x0a, 5, b'a']);
        Capped::<JwtsvidRequest>::decode(&*bytes).unwrap_err();
    }
}
