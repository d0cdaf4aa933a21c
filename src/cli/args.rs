//! The values of a command's flags, whichever face read them. Keys are SPIRE's flag names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use super::error::CliError;

/// Flag values by SPIRE's flag name. A flag that was not given is absent, unless it has a default.
#[derive(Debug, Default, Clone)]
pub(crate) struct Args {
    values: BTreeMap<&'static str, Vec<String>>,
    given: std::collections::BTreeSet<&'static str>,
    /// What followed the flags.
    pub(crate) rest: Vec<String>,
    /// The command that another command runs: its arguments are its own, and need not be text.
    pub(crate) command: Vec<OsString>,
}

impl Args {
    pub(crate) fn set_default(&mut self, name: &'static str, value: &str) {
        self.values.insert(name, vec![value.to_owned()]);
    }

    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.given.insert(name);
        self.values.insert(name, vec![value]);
    }

    pub(crate) fn push(&mut self, name: &'static str, value: String) {
        if self.given.insert(name) {
            self.values.remove(name);
        }
        self.values.entry(name).or_default().push(value);
    }

    /// Whether the user gave the flag, as opposed to its default.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// The text of a flag; empty when absent, as Go's flags have it.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.values
            .get(name)
            .and_then(|v| v.last())
            .map_or("", String::as_str)
    }

    /// The text of a flag, `None` when absent or empty.
    pub(crate) fn optional(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    pub(crate) fn switch(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// A whole number; 0 when absent. The face has already checked the text.
    pub(crate) fn integer(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// Whole seconds as the `i32` that the API takes.
    pub(crate) fn seconds(&self, name: &str) -> Result<i32, CliError> {
        i32::try_from(self.integer(name)).map_err(|_overflow| {
            CliError::usage(format!("{name} is too long: at most {} seconds", i32::MAX))
        })
    }

    /// A duration; zero when absent. The face has stored nanoseconds-exact Go text; see `duration::parse_native`.
    pub(crate) fn duration(&self, name: &str) -> Duration {
        super::duration::parse_native(self.text(name)).unwrap_or_default()
    }

    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.values.get(name).cloned().unwrap_or_default()
    }
}
