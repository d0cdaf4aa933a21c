//! Page tokens of listings.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::page_token(data));
