//! One entry for each decoder of this crate that reads bytes from outside, for the fuzz targets and for the test that replays
//! their corpus. Each asserts what must hold for any bytes.

use prost::Message;

use crate::authority_filter::AuthorityRewriter;
use crate::convert;
use crate::spire::api::types;

/// HTTP/2 from a local client, whole and in pieces: the rewriter gives out the same either way, and never more than it read but
/// for the characters that it replaces.
pub fn http2(data: &[u8]) {
    let mut whole = Vec::new();
    let mut rewriter = AuthorityRewriter::new();
    rewriter.push(data, &mut whole);
    rewriter.finish(&mut whole);
    let mut pieces = Vec::new();
    let mut rewriter = AuthorityRewriter::new();
    for piece in data.chunks(7) {
        rewriter.push(piece, &mut pieces);
    }
    rewriter.finish(&mut pieces);
    assert_eq!(whole, pieces, "how the bytes arrive makes no difference");
}

/// Messages of the SPIRE API and what becomes of them. The first byte says which message.
pub fn wire(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => entry(message),
        1 => bundle(message),
        _ => identifiers(message),
    }
}

fn entry(message: &[u8]) {
    let Ok(wire) = types::Entry::decode(message) else {
        return;
    };
    if let Ok(entry) = convert::entry_from_wire(&wire) {
        let again = convert::entry_from_wire(&convert::entry_to_wire(&entry, None));
        assert_eq!(
            again.ok(),
            Some(entry),
            "what was accepted is accepted again"
        );
    }
}

fn bundle(message: &[u8]) {
    let Ok(wire) = types::Bundle::decode(message) else {
        return;
    };
    if let Ok(bundle) = convert::bundle_from_wire(&wire) {
        let again = convert::bundle_from_wire(&convert::bundle_to_wire(&bundle, None));
        assert_eq!(
            again.ok(),
            Some(bundle),
            "what was accepted is accepted again"
        );
    }
}

fn identifiers(message: &[u8]) {
    let Ok(wire) = types::Entry::decode(message) else {
        return;
    };
    for id in [&wire.spiffe_id, &wire.parent_id] {
        if let Ok(id) = convert::spiffe_id_from_wire(id.as_ref()) {
            let wire = convert::spiffe_id_to_wire(&id);
            assert_eq!(convert::spiffe_id_from_wire(Some(&wire)).ok(), Some(id));
        }
    }
    if let Ok(selectors) = convert::selectors_from_wire(&wire.selectors) {
        let wire = convert::selectors_to_wire(&selectors);
        assert_eq!(convert::selectors_from_wire(&wire).ok(), Some(selectors));
    }
}

#[cfg(test)]
mod tests;
