//! HTTP/2 from local clients, as the repair of their requests reads it.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::fuzzing::http2(data));
