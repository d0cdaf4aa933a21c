//! The configuration language: any text is a document or a fault with a position, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use config::{Document, Environment};

fuzz_target!(|text: &str| {
    let environment = |name: &str| Some(name.to_owned());
    for expand in [None, Some(&environment as Environment<'_>)] {
        match Document::parse("fuzz.conf", text, expand) {
            Ok(document) => {
                document.root().finish();
                assert!(document.faults().iter().all(|fault| fault.at.is_some()));
            }
            Err(faults) => assert!(faults.iter().all(|fault| fault.at.is_some())),
        }
    }
});
