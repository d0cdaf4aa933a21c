//! The JSON file of `entry create -data` and `entry update -data` (SPIRE: `{"entries": [...]}` with the field names of
//! its stored form).

use proto::spire::api::types::{Entry, Selector, entry::AdditionalAttributes};
use serde::Deserialize;

use crate::cli::error::CliError;
use crate::cli::ids;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    entries: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
struct Pair {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attributes {
    #[serde(default)]
    disable_x509_svid_prefetch: bool,
    #[serde(default)]
    jwt_svid_include_jti: bool,
}

/// Reads the entries of a file.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Entry>, CliError> {
    let file: File = serde_json::from_slice(json)
        .map_err(|error| CliError::usage(format!("the entry file is not valid: {error}")))?;
    file.entries.into_iter().map(entry).collect()
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

    #[test]
    fn reads_the_fields_of_an_entry() {
        let json = br#"{"entries":[{"selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":"spiffe://a/w",
            "parent_id":"spiffe://a/p","x509_svid_ttl":60,"entryExpiry":5,"additional_attributes":{"jwt_svid_include_jti":true}}]}"#;
        let entries = parse(json).unwrap();
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
            parse(json.as_bytes()).unwrap_err();
        }
    }
}
