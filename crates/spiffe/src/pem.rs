//! PEM, leniently framed as everybody writes it: text around the blocks is ignored, lines may have any length.
//! What is between the markers is strict base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Largest PEM text read, in bytes.
pub const MAX_PEM: usize = 8 * 1024 * 1024;

/// One PEM block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// What stands between `-----BEGIN ` and `-----`.
    pub label: &'a str,
    pub der: Vec<u8>,
}

/// Why a PEM block could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("PEM block has no end marker")]
    Unterminated,
    #[error("PEM block is not base64")]
    NotBase64,
    #[error("PEM text is too long")]
    TooLong,
}

/// The PEM blocks of `text`, in order. After an error there are no more.
pub fn blocks(text: &str) -> impl Iterator<Item = Result<Block<'_>, PemError>> {
    let mut rest = if text.len() > MAX_PEM {
        Err(PemError::TooLong)
    } else {
        Ok(text)
    };
    std::iter::from_fn(move || {
        let text = match rest {
            Ok(text) => text,
            Err(fault) => {
                rest = Ok("");
                return Some(Err(fault));
            }
        };
        match next_block(text)? {
            Ok((block, after)) => {
                rest = Ok(after);
                Some(Ok(block))
            }
            Err(fault) => {
                rest = Ok("");
                Some(Err(fault))
            }
        }
    })
}

fn next_block(text: &str) -> Option<Result<(Block<'_>, &str), PemError>> {
    const BEGIN: &str = "-----BEGIN ";
    let (label, body) = text
        .get(text.find(BEGIN)? + BEGIN.len()..)?
        .split_once("-----")?;
    let Some((body, after)) = body.split_once("-----END ") else {
        return Some(Err(PemError::Unterminated));
    };
    let Some(after) = after
        .strip_prefix(label)
        .and_then(|after| after.strip_prefix("-----"))
    else {
        return Some(Err(PemError::Unterminated));
    };
    // May be a private key.
    let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
    digits.extend(body.bytes().filter(|b| !b.is_ascii_whitespace()));
    match STANDARD.decode(digits.as_slice()) {
        Ok(der) => Some(Ok((Block { label, der }, after))),
        Err(_not_base64) => Some(Err(PemError::NotBase64)),
    }
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

    #[test]
    fn reads_what_it_writes_and_ignores_filler() {
        let mut text = String::from("before\n");
        write_block(&mut text, "CERTIFICATE", &[7; 100]);
        text.push_str("between\r\n");
        write_block(&mut text, "PRIVATE KEY", &[1]);
        let read: Vec<_> = blocks(&text).map(Result::unwrap).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[0].label, read[0].der.as_slice()),
            ("CERTIFICATE", &[7u8; 100][..])
        );
        assert_eq!(
            (read[1].label, read[1].der.as_slice()),
            ("PRIVATE KEY", &[1u8][..])
        );
        assert_eq!(blocks("filler only").count(), 0);
    }

    #[test]
    fn refuses_broken_blocks_and_then_stops() {
        let unterminated = "-----BEGIN A-----\nAAAA\n-----END B-----\n-----BEGIN A-----";
        assert_eq!(
            blocks(unterminated).collect::<Vec<_>>(),
            vec![Err(PemError::Unterminated)]
        );
        let not_base64 = "-----BEGIN A-----\n!!!!\n-----END A-----\n";
        assert_eq!(
            blocks(not_base64).collect::<Vec<_>>(),
            vec![Err(PemError::NotBase64)]
        );
    }
}
