//! One entry for each decoder of this crate that reads text from outside, for the fuzz targets and for the test that replays
//! their corpus.

use crate::datastore::check_connection_string;
use crate::registry::Page;

/// PostgreSQL connection strings, URLs and pairs: refused or understood, and a refusal shows no value.
pub fn connection_string(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(refusal) = check_connection_string(text) {
        let password = text.split("password=").nth(1).unwrap_or_default();
        let shown = password.len() > 8 && refusal.contains(password);
        assert!(!shown, "a refusal that shows a password");
    }
}

/// Page tokens.
pub fn page_token(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    let page = Page {
        size: 1,
        token: token.to_owned(),
    };
    if let Ok(row) = page.after() {
        assert!(token.is_empty() || token.parse() == Ok(row));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[track_caller]
    fn replay(target: &str, parse: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        let mut files = 0;
        for file in std::fs::read_dir(corpus.join(target)).unwrap() {
            let data = std::fs::read(file.unwrap().path()).unwrap();
            for cut in 0..=data.len() {
                parse(&data[..cut]);
                parse(&data[cut..]);
            }
            files += 1;
        }
        assert!(files > 0, "no corpus of {target}");
    }

    #[test]
    fn connection_strings() {
        replay("connection_string", connection_string);
    }

    #[test]
    fn page_tokens() {
        replay("page_token", page_token);
    }
}
