//! Configuration in JSON: any text is a document or a fault with a position, never a panic.
#![no_main]

use config::Document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // The first character is what makes it JSON.
    let text = format!("{{{text}");
    match Document::parse("fuzz.json", &text, None) {
        Ok(document) => {
            document.root().finish();
            assert!(document.faults().iter().all(|fault| fault.at.is_some()));
        }
        Err(faults) => assert!(faults.iter().all(|fault| fault.at.is_some())),
    }
});
