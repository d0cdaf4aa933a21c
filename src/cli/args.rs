//! The values of a command's flags, whichever face read them. Keys are SPIRE's flag names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use super::error::CliError;
use super::spec::Flag;

/// Flag values by SPIRE's flag name. A flag that was not given is absent, unless it has a default.
#[derive(Debug, Default, Clone)]
pub(crate) struct Args {
    values: BTreeMap<&'static str, Vec<String>>,
    given: std::collections::BTreeSet<&'static str>,
    /// The flags that the command has, so that a slip in a name does not read as a flag that was not given.
    known: std::collections::BTreeSet<&'static str>,
    /// What followed the flags.
    pub(crate) rest: Vec<String>,
    /// The command that another command runs: its arguments are its own, and need not be text.
    pub(crate) command: Vec<OsString>,
}

impl Args {
    /// No values yet, for a command that has these flags.
    pub(crate) fn of<'f>(flags: impl IntoIterator<Item = &'f Flag>) -> Self {
        Self {
            known: flags.into_iter().map(|flag| flag.spire).collect(),
            ..Self::default()
        }
    }

    /// Whether the command has the flag at all.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.contains(name)
    }

    /// The values of a flag, which the command must have. (One without any flags is a test's.)
    fn values(&self, name: &str) -> Option<&Vec<String>> {
        debug_assert!(
            self.known.is_empty() || self.has(name),
            "the command has no flag {name:?}"
        );
        self.values.get(name)
    }

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
        debug_assert!(
            self.known.is_empty() || self.has(name),
            "the command has no flag {name:?}"
        );
        self.given.contains(name)
    }

    /// The text of a flag; empty when absent, as Go's flags have it.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.values(name)
            .and_then(|values| values.last())
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
        self.values(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Args;
    use crate::cli::spec::{Kind, flag};

    #[test]
    #[should_panic(expected = "the command has no flag \"dryrun\"")]
    fn a_slip_in_the_name_of_a_flag_does_not_read_as_false() {
        let flags = [flag("dryRun", "dry-run", Kind::Switch, "")];
        Args::of(&flags).switch("dryrun");
    }
}
