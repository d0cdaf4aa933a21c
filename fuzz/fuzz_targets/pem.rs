//! PEM files of certificates.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| spiffe::fuzzing::pem(data));
