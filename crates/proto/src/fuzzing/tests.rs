//! Replays the fuzz corpus on every run: what once mattered stays tried, whole, cut short and bent.

use std::path::Path;

use crate::fuzzing;

#[track_caller]
fn replay(target: &str, parse: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut files = 0;
    for file in std::fs::read_dir(&directory).unwrap() {
        let data = std::fs::read(file.unwrap().path()).unwrap();
        parse(&data);
        for cut in 0..data.len().min(256) {
            parse(data.get(..cut).unwrap_or_default());
        }
        for step in 1..=64_usize {
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
fn http2() {
    replay("http2", fuzzing::http2);
}

#[test]
fn wire() {
    replay("wire", fuzzing::wire);
}
