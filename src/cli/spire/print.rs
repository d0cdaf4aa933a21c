//! SPIRE's shapes of what a command found out: its text, and its JSON.

use serde_json::Value;

use crate::cli::context::Format;
use crate::cli::error::CliError;
use crate::cli::output::{Output, printable, printable_json, say, write_out};

/// Prints the output and returns the error that its failed items amount to. (SPIRE: a failed item is a paragraph and exit
/// code 1 with pretty output; with JSON the exit code is 0, since the caller reads the statuses.)
pub(crate) fn print(output: Output, format: Format) -> Result<(), CliError> {
    if format == Format::Json {
        let mut data = printable_json(&json_text(&output.replies)).into_owned();
        data.push('\n');
        return write_out(&data);
    }
    if let Some(failure) = &output.partial_failure {
        for item in failure
            .items
            .iter()
            .filter(|item| !item.paragraph.is_empty())
        {
            say(&item.paragraph);
        }
    }
    write_out(&printable(&output.shown.spire()))?;
    match output.partial_failure {
        Some(failure) => Err(CliError::Batch(Box::new(failure))),
        None => Ok(()),
    }
}

/// One reply is printed as it is, several as a list (SPIRE: since 1.15.0).
fn json_text(replies: &[Value]) -> String {
    match replies {
        [one] => one.to_string(),
        many => Value::Array(many.to_vec()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::json_text;
    use serde_json::json;

    #[test]
    fn one_reply_is_an_object_and_several_are_a_list() {
        assert_eq!(json_text(&[json!({"b": 1, "a": 2})]), r#"{"a":2,"b":1}"#);
        assert_eq!(json_text(&[json!(1), json!(2)]), "[1,2]");
    }
}
