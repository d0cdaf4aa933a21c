//! Measures Plastron, beside SPIRE when its programs are given.
fn main() {}
