//! Black-box tests of the whole product: processes, sockets, command line and files.
//!
//! `PLASTRON_TEST_SERVER` and `PLASTRON_TEST_AGENT` choose the implementations, so each test is tried on SPIRE too. What
//! SPIRE does not promise is in `plastron_alone`. A test that needs what `tests/run` installs is ignored by a plain
//! `cargo test`.

mod cli_compat;
mod fault_codes;
mod jwt;
mod layering;
mod native_cli;
mod partner_bundle;
mod plastron_alone;
mod refusal;
mod removal;
mod restart;
mod rotation;
mod sdk;
mod svid;
