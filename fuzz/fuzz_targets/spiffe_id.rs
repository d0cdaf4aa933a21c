#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| spiffe::fuzzing::spiffe_id(data));
