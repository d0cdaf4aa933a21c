//! Messages of the SPIRE API and what becomes of them.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::fuzzing::wire(data));
