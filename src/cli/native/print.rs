//! The native shapes of what a command found out: a table or text for people, JSON and YAML for programs, each an object
//! with the member `apiVersion`. Notes go to standard error.

use serde_json::{Map, Value};

use super::error_report::API_VERSION;
use crate::cli::context::Format;
use crate::cli::error::CliError;
use crate::cli::output::{Output, Table, View, printable, printable_json, say, write_out};

/// Prints the output and returns the error that its failed items amount to.
pub(crate) fn print(output: Output, format: Format) -> Result<(), CliError> {
    let mut data = match format {
        Format::Json => printable_json(&document(output.replies).to_string()).into_owned(),
        Format::Yaml => printable_json(&yaml_text(&document(output.replies))).into_owned(),
        Format::Table | Format::Pretty => match output.shown.native() {
            View::Table(table) if table.rows.is_empty() && output.partial_failure.is_some() => {
                String::new()
            }
            View::Table(table) => table_text(&table),
            View::Text(text) => printable(&text).into_owned(),
        },
    };
    if !data.is_empty() && !data.ends_with('\n') {
        data.push('\n');
    }
    write_out(&data)?;
    for note in &output.notes {
        say(note);
    }
    match output.partial_failure {
        Some(failure) => Err(CliError::Batch(Box::new(failure))),
        None => Ok(()),
    }
}

/// One object of all replies: the members of several replies, which have different names, stand side by side. What is no
/// object is the member `items`.
fn document(replies: Vec<Value>) -> Value {
    let mut document = Map::new();
    document.insert("apiVersion".to_owned(), API_VERSION.into());
    for reply in replies {
        match reply {
            Value::Object(members) => document.extend(members),
            other => {
                document.insert("items".to_owned(), other);
            }
        }
    }
    Value::Object(document)
}

fn table_text(table: &Table) -> String {
    // A cell is one line: its line feeds are shown too.
    let shown = |cell: &String| printable(cell).replace('\n', "\\n").replace('\t', " ");
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| row.iter().map(shown).collect())
        .collect();
    let mut widths: Vec<usize> = table
        .headings
        .iter()
        .map(|heading| heading.chars().count())
        .collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let headings: Vec<String> = table
        .headings
        .iter()
        .map(|heading| (*heading).to_owned())
        .collect();
    for row in std::iter::once(&headings).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn yaml_text(document: &Value) -> String {
    let mut text = String::new();
    yaml_value(document, 0, &mut text);
    text
}

/// Block style; scalars in JSON's form, which YAML reads as the same value.
fn yaml_value(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                text.push_str(&format!("{pad}{}:", yaml_key(key)));
                yaml_child(value, indent + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&format!("{pad}-"));
                yaml_child(item, indent + 2, text);
            }
        }
        scalar => text.push_str(&format!("{pad}{scalar}\n")),
    }
}

/// Names of fields are plain words. Any other key, such as a claim called `no` or `a: b`, is quoted as JSON quotes it.
fn yaml_key(key: &str) -> String {
    /// Words that some reader of YAML takes for a truth value or for nothing.
    const TAKEN: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        && !TAKEN.contains(&key.to_ascii_lowercase().as_str());
    if plain {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}

fn yaml_child(value: &Value, indent: usize, text: &mut String) {
    let nested = matches!(value, Value::Object(fields) if !fields.is_empty())
        || matches!(value, Value::Array(items) if !items.is_empty());
    if nested {
        text.push('\n');
        yaml_value(value, indent, text);
    } else {
        text.push_str(&format!(" {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, document, table_text, yaml_text};
    use serde_json::json;

    #[test]
    fn what_a_program_reads_is_one_object_with_a_version() {
        for (replies, members) in [
            (vec![json!({"b": 1})], json!({"b": 1})),
            (
                vec![json!({"a": 1}), json!({"b": 2})],
                json!({"a": 1, "b": 2}),
            ),
            (vec![json!([1, 2])], json!({"items": [1, 2]})),
            (vec![], json!({})),
        ] {
            let mut expected = members;
            expected["apiVersion"] = "plastron/v1".into();
            assert_eq!(document(replies), expected);
        }
    }

    #[test]
    fn yaml_nests_by_indentation() {
        let text = yaml_text(&json!({"a": [{"b": "x: y"}], "c": [], "d": true}));
        assert_eq!(text, "a:\n  -\n    b: \"x: y\"\nc: []\nd: true\n");
    }

    #[test]
    fn a_key_that_yaml_would_read_otherwise_is_quoted() {
        for (key, written) in [
            ("spiffe_id", "spiffe_id"),
            ("no", "\"no\""),
            ("Null", "\"Null\""),
            ("a: b", "\"a: b\""),
            ("", "\"\""),
            ("7", "\"7\""),
            ("- x", "\"- x\""),
        ] {
            assert_eq!(yaml_text(&json!({key: 1})), format!("{written}: 1\n"));
        }
    }

    #[test]
    fn a_cell_of_a_table_is_one_line_and_steers_no_terminal() {
        let table = Table {
            headings: vec!["NAME"],
            rows: vec![vec!["x\ny\u{1b}[2J\u{9b}31m\r".to_owned()]],
        };
        let text = table_text(&table);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn table_columns_line_up() {
        let table = Table {
            headings: vec!["ID", "NAME"],
            rows: vec![vec!["12345".into(), "a".into()]],
        };
        assert_eq!(table_text(&table), "ID     NAME\n12345  a\n");
    }
}
