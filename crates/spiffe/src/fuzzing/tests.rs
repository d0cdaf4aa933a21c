//! Replays the fuzz corpus on the stable toolchain: what once mattered stays tried.

use crate::fuzzing;
use std::path::Path;

#[track_caller]
fn replay(target: &str, parse: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut files = 0;
    for file in std::fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        parse(&data);
        // Cut short and bent, every seed is a dozen more.
        for cut in [1, 2, 3, data.len() / 2, data.len().saturating_sub(1)] {
            parse(data.get(..cut).unwrap_or_default());
        }
        for step in 1..=64usize {
            let mut bent = data.clone();
            let at = step * 31 % data.len().max(1);
            if let Some(byte) = bent.get_mut(at) {
                *byte ^= u8::try_from(step).unwrap() << 1;
                parse(&bent);
            }
        }
        files += 1;
    }
    assert!(files > 0, "no corpus in {}", directory.display());
}

#[test]
fn spiffe_ids() {
    replay("spiffe_id", fuzzing::spiffe_id);
}

#[test]
fn x509_svids() {
    replay("x509_svid", fuzzing::x509_svid);
}

#[test]
fn signing_requests() {
    replay("csr", fuzzing::csr);
}

#[test]
fn tokens() {
    replay("jwt", fuzzing::jwt);
}

#[test]
fn bundle_documents() {
    replay("bundle_json", fuzzing::bundle_json);
}

#[test]
fn socket_addresses() {
    replay("socket_addr", fuzzing::socket_addr);
}

#[test]
fn selectors() {
    replay("selector", fuzzing::selector);
}

#[test]
fn pem() {
    replay("pem", fuzzing::pem);
}
