//! What a command has to say, and its four shapes: SPIRE's text, JSON, a table, YAML. Data goes to standard output,
//! notes to standard error. The only module that prints.

use std::borrow::Cow;
use std::io::Write;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use super::context::{Format, Frontend};
use super::error::{Batch, CliError};

/// A table: headings and rows of the same width.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) headings: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// The result of a command.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// The replies, for JSON and YAML: one is printed as it is, several as a list (SPIRE: since 1.15.0).
    pub(crate) replies: Vec<Value>,
    /// SPIRE's text; also the native text when there is no table.
    pub(crate) text: String,
    pub(crate) table: Option<Table>,
    /// Native only, on standard error: warnings, and what to type next.
    pub(crate) notes: Vec<String>,
    /// Some items of a batch failed: printed as an error after the text. (SPIRE: exit code 1 with pretty output, 0
    /// with JSON, where the caller reads the statuses; natively always an error.)
    pub(crate) partial_failure: Option<Batch>,
    /// The text is printed as it is, without a line feed at its end.
    pub(crate) unterminated: bool,
}

impl Output {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Adds a reply: `name` is the message's full protobuf name.
    pub(crate) fn reply(mut self, name: &str, message: &impl Message) -> Result<Self, CliError> {
        self.replies.push(proto_json(name, message)?);
        Ok(self)
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// Protobuf's JSON with the field names of the .proto files, absent fields with their zero value, nulls removed
/// (SPIRE: `-output json`). Object keys come out sorted, whole numbers without a point.
pub(crate) fn proto_json(name: &str, message: &impl Message) -> Result<Value, CliError> {
    let broken = |error: &dyn std::fmt::Display| {
        CliError::failed(format!("cannot write {name} as JSON: {error}"))
    };
    let pool =
        DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(|error| broken(&error))?;
    let descriptor = pool
        .get_message_by_name(name)
        .ok_or_else(|| broken(&"no such message"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| broken(&error))?;
    let options = SerializeOptions::new()
        .skip_default_fields(false)
        .use_proto_field_name(true);
    let value = dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| broken(&error))?;
    Ok(as_go_writes(value))
}

fn as_go_writes(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, as_go_writes(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(as_go_writes).collect()),
        Value::Number(number) => Value::Number(whole(&number).unwrap_or(number)),
        other => other,
    }
}

/// The integer that a floating-point number stands for; claims come as such numbers.
fn whole(number: &serde_json::Number) -> Option<serde_json::Number> {
    let text = number.is_f64().then(|| number.to_string())?;
    text.strip_suffix(".0")?.parse::<i64>().ok().map(Into::into)
}

/// Text for a terminal: control characters, with which a name from elsewhere could steer it, are shown as `\u{1b}`.
/// Line feeds and tabs stay. Unicode's marks of writing direction are shown too, since they can reorder a line.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn is_hidden(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The characters that JSON leaves as they are and that steer a terminal, as JSON escapes; they occur in strings only.
fn printable_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Prints the output and returns the error that its failed items amount to.
pub(crate) fn print(output: Output, frontend: Frontend, format: Format) -> Result<(), CliError> {
    let mut data = match format {
        Format::Json => printable_json(&json_text(&output.replies)).into_owned(),
        Format::Yaml => printable_json(&yaml_text(&output.replies)).into_owned(),
        Format::Table => match &output.table {
            Some(table) if table.rows.is_empty() && output.partial_failure.is_some() => {
                String::new()
            }
            Some(table) => table_text(table),
            None => printable(&output.text).into_owned(),
        },
        Format::Pretty => printable(&output.text).into_owned(),
    };
    let ended = data.is_empty() || data.ends_with('\n');
    let left_open = output.unterminated && format == Format::Pretty;
    if !ended && !left_open {
        data.push('\n');
    }
    write_out(&data)?;
    if frontend == Frontend::Native {
        for note in &output.notes {
            say(note);
        }
    }
    match output.partial_failure {
        Some(_) if frontend == Frontend::Spire && format == Format::Json => Ok(()),
        Some(failure) => Err(CliError::Batch(Box::new(failure))),
        None => Ok(()),
    }
}

/// Writes data to standard output; a closed pipe is not an error of ours.
pub(crate) fn write_out(data: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(data.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::failed(
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Writes one line to standard error; nothing can be done if that fails.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{}", printable(line)));
}

fn json_text(replies: &[Value]) -> String {
    match replies {
        [one] => one.to_string(),
        many => Value::Array(many.to_vec()).to_string(),
    }
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

fn yaml_text(replies: &[Value]) -> String {
    let mut text = String::new();
    match replies {
        [one] => yaml_value(one, 0, &mut text),
        many => yaml_value(&Value::Array(many.to_vec()), 0, &mut text),
    }
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
    use super::{Table, as_go_writes, json_text, printable, printable_json, table_text, yaml_text};
    use serde_json::json;

    #[test]
    fn one_reply_is_an_object_and_several_are_a_list() {
        assert_eq!(json_text(&[json!({"b": 1, "a": 2})]), r#"{"a":2,"b":1}"#);
        assert_eq!(json_text(&[json!(1), json!(2)]), "[1,2]");
    }

    #[test]
    fn nulls_are_left_out_at_every_depth() {
        assert_eq!(
            as_go_writes(json!({"a": null, "b": [{"c": null}]})),
            json!({"b": [{}]})
        );
    }

    #[test]
    fn whole_numbers_have_no_point() {
        let claims = as_go_writes(json!({"exp": 1_763_790_000.0, "x": 1.5, "n": -3.0}));
        assert_eq!(claims.to_string(), r#"{"exp":1763790000,"n":-3,"x":1.5}"#);
    }

    #[test]
    fn yaml_nests_by_indentation() {
        let text = yaml_text(&[json!({"a": [{"b": "x: y"}], "c": [], "d": true})]);
        assert_eq!(text, "a:\n  -\n    b: \"x: y\"\nc: []\nd: true\n");
    }

    #[test]
    fn several_replies_are_a_list_in_yaml_too() {
        assert_eq!(yaml_text(&[json!({"a": 1}), json!(2)]), "-\n  a: 1\n- 2\n");
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
            assert_eq!(yaml_text(&[json!({key: 1})]), format!("{written}: 1\n"));
        }
    }

    #[test]
    fn control_characters_of_others_never_reach_the_terminal() {
        let name = "\u{1b}[2Jroot\u{9b}31m\u{7f}\u{202e}\r";
        assert_eq!(
            printable(&format!("a\tb\n{name}")),
            "a\tb\n\\u{1b}[2Jroot\\u{9b}31m\\u{7f}\\u{202e}\\u{d}"
        );
        let table = Table {
            headings: vec!["NAME"],
            rows: vec![vec![format!("x\ny{name}")]],
        };
        assert_eq!(table_text(&table).lines().count(), 2);
        assert!(
            !table_text(&table)
                .chars()
                .any(|c| c.is_control() && c != '\n')
        );
        let json = printable_json(&json!({ "name": name }).to_string()).into_owned();
        assert!(!json.chars().any(char::is_control), "{json}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap(),
            json!({ "name": name })
        );
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
