//! Black-box tests of the whole product: processes, sockets, command line and files.
//!
//! `PLASTRON_TEST_SERVER` and `PLASTRON_TEST_AGENT` choose the implementations. A test that needs what `tests/run`
//! installs is ignored by a plain `cargo test`.

mod sdk;
mod svid;
