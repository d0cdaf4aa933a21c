//! The JSON file of `entry create -data` and `entry update -data` (SPIRE: `{"entries": [...]}` with the field names of
//! its stored form).

use proto::spire::api::types::{Entry, Selector, entry::AdditionalAttributes};

use crate::cli::context::Frontend;
use crate::cli::error::CliError;
use crate::cli::ids;
use crate::cli::json_input::{Json, Object};
use crate::cli::output;

/// Reads the entries of a file. On the shims what is ignored, as SPIRE ignores it, is warned of.
pub(super) fn parse(json: &[u8], frontend: Frontend) -> Result<Vec<Entry>, CliError> {
    let document: Json = serde_json::from_slice(json)
        .map_err(|error| CliError::usage(unreadable(json, &error, frontend)))?;
    if matches!(document, Json::List(_)) {
        return Err(CliError::usage(
            "the entry file is not valid: it is a list, not an object with the member \"entries\"",
        ));
    }
    let mut warnings = Vec::new();
    let entries = document_entries(&document, frontend, &mut warnings)?;
    if entries.is_empty() {
        let text = "the file has no entries, so nothing is done";
        match frontend {
            Frontend::Native => return Err(CliError::usage(text)),
            // (SPIRE: exit code 0 and no word.)
            Frontend::Spire => warnings.push(text.to_owned()),
        }
    }
    for warning in warnings {
        output::say(&format!("Warning: {warning}"));
    }
    Ok(entries)
}

fn invalid(fault: impl std::fmt::Display) -> CliError {
    CliError::usage(format!("the entry file is not valid: {fault}"))
}

fn document_entries(
    document: &Json,
    frontend: Frontend,
    warnings: &mut Vec<String>,
) -> Result<Vec<Entry>, CliError> {
    let file = Object::new(document, "", frontend).map_err(invalid)?;
    let items = file.list("entries").map_err(invalid)?;
    let entries = items
        .into_iter()
        .map(|(path, item)| entry(item, &path, frontend, warnings))
        .collect::<Result<_, _>>()?;
    warnings.extend(file.finish().map_err(invalid)?);
    Ok(entries)
}

/// What is wrong with the JSON; on the shim in Go's words for the two common faults.
fn unreadable(json: &[u8], error: &serde_json::Error, frontend: Frontend) -> String {
    if frontend == Frontend::Spire && error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let first = json.trim_ascii_start().first().copied();
    match first {
        None => "nothing was given: the entry file is empty".to_owned(),
        Some(byte) if frontend == Frontend::Spire && !b"{[\"-0123456789tfn".contains(&byte) => {
            format!(
                "invalid character {:?} looking for beginning of value",
                char::from(byte)
            )
        }
        _ => format!("the entry file is not valid: {error}"),
    }
}

fn entry(
    item: &Json,
    path: &str,
    frontend: Frontend,
    warnings: &mut Vec<String>,
) -> Result<Entry, CliError> {
    let mut ids = (String::new(), String::new());
    let entry = fields(item, path, frontend, &mut ids, warnings).map_err(invalid)?;
    let (spiffe_id, parent_id) = ids;
    Ok(Entry {
        spiffe_id: Some(ids::parse(&spiffe_id)?),
        parent_id: Some(ids::parse(&parent_id)?),
        ..entry
    })
}

/// Everything but the SPIFFE ID and the parent ID, which are parsed last, as SPIRE does.
fn fields(
    item: &Json,
    path: &str,
    frontend: Frontend,
    ids: &mut (String, String),
    warnings: &mut Vec<String>,
) -> Result<Entry, String> {
    let object = Object::new(item, path, frontend)?;
    *ids = (object.text("spiffe_id")?, object.text("parent_id")?);
    let mut selectors = Vec::new();
    for (path, item) in object.list("selectors")? {
        let selector = Object::new(item, path, frontend)?;
        selectors.push(Selector {
            r#type: selector.text("type")?,
            value: selector.text("value")?,
        });
        warnings.extend(selector.finish()?);
    }
    let additional_attributes = match object.object("additional_attributes")? {
        None => None,
        Some(attributes) => {
            let read = AdditionalAttributes {
                disable_x509_svid_prefetch: attributes.boolean("disable_x509_svid_prefetch")?,
                jwt_svid_include_jti: attributes.boolean("jwt_svid_include_jti")?,
            };
            warnings.extend(attributes.finish()?);
            Some(read)
        }
    };
    let entry = Entry {
        id: object.text("entry_id")?,
        spiffe_id: None,
        parent_id: None,
        selectors,
        x509_svid_ttl: object.integer("x509_svid_ttl")?,
        federates_with: object.texts("federates_with")?,
        admin: object.boolean("admin")?,
        downstream: object.boolean("downstream")?,
        expires_at: object.integer("entryExpiry")?,
        dns_names: object.texts("dns_names")?,
        revision_number: object.integer("revision_number")?,
        store_svid: object.boolean("store_svid")?,
        jwt_svid_ttl: object.integer("jwt_svid_ttl")?,
        hint: object.text("hint")?,
        created_at: object.integer("created_at")?,
        additional_attributes,
    };
    warnings.extend(object.finish()?);
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::cli::context::Frontend;

    #[test]
    fn reads_the_fields_of_an_entry() {
        let json = br#"{"entries":[{"selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":"spiffe://a/w",
            "parent_id":"spiffe://a/p","x509_svid_ttl":60,"entryExpiry":5,"additional_attributes":{"jwt_svid_include_jti":true}}]}"#;
        let entries = parse(json, Frontend::Native).unwrap();
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
            "{}",
            r#"{"entries":[]}"#,
            r#"{"entries":null}"#,
            r#"{"entry":[]}"#,
            r#"{"entries":[{"spiffeID":"x"}]}"#,
            r#"{"entries":[{"spiffe_id":"nope","parent_id":"spiffe://a/p"}]}"#,
        ] {
            parse(json.as_bytes(), Frontend::Native).unwrap_err();
        }
    }

    const PLAIN: &str = r#""selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":"spiffe://a/w","parent_id":"spiffe://a/p""#;

    #[test]
    fn null_is_an_absent_member() {
        let nulls: String = [
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
        ]
        .map(|name| format!(r#","{name}":null"#))
        .concat();
        let plain = format!(r#"{{"entries":[{{{PLAIN}}}]}}"#);
        let with_nulls = format!(r#"{{"entries":[{{{PLAIN}{nulls}}}]}}"#);
        for frontend in [Frontend::Native, Frontend::Spire] {
            assert_eq!(
                parse(with_nulls.as_bytes(), frontend).unwrap(),
                parse(plain.as_bytes(), frontend).unwrap()
            );
        }
    }

    #[test]
    fn the_shims_read_any_case_and_the_last_of_several_as_go_does() {
        let json = r#"{"Entries":[{"SELECTORS":[{"Type":"unix","VALUE":"uid:1"}],"SPIFFE_ID":"spiffe://a/w",
            "Parent_ID":"spiffe://a/p","hint":"first","Hint":"last","ttl":200}]}"#;
        let entries = parse(json.as_bytes(), Frontend::Spire).unwrap();
        assert_eq!(entries[0].hint, "last");
        assert_eq!(entries[0].selectors.len(), 1);
        assert_eq!(entries[0].x509_svid_ttl, 0);
    }

    #[test]
    fn natively_a_member_in_another_case_or_twice_is_named() {
        for (json, named) in [
            (
                r#"{"Entries":[]}"#.to_owned(),
                r#"Entries is unknown; did you mean "entries"?"#,
            ),
            (
                format!(r#"{{"entries":[{{{PLAIN},"ttl":200}}]}}"#),
                "entries[0].ttl is unknown; use x509_svid_ttl and jwt_svid_ttl",
            ),
            (
                format!(r#"{{"entries":[{{{PLAIN},"hint":"a","hint":"b"}}]}}"#),
                "entries[0].hint is given twice",
            ),
            (
                format!(r#"{{"entries":[{{{PLAIN},"admin":1}}]}}"#),
                "entries[0].admin takes true or false, found a number",
            ),
            (
                r#"{"entries":[{"selectors":[{"type":"unix","values":"uid:1"}]}]}"#.to_owned(),
                "entries[0].selectors[0].values is unknown; did you mean \"value\"?",
            ),
        ] {
            let fault = parse(json.as_bytes(), Frontend::Native)
                .unwrap_err()
                .to_string();
            assert!(fault.contains(named), "{fault}");
        }
    }

    #[test]
    fn faults_of_the_json_are_worded_as_spire_words_them_on_the_shim() {
        for (json, fault) in [
            ("", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
        ] {
            let error = parse(json.as_bytes(), Frontend::Spire).unwrap_err();
            assert_eq!(error.to_string(), fault);
        }
    }
}
