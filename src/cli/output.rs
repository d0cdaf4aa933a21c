//! What a command found out, as `spire/print.rs` and `native/print.rs` write it; and the doors to the terminal, which keep
//! control characters away from it. Data goes to standard output, notes to standard error.

use std::borrow::Cow;
use std::fmt::Debug;
use std::io::Write;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use super::error::{Batch, CliError};

/// A table: headings and rows of the same width.
#[derive(Debug, Default, Clone)]
pub(crate) struct Table {
    pub(crate) headings: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// What a command found out, of a type of its own. A command line that prints for people asks for its own shape alone; one
/// that prints data asks for none.
pub(crate) trait Shown: Debug {
    /// SPIRE's text, to its last line feed.
    fn spire(&self) -> String;

    fn native(&self) -> View;
}

/// The native shape.
#[derive(Debug)]
pub(crate) enum View {
    Table(Table),
    Text(String),
}

/// A text that is the same on both command lines, unless there is a table for the native one.
#[derive(Debug, Default)]
struct Plain {
    text: String,
    table: Option<Table>,
}

impl Shown for Plain {
    fn spire(&self) -> String {
        let end = if self.text.is_empty() || self.text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        format!("{}{end}", self.text)
    }

    fn native(&self) -> View {
        match &self.table {
            Some(table) => View::Table(table.clone()),
            None => View::Text(self.text.clone()),
        }
    }
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Output {
    /// The replies, for JSON and YAML: one is printed as it is, several as a list (SPIRE: since 1.15.0).
    pub(crate) replies: Vec<Value>,
    pub(crate) shown: Box<dyn Shown>,
    /// Native only, on standard error: warnings, and what to type next.
    pub(crate) notes: Vec<String>,
    /// Some items of a batch failed: printed as an error after the text. (SPIRE: exit code 1 with pretty output, 0
    /// with JSON, where the caller reads the statuses; natively always an error.)
    pub(crate) partial_failure: Option<Batch>,
}

impl Default for Output {
    fn default() -> Self {
        Self::of(Plain::default())
    }
}

impl Output {
    pub(crate) fn of(shown: impl Shown + 'static) -> Self {
        Self {
            replies: Vec::new(),
            shown: Box::new(shown),
            notes: Vec::new(),
            partial_failure: None,
        }
    }

    /// A text on both command lines.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::of(Plain { text, table: None })
    }

    /// SPIRE's text, and the native table.
    pub(crate) fn text_and_table(text: impl Into<String>, table: Table) -> Self {
        Self::of(Plain {
            text: text.into(),
            table: Some(table),
        })
    }

    /// The same that shows something else.
    pub(crate) fn showing(self, shown: impl Shown + 'static) -> Self {
        Self {
            shown: Box::new(shown),
            ..self
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
pub(crate) fn printable_json(text: &str) -> Cow<'_, str> {
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

#[cfg(test)]
mod tests {
    use super::{as_go_writes, printable, printable_json};
    use serde_json::json;

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
    fn control_characters_of_others_never_reach_the_terminal() {
        let name = "\u{1b}[2Jroot\u{9b}31m\u{7f}\u{202e}\r";
        assert_eq!(
            printable(&format!("a\tb\n{name}")),
            "a\tb\n\\u{1b}[2Jroot\\u{9b}31m\\u{7f}\\u{202e}\\u{d}"
        );
        let json = printable_json(&json!({ "name": name }).to_string()).into_owned();
        assert!(!json.chars().any(char::is_control), "{json}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).unwrap(),
            json!({ "name": name })
        );
    }
}
