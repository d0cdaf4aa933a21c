//! PEM, read as Go's `encoding/pem` reads it, since the files that people have were written for it: a block begins at the
//! beginning of a line, may have headers, and text around blocks is passed over, as is a block that is broken. A caller that needs
//! a block and finds none can say where a broken one was.
//!
//! `rustls-pki-types` has a reader, too; it knows no headers and gives up at the first broken block.

use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// Largest PEM text read, in bytes.
pub const MAX_PEM: usize = 8 * 1024 * 1024;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// Go: padding is required, what is left over in the last digit is not looked at.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
        .with_decode_allow_trailing_bits(true),
);

/// One PEM block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// What stands between `-----BEGIN ` and `-----`.
    pub label: &'a str,
    pub der: Vec<u8>,
    /// The line on which the block begins, from 1.
    pub line: usize,
}

/// Why there is no PEM block to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("PEM block that begins in line {line} has no end marker of its type")]
    Unterminated { line: usize },
    #[error("PEM block that begins in line {line} is not base64")]
    NotBase64 { line: usize },
    #[error("PEM text is longer than 8 MiB")]
    TooLong,
}

/// The blocks of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Blocks<'a> {
    /// Those that could be read, in order.
    pub good: Vec<Block<'a>>,
    /// The first that could not.
    pub broken: Option<PemError>,
}

/// Reads the PEM blocks of `text`.
///
/// # Errors
/// [`PemError::TooLong`].
pub fn blocks(text: &str) -> Result<Blocks<'_>, PemError> {
    if text.len() > MAX_PEM {
        return Err(PemError::TooLong);
    }
    let mut blocks = Blocks {
        good: Vec::new(),
        broken: None,
    };
    let mut lines = Lines {
        rest: text,
        number: 0,
    };
    while let Some(line) = lines.next() {
        // Go: a line that begins like a marker and does not end like one is text.
        let label = line
            .strip_prefix(BEGIN)
            .and_then(|line| line.strip_suffix(DASHES));
        let Some(label) = label else {
            continue;
        };
        match read_block(label, lines) {
            Ok((block, after)) => {
                blocks.good.push(block);
                lines = after;
            }
            // The search goes on behind the marker: another block may begin within.
            Err(broken) => {
                blocks.broken.get_or_insert(broken);
            }
        }
    }
    Ok(blocks)
}

/// The lines of a text without the white space at their ends.
#[derive(Clone, Copy)]
struct Lines<'a> {
    rest: &'a str,
    /// Of the line read last.
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.number += 1;
        Some(line.trim_end_matches([' ', '\t', '\r']))
    }
}

/// Reads what follows a begin marker, up to the end marker of the same type.
fn read_block<'a>(
    label: &'a str,
    mut lines: Lines<'a>,
) -> Result<(Block<'a>, Lines<'a>), PemError> {
    let line = lines.number;
    // May be a private key.
    let mut digits = Zeroizing::new(Vec::new());
    let mut in_headers = true;
    let ended = loop {
        let Some(text) = lines.next() else {
            break false;
        };
        if let Some(end) = text.strip_prefix(END) {
            break end.strip_suffix(DASHES) == Some(label);
        }
        // Another block begins, so this one is broken whatever follows. Without this, text full of markers would be read
        // to its end for each of them.
        if text.starts_with(BEGIN) && text.ends_with(DASHES) {
            break false;
        }
        // RFC 1421 headers stand before the digits: `Proc-Type: 4,ENCRYPTED`.
        if in_headers && text.contains(':') {
            continue;
        }
        in_headers = in_headers && text.is_empty();
        digits.extend(text.bytes().filter(|b| !b.is_ascii_whitespace()));
    };
    if !ended {
        return Err(PemError::Unterminated { line });
    }
    let der = LENIENT
        .decode(digits.as_slice())
        .map_err(|_not_base64| PemError::NotBase64 { line })?;
    Ok((Block { label, der, line }, lines))
}

/// Appends one block to `out`, in lines of 64 characters.
pub fn write_block(out: &mut String, label: &str, der: &[u8]) {
    let digits = STANDARD.encode(der);
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = digits.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(text: &str) -> Vec<(&str, Vec<u8>, usize)> {
        let blocks = blocks(text).unwrap().good.into_iter();
        blocks
            .map(|block| (block.label, block.der, block.line))
            .collect()
    }

    fn broken(text: &str) -> Option<PemError> {
        let blocks = blocks(text).unwrap();
        assert!(blocks.good.is_empty(), "{blocks:?}");
        blocks.broken
    }

    #[test]
    fn reads_what_it_writes_and_passes_over_text_around_it() {
        let mut text = String::from("before\n");
        write_block(&mut text, "CERTIFICATE", &[7; 100]);
        text.push_str("between\r\n");
        write_block(&mut text, "PRIVATE KEY", &[1]);
        assert_eq!(
            good(&text),
            [
                ("CERTIFICATE", vec![7; 100], 2),
                ("PRIVATE KEY", vec![1], 8)
            ]
        );
        assert_eq!(
            good(&text.replace('\n', "\r\n")).len(),
            2,
            "as Windows writes it"
        );
        assert!(good("text alone").is_empty());
    }

    #[test]
    fn passes_over_blocks_that_are_commented_out_and_markers_within_text() {
        let mut text = String::from(
            "# -----BEGIN CERTIFICATE-----\n# AAAA\n# -----END CERTIFICATE-----\n\
             -----BEGIN CERTIFICATE, as exported in May\n the words -----BEGIN CERTIFICATE-----\n",
        );
        write_block(&mut text, "CERTIFICATE", &[1, 2, 3]);
        assert_eq!(good(&text), [("CERTIFICATE", vec![1, 2, 3], 6)]);
    }

    #[test]
    fn reads_the_good_block_behind_a_broken_one() {
        let mut text = String::from("-----BEGIN CERTIFICATE-----\nAAAA\n");
        write_block(&mut text, "CERTIFICATE", &[9]);
        assert_eq!(
            good(&text),
            [("CERTIFICATE", vec![9], 3)],
            "the first has no end"
        );
        let mut text = String::from("-----BEGIN A-----\n!!!!\n-----END A-----\n");
        write_block(&mut text, "A", &[9]);
        assert_eq!(good(&text), [("A", vec![9], 4)]);
    }

    #[test]
    fn passes_over_headers() {
        let text = "-----BEGIN CERTIFICATE-----\nComment: the old root\nX: y\n\nAAAA\n-----END CERTIFICATE-----";
        assert_eq!(good(text), [("CERTIFICATE", vec![0, 0, 0], 1)]);
    }

    #[test]
    fn says_where_a_broken_block_begins() {
        for text in [
            "x\n-----BEGIN A-----\nAAAA\n",
            "x\n-----BEGIN A-----\nAAAA\n-----END B-----\n",
            "x\n-----BEGIN A-----\nAAAA\n-----END A----\n",
            "x\n-----BEGIN A-----",
        ] {
            assert_eq!(
                broken(text),
                Some(PemError::Unterminated { line: 2 }),
                "{text}"
            );
        }
        for digits in ["!!!!", "AAA", "AA=A", "-----BEGIN"] {
            let text = format!("\n\n-----BEGIN A-----\n{digits}\n-----END A-----\n");
            assert_eq!(
                broken(&text),
                Some(PemError::NotBase64 { line: 3 }),
                "{text}"
            );
        }
        assert_eq!(broken("-----BEGIN A---\n-----END A-----\n"), None);
        let long = "x".repeat(MAX_PEM + 1);
        assert_eq!(blocks(&long), Err(PemError::TooLong));
    }
}
