//! The values of a command's flags, whichever command line they were read from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::time::Duration;

use super::error::CliError;
use super::flag::{Flag, FlagSpec, FlagValue};

/// The value of one flag. The command line that read the text has checked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Switch(bool),
    /// Whole seconds: a point in time or a lifetime.
    Seconds(i64),
    Duration(Duration),
    List(Vec<String>),
    /// The arguments of another program: they need not be text.
    Command(Vec<OsString>),
}

/// Flag values by SPIRE's flag name. A flag that was not given is absent, unless it has a default.
#[derive(Debug, Default, Clone)]
pub(crate) struct Args {
    values: BTreeMap<&'static str, Value>,
    given: BTreeSet<&'static str>,
    /// The flags that the command has.
    known: BTreeSet<&'static str>,
    /// What followed the flags.
    pub(crate) rest: Vec<String>,
}

impl Args {
    /// No values yet, for a command that has these flags.
    pub(crate) fn of<'f>(flags: impl IntoIterator<Item = &'f FlagSpec>) -> Self {
        Self {
            known: flags.into_iter().map(|flag| flag.spire).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn set_default(&mut self, flag: &FlagSpec, value: Value) {
        self.values.insert(flag.spire, value);
    }

    /// Sets the value that the user gave; one of a list joins those given before it.
    pub(crate) fn set(&mut self, flag: &FlagSpec, value: Value) {
        let is_first = self.given.insert(flag.spire);
        match (value, self.values.get_mut(flag.spire)) {
            (Value::List(more), Some(Value::List(items))) if !is_first => items.extend(more),
            (value, _) => {
                self.values.insert(flag.spire, value);
            }
        }
    }

    /// Whether the command has the flag at all.
    pub(crate) fn has<T: FlagValue>(&self, flag: Flag<T>) -> bool {
        self.known.contains(flag.spec.spire)
    }

    /// Whether the user gave the flag, as opposed to its default.
    pub(crate) fn given<T: FlagValue>(&self, flag: Flag<T>) -> bool {
        self.must_have(&flag.spec);
        self.given.contains(flag.spec.spire)
    }

    /// The value of a flag; when it is absent what Go's flags have: empty, false, zero.
    pub(crate) fn get<T: FlagValue>(&self, flag: Flag<T>) -> T::Read<'_> {
        self.must_have(&flag.spec);
        T::read(self.values.get(flag.spec.spire))
    }

    /// The text of a flag, `None` when absent or empty.
    pub(crate) fn optional(&self, flag: Flag<String>) -> Option<&str> {
        Some(self.get(flag)).filter(|text| !text.is_empty())
    }

    /// Whole seconds as the `i32` that the API takes.
    pub(crate) fn seconds(&self, flag: Flag<i64>) -> Result<i32, CliError> {
        let FlagSpec { spire, native, .. } = flag.spec;
        i32::try_from(self.get(flag)).map_err(|_overflow| {
            let limit = format!("is too long: at most {} seconds", i32::MAX);
            CliError::usage_of(format!("{spire} {limit}"), format!("--{native} {limit}"))
        })
    }

    /// A command may read only the flags in its row. (Values without any row are a test's.)
    fn must_have(&self, flag: &FlagSpec) {
        debug_assert!(
            self.known.is_empty() || self.known.contains(flag.spire),
            "the command has no flag {:?}",
            flag.spire
        );
    }
}

/// Values of a test, as if the user had given them.
#[cfg(test)]
impl Args {
    pub(crate) fn with(mut self, flag: Flag<String>, text: &str) -> Self {
        self.set(&flag.spec, Value::Text(text.to_owned()));
        self
    }
}

impl FlagValue for String {
    type Read<'a> = &'a str;

    fn read(value: Option<&Value>) -> &str {
        match value {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }
}

impl FlagValue for bool {
    type Read<'a> = Self;

    fn read(value: Option<&Value>) -> Self {
        matches!(value, Some(Value::Switch(true)))
    }
}

impl FlagValue for i64 {
    type Read<'a> = Self;

    fn read(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Seconds(seconds)) => *seconds,
            _ => 0,
        }
    }
}

impl FlagValue for Duration {
    type Read<'a> = Self;

    fn read(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Duration(duration)) => *duration,
            _ => Self::ZERO,
        }
    }
}

impl FlagValue for Vec<String> {
    type Read<'a> = &'a [String];

    fn read(value: Option<&Value>) -> &[String] {
        match value {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }
}

impl FlagValue for Vec<OsString> {
    type Read<'a> = &'a [OsString];

    fn read(value: Option<&Value>) -> &[OsString] {
        match value {
            Some(Value::Command(words)) => words,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Args, Value};
    use crate::cli::flag::Flag;

    const DRY_RUN: Flag<bool> = Flag::switch("dryRun", "dry-run", "");
    const NAME: Flag<Vec<String>> = Flag::list("name", "name", "");

    #[test]
    #[should_panic(expected = "the command has no flag \"dryRun\"")]
    fn a_command_reads_no_flag_that_its_row_lacks() {
        Args::of(&[NAME.spec]).get(DRY_RUN);
    }

    #[test]
    fn what_the_user_gives_replaces_the_default_and_joins_what_was_given_before() {
        let list = |items: &[&str]| Value::List(items.iter().map(|&item| item.into()).collect());
        let mut args = Args::of(&[NAME.spec]);
        args.set_default(&NAME.spec, list(&["default"]));
        assert!(!args.given(NAME));
        args.set(&NAME.spec, list(&["a"]));
        args.set(&NAME.spec, list(&["b", "c"]));
        assert!(args.given(NAME));
        assert_eq!(args.get(NAME), ["a", "b", "c"]);
    }
}
