//! What the bundle commands share: their flags and showing a bundle.

use proto::spire::api::types::Bundle as WireBundle;
use spiffe::bundle::Bundle;

use crate::cli::error::CliError;
use crate::cli::spec::{Flag, Kind, flag};

pub(super) const FORMAT: Flag = flag(
    "format",
    "format",
    Kind::Text,
    "How the bundle is written: pem or spiffe",
)
.or("pem");
pub(super) const ID: Flag = flag("id", "id", Kind::Text, "The trust domain");

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

/// JSON with an indent of four, as SPIRE prints bundles.
fn indented(json: &[u8]) -> Result<String, CliError> {
    use serde::Serialize;
    let value: serde_json::Value = serde_json::from_slice(json)
        .map_err(|error| CliError::failed(format!("cannot write the bundle: {error}")))?;
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value
        .serialize(&mut writer)
        .map_err(|error| CliError::failed(format!("cannot write the bundle: {error}")))?;
    out.push(b'\n');
    String::from_utf8(out)
        .map_err(|error| CliError::failed(format!("cannot write the bundle: {error}")))
}
