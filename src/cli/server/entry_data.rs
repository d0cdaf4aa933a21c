//! The JSON file of `entry create -data` and `entry update -data` (SPIRE: `{"entries": [...]}` with the field names of
//! its stored form).

use proto::spire::api::types::{Entry, Selector, entry::AdditionalAttributes};
use serde::Deserialize;

use crate::cli::context::Face;
use crate::cli::error::CliError;
use crate::cli::ids;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    entries: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    selectors: Vec<Pair>,
    #[serde(default)]
    parent_id: String,
    #[serde(default)]
    spiffe_id: String,
    #[serde(default)]
    x509_svid_ttl: i32,
    #[serde(default)]
    jwt_svid_ttl: i32,
    #[serde(default)]
    federates_with: Vec<String>,
    #[serde(default)]
    entry_id: String,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default, rename = "entryExpiry")]
    entry_expiry: i64,
    #[serde(default)]
    dns_names: Vec<String>,
    #[serde(default)]
    revision_number: i64,
    #[serde(default)]
    store_svid: bool,
    #[serde(default)]
    hint: String,
    #[serde(default)]
    created_at: i64,
    additional_attributes: Option<Attributes>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Deserialize)]
struct Attributes {
    #[serde(default)]
    disable_x509_svid_prefetch: bool,
    #[serde(default)]
    jwt_svid_include_jti: bool,
}

/// The members of the file, of an entry and of what lies in it.
const MEMBERS: [&str; 19] = [
    "entries",
    "selectors",
    "parent_id",
    "spiffe_id",
    "x509_svid_ttl",
    "jwt_svid_ttl",
    "federates_with",
    "entry_id",
    "admin",
    "downstream",
    "entryExpiry",
    "dns_names",
    "revision_number",
    "store_svid",
    "hint",
    "created_at",
    "additional_attributes",
    "disable_x509_svid_prefetch",
    "jwt_svid_include_jti",
];

/// Reads the entries of a file. A member that does not exist is refused natively; SPIRE passes over it.
pub(super) fn parse(json: &[u8], face: Face) -> Result<Vec<Entry>, CliError> {
    let wrong = |error: serde_json::Error| CliError::usage(fault(json, &error, face));
    if json.trim_ascii_start().starts_with(b"[") {
        return Err(CliError::usage(
            "the entry file is not valid: it is a list, not an object with the member \"entries\"",
        ));
    }
    if face == Face::Native {
        let value: serde_json::Value = serde_json::from_slice(json).map_err(wrong)?;
        if let Some(name) = unknown_member(&value) {
            return Err(CliError::usage(format!(
                "the entry file has a member {name:?}, which an entry does not have"
            )));
        }
    }
    let file: File = serde_json::from_slice(json).map_err(wrong)?;
    file.entries.into_iter().map(entry).collect()
}

fn unknown_member(value: &serde_json::Value) -> Option<&str> {
    match value {
        serde_json::Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let known =
                MEMBERS.contains(&name.as_str()) || matches!(name.as_str(), "type" | "value");
            if known {
                unknown_member(value)
            } else {
                Some(name.as_str())
            }
        }),
        serde_json::Value::Array(items) => items.iter().find_map(unknown_member),
        _ => None,
    }
}

/// What is wrong with the JSON; on the shim in Go's words for the two common faults.
fn fault(json: &[u8], error: &serde_json::Error, face: Face) -> String {
    if face == Face::Shim && error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let first = json.trim_ascii_start().first().copied();
    match first {
        Some(byte) if face == Face::Shim && !b"{[\"-0123456789tfn".contains(&byte) => {
            format!(
                "invalid character {:?} looking for beginning of value",
                char::from(byte)
            )
        }
        _ => format!("the entry file is not valid: {error}"),
    }
}

fn entry(item: Item) -> Result<Entry, CliError> {
    let attributes = item
        .additional_attributes
        .map(|attributes| AdditionalAttributes {
            disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
            jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        });
    Ok(Entry {
        id: item.entry_id,
        spiffe_id: Some(ids::parse(&item.spiffe_id)?),
        parent_id: Some(ids::parse(&item.parent_id)?),
        selectors: item
            .selectors
            .into_iter()
            .map(|pair| Selector {
                r#type: pair.kind,
                value: pair.value,
            })
            .collect(),
        x509_svid_ttl: item.x509_svid_ttl,
        federates_with: item.federates_with,
        admin: item.admin,
        downstream: item.downstream,
        expires_at: item.entry_expiry,
        dns_names: item.dns_names,
        revision_number: item.revision_number,
        store_svid: item.store_svid,
        jwt_svid_ttl: item.jwt_svid_ttl,
        hint: item.hint,
        created_at: item.created_at,
        additional_attributes: attributes,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::cli::context::Face;

    #[test]
    fn reads_the_fields_of_an_entry() {
        let json = br#"{"entries":[{"selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":"spiffe://a/w",
            "parent_id":"spiffe://a/p","x509_svid_ttl":60,"entryExpiry":5,"additional_attributes":{"jwt_svid_include_jti":true}}]}"#;
        let entries = parse(json, Face::Native).unwrap();
        assert_eq!(entries[0].x509_svid_ttl, 60);
        assert_eq!(entries[0].expires_at, 5);
        assert!(
            entries[0]
                .additional_attributes
                .unwrap()
                .jwt_svid_include_jti
        );
    }

    #[test]
    fn refuses_what_it_does_not_know_or_cannot_read() {
        for json in [
            "",
            "[]",
            r#"{"entry":[]}"#,
            r#"{"entries":[{"spiffeID":"x"}]}"#,
            r#"{"entries":[{"spiffe_id":"nope","parent_id":"spiffe://a/p"}]}"#,
        ] {
            parse(json.as_bytes(), Face::Native).unwrap_err();
        }
    }

    #[test]
    fn faults_of_the_json_are_worded_as_spire_words_them_on_the_shim() {
        for (json, fault) in [
            ("", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
        ] {
            let error = parse(json.as_bytes(), Face::Shim).unwrap_err();
            assert_eq!(error.to_string(), fault);
        }
    }
}
