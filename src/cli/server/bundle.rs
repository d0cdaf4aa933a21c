//! What the bundle commands share: their flags and showing a bundle.

use proto::spire::api::types::Bundle as WireBundle;
use spiffe::bundle::Bundle;

use crate::cli::error::CliError;
use crate::cli::flag::Flag;

pub(super) const FORMAT: Flag<String> =
    Flag::text("format", "format", "Bundle format: pem or spiffe")
        .value("FORMAT")
        .or("pem");
pub(super) const ID: Flag<String> =
    Flag::text("id", "id", "The trust domain").value("TRUST-DOMAIN");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BundleFormat {
    Pem,
    Spiffe,
}

pub(super) fn format(text: &str) -> Result<BundleFormat, CliError> {
    match text.to_ascii_lowercase().as_str() {
        "" | "pem" => Ok(BundleFormat::Pem),
        "spiffe" => Ok(BundleFormat::Spiffe),
        _ => Err(CliError::usage(format!("invalid format: {text:?}"))),
    }
}

/// The bundle in the chosen format, below a heading when it is one of several.
pub(super) fn text(
    wire: &WireBundle,
    format: BundleFormat,
    heading: bool,
) -> Result<String, CliError> {
    let bundle = read(wire)?;
    let body = match format {
        BundleFormat::Pem => bundle.to_pem(),
        BundleFormat::Spiffe => indented(&bundle.to_spiffe_json())?,
    };
    let stars = "*".repeat(40);
    let head = if heading {
        format!("{stars}\n* {}\n{stars}\n", bundle.trust_domain)
    } else {
        String::new()
    };
    Ok(format!("{head}{body}"))
}

pub(super) fn read(wire: &WireBundle) -> Result<Bundle, CliError> {
    proto::convert::bundle_from_wire(wire)
        .map_err(|error| CliError::failed(format!("the server's bundle cannot be read: {error}")))
}

/// JSON with an indent of four, as SPIRE prints bundles, the members in the order of the document.
fn indented(json: &[u8]) -> Result<String, CliError> {
    let text = std::str::from_utf8(json)
        .map_err(|error| CliError::failed(format!("cannot write the bundle: {error}")))?;
    let mut out = String::with_capacity(text.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    let mut chars = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"    ".repeat(depth));
    };
    while let Some(next) = chars.next() {
        if quoted {
            out.push(next);
            quoted = escaped || next != '"';
            escaped = !escaped && next == '\\';
            continue;
        }
        match next {
            '{' | '[' => {
                out.push(next);
                if let Some(close) = chars.next_if(|after| matches!(after, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(next);
            }
            ',' => {
                out.push(next);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            blank if blank.is_ascii_whitespace() => {}
            other => {
                quoted = other == '"';
                out.push(other);
            }
        }
    }
    out.push('\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::indented;

    #[test]
    fn members_keep_their_order_and_texts_stay_as_they_are() {
        let text = indented(br#"{"b":[{"y":"a,b:\\\"{"}],"a":[],"n":1}"#).unwrap();
        let expected = "{\n    \"b\": [\n        {\n            \"y\": \"a,b:\\\\\\\"{\"\n        }\n    ],\n    \"a\": [],\n    \"n\": 1\n}\n";
        assert_eq!(text, expected);
    }
}
