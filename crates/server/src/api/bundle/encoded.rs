//! The own bundle as it is sent: encoded once for each of its versions, and sent to all who ask from where it lies.
//!
//! Whoever can connect may ask for the bundle. An answer that its caller does not read holds no copy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use proto::convert::bundle_to_wire;
use proto::message_body;
use proto::spire::api::types::BundleMask;
use spiffe::bundle::Bundle;

/// The messages of the last bundle that was asked for.
#[derive(Debug, Default)]
pub(super) struct EncodedBundle(Mutex<Option<Version>>);

#[derive(Debug)]
struct Version {
    /// As the registry has it: another version is another allocation, which cannot take this one's place while it is here.
    bundle: Arc<Bundle>,
    /// By the fields that they have; a mask has five, so there are at most 32.
    messages: HashMap<[bool; 5], Bytes>,
}

impl EncodedBundle {
    /// The framed message of the bundle with the fields that the mask lets through.
    pub(super) fn message(&self, bundle: &Arc<Bundle>, mask: Option<&BundleMask>) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.take().filter(|last| Arc::ptr_eq(&last.bundle, bundle));
        let version = last.insert(known.unwrap_or_else(|| Version {
            bundle: Arc::clone(bundle),
            messages: HashMap::new(),
        }));
        let message = version.messages.entry(fields(mask)).or_insert_with(|| {
            let message = bundle_to_wire(bundle, mask);
            message_body::frame(&message).into()
        });
        message.clone()
    }
}

fn fields(mask: Option<&BundleMask>) -> [bool; 5] {
    mask.map_or([true; 5], |mask| {
        [
            mask.x509_authorities,
            mask.jwt_authorities,
            mask.wit_authorities,
            mask.refresh_hint,
            mask.sequence_number,
        ]
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use proto::spire::api::types;
    use spiffe::trust_domain::TrustDomain;

    use super::*;

    fn bundle(refresh_hint: i64) -> Arc<Bundle> {
        let mut bundle = Bundle::new(TrustDomain::parse("example.org").unwrap());
        bundle.refresh_hint = refresh_hint;
        bundle.sequence_number = 7;
        Arc::new(bundle)
    }

    fn read(message: &Bytes) -> (i64, u64) {
        let wire = types::Bundle::decode(message.slice(message_body::PREFIX..)).unwrap();
        (wire.refresh_hint, wire.sequence_number)
    }

    #[test]
    fn one_version_is_encoded_once_and_another_replaces_it() {
        let encoded = EncodedBundle::default();
        let (old, new) = (bundle(1), bundle(2));
        let first = encoded.message(&old, None);
        assert_eq!(first.as_ptr(), encoded.message(&old, None).as_ptr());
        assert_eq!(read(&first), (1, 7));
        assert_eq!(read(&encoded.message(&new, None)), (2, 7));
        assert_eq!(read(&encoded.message(&old, None)), (1, 7));
    }

    #[test]
    fn a_mask_has_a_message_of_its_own() {
        let encoded = EncodedBundle::default();
        let bundle = bundle(1);
        let all = encoded.message(&bundle, None);
        let hint = BundleMask {
            refresh_hint: true,
            ..BundleMask::default()
        };
        let masked = encoded.message(&bundle, Some(&hint));
        assert_eq!(read(&masked), (1, 0));
        assert_eq!(
            read(&encoded.message(&bundle, Some(&BundleMask::default()))),
            (0, 0)
        );
        assert_eq!(all.as_ptr(), encoded.message(&bundle, None).as_ptr());
        assert_eq!(
            masked.as_ptr(),
            encoded.message(&bundle, Some(&hint)).as_ptr()
        );
    }
}
