//! What an operator reads when something is wrong: a code, what, where, why, and something to type.
//!
//! Owns the format of messages and the exit codes. A fault carries no secret: its author keeps values
//! that may be confidential out of its text.

mod code;

pub use code::{Code, Exit};

use std::fmt;

/// One thing that is wrong, as a [`Fault`].
///
/// `Display` prints several lines without a trailing line feed:
///
/// ```text
/// error[PLA-1203]: unknown key "loglevel"; did you mean "log_level"?
///   at: server.conf:6:5
///     6 |     loglevel = "DEBUG"
///       |     ^^^^^^^^
///   because: …
///   hint: …
///   see: plastron help PLA-1203
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    pub code: Code,
    /// The fault itself, one sentence without a full stop.
    pub what: String,
    /// `file:line:column`, or the object that is at fault.
    pub at: Option<String>,
    /// The lines of the file with a mark under the fault, when it lies in a file.
    pub excerpt: Option<Box<str>>,
    /// The cause below, such as the operating system's error.
    pub because: Option<String>,
    /// What to do about it, best as a command to run.
    pub hint: Option<String>,
}

impl Fault {
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            at: None,
            excerpt: None,
            because: None,
            hint: None,
        }
    }

    #[must_use]
    pub fn at(mut self, at: impl Into<String>) -> Self {
        self.at = Some(at.into());
        self
    }

    #[must_use]
    pub fn excerpt(mut self, excerpt: impl Into<Box<str>>) -> Self {
        self.excerpt = Some(excerpt.into());
        self
    }

    #[must_use]
    pub fn because(mut self, because: impl fmt::Display) -> Self {
        self.because = Some(because.to_string());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code a process that ends on this fault should give.
    pub fn exit_code(&self) -> u8 {
        self.code.exit_code()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.what)?;
        if let Some(at) = &self.at {
            write!(f, "\n  at: {at}")?;
        }
        for line in self.excerpt.iter().flat_map(|text| text.lines()) {
            write!(f, "\n    {line}")?;
        }
        if let Some(because) = &self.because {
            write!(f, "\n  because: {because}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        write!(f, "\n  see: plastron help {}", self.code)
    }
}

impl std::error::Error for Fault {}

/// All that was found wrong in one pass; never empty when it comes as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// `Ok` when nothing was found, else all of it.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The first fault's exit code; 0 when there is none.
    pub fn exit_code(&self) -> u8 {
        self.0.first().map_or(0, Fault::exit_code)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl From<Vec<Fault>> for Faults {
    fn from(faults: Vec<Fault>) -> Self {
        Self(faults)
    }
}

impl IntoIterator for Faults {
    type Item = Fault;
    type IntoIter = std::vec::IntoIter<Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_fault_reads_what_where_why_and_what_to_do() {
        let fault = Fault::new(Code::AddressInUse, "port 8081 is in use")
            .at("server.bind_port")
            .because("Address already in use (os error 98)")
            .hint("ss -ltnp sport = :8081");
        assert_eq!(
            fault.to_string(),
            "error[PLA-1301]: port 8081 is in use\n  at: server.bind_port\n  \
             because: Address already in use (os error 98)\n  hint: ss -ltnp sport = :8081\n  \
             see: plastron help PLA-1301"
        );
    }

    #[test]
    fn a_fault_without_details_is_two_lines() {
        let fault = Fault::new(Code::Internal, "it broke");
        assert_eq!(
            fault.to_string(),
            "error[PLA-1000]: it broke\n  see: plastron help PLA-1000"
        );
    }

    #[test]
    fn every_code_is_unique_in_its_range_and_can_be_explained() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} twice");
            assert_eq!(text, format!("PLA-{:04}", code.number()));
            assert!((1000..2200).contains(&code.number()), "{text}");
            assert!((1..=8).contains(&code.exit_code()), "{text}");
            assert!(!code.title().is_empty(), "{text}");
            assert!(code.help().len() > 60, "{text}: help is too thin");
            assert_eq!(Code::parse(text), Some(*code));
        }
    }

    #[test]
    fn a_code_is_found_in_any_spelling_an_operator_types() {
        for text in ["PLA-1203", "pla-1203", "1203", "PLA1203"] {
            assert_eq!(Code::parse(text), Some(Code::UnknownKey), "{text}");
        }
        for text in ["", "PLA-", "PLA-9999", "12o3", "PLA-12033"] {
            assert_eq!(Code::parse(text), None, "{text}");
        }
    }

    #[test]
    fn many_faults_are_apart_by_a_blank_line_and_exit_as_the_first() {
        let faults = Faults(vec![
            Fault::new(Code::UnknownKey, "a"),
            Fault::new(Code::Internal, "b"),
        ]);
        assert!(faults.to_string().contains("PLA-1203\n\nerror[PLA-1000]"));
        assert_eq!(faults.exit_code(), 2);
    }
}
