#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| spiffe::fuzzing::bundle_json(data));
