//! Environment variables in the text of a configuration file, replaced before it is parsed.
//!
//! Follows the rules of Go's `os.Expand`, for SPIRE's files are written to them, and remembers which piece of the
//! result came from where, so that positions are those of the file and not of what the variables made of it.

use crate::Environment;

/// A run of the expanded text.
pub(super) struct Piece {
    /// Where it starts in the expanded text.
    pub(super) expanded: usize,
    /// Where it starts in the original text.
    pub(super) original: usize,
    /// Whether it stands for a variable: then every byte of it came from `original`.
    pub(super) substituted: bool,
}

pub(super) fn expand(text: &str, environment: Environment<'_>) -> (String, Vec<Piece>) {
    let mut out = String::with_capacity(text.len());
    let mut pieces = vec![Piece {
        expanded: 0,
        original: 0,
        substituted: false,
    }];
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.find('$')) {
        let dollar = at + found;
        out.push_str(text.get(at..dollar).unwrap_or_default());
        let rest = text.get(dollar + 1..).unwrap_or_default();
        let (name, width) = name_after_dollar(rest);
        match name {
            None => {
                // A dollar sign before anything else stays one.
                out.push('$');
                at = dollar + 1;
                continue;
            }
            Some(name) => {
                pieces.push(Piece {
                    expanded: out.len(),
                    original: dollar,
                    substituted: true,
                });
                match name {
                    "" => {}
                    "$" => out.push('$'),
                    name => out.push_str(&environment(name).unwrap_or_default()),
                }
            }
        }
        at = dollar + 1 + width;
        pieces.push(Piece {
            expanded: out.len(),
            original: at,
            substituted: false,
        });
    }
    out.push_str(text.get(at..).unwrap_or_default());
    (out, pieces)
}

/// The name of the variable and the bytes it takes after the dollar sign; no name when the dollar sign is a plain one,
/// an empty name for bad syntax, which is dropped.
fn name_after_dollar(rest: &str) -> (Option<&str>, usize) {
    let bytes = rest.as_bytes();
    match bytes.first() {
        None => (None, 0),
        Some(b'{') => {
            if bytes.get(1).copied().is_some_and(is_special) && bytes.get(2) == Some(&b'}') {
                return (rest.get(1..2), 3);
            }
            match rest.find('}') {
                Some(end) => (rest.get(1..end), end + 1),
                None => (Some(""), 1),
            }
        }
        Some(&byte) if is_special(byte) => (rest.get(..1), 1),
        Some(_) => {
            let end = bytes
                .iter()
                .position(|b| !(b.is_ascii_alphanumeric() || *b == b'_'))
                .unwrap_or(bytes.len());
            if end == 0 {
                (None, 0)
            } else {
                (rest.get(..end), end)
            }
        }
    }
}

/// The shell's one-letter variables, such as `$?`.
fn is_special(byte: u8) -> bool {
    matches!(byte, b'*' | b'#' | b'$' | b'@' | b'!' | b'?' | b'-') || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        let environment = |name: &str| match name {
            "A" => Some("alpha".to_owned()),
            "LONG_NAME1" => Some("long".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("$A".to_owned()),
            "0" => Some("zero".to_owned()),
            _ => None,
        };
        expand(text, &environment).0
    }

    #[test]
    fn replaces_as_the_shell_would() {
        for (text, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$A", "alpha"),
            ("${A}", "alpha"),
            ("x${A}y$A.z", "xalphayalpha.z"),
            ("$LONG_NAME1-", "long-"),
            ("$Ab", ""),
            ("[$MISSING]", "[]"),
            ("[${MISSING}]", "[]"),
            ("[$EMPTY]", "[]"),
            ("$NESTED", "$A"),
            ("$$A", "$A"),
            ("${$}A", "$A"),
            ("$$$$", "$$"),
            ("$0", "zero"),
            ("$01", "zero1"),
            ("${A-b}", ""),
        ] {
            assert_eq!(expanded(text), want, "{text}");
        }
    }

    #[test]
    fn keeps_or_drops_what_is_no_variable_as_go_does() {
        for (text, want) in [
            ("cost: 5$", "cost: 5$"),
            ("$ A", "$ A"),
            ("$.", "$."),
            ("$ä", "$ä"),
            ("${}", ""),
            ("a${}b", "ab"),
            ("${A", "A"),
            ("$*$#$@$!$?$-", ""),
        ] {
            assert_eq!(expanded(text), want, "{text}");
        }
    }
}
