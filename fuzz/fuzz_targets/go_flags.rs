#![no_main]

/// The program is no library: its reader of Go's flags is a file without dependencies.
#[path = "../../src/cli/spire/go_syntax.rs"]
mod go_syntax;

libfuzzer_sys::fuzz_target!(|data: &[u8]| go_syntax::check(data));
