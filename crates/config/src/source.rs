//! A configuration file's text as an operator sees it: positions and excerpts.
//!
//! The parser works on the text after the expansion of variables; everything shown is the file's own text, so that
//! positions are true and the values of variables stay out of messages.

use crate::Environment;
use crate::expand::{Piece, expand};
use crate::fault::Fault;
use crate::syntax::Span;

pub(super) struct Source {
    name: String,
    original: String,
    /// The text with variables replaced and the map back; nothing when no variable can occur.
    expanded: Option<(String, Vec<Piece>)>,
}

/// Columns of a line that an excerpt shows at most.
const EXCERPT_WIDTH: usize = 120;

/// Strings on a line with one of these words are blanked in excerpts.
const CONFIDENTIAL: &[&str] = &[
    "secret",
    "password",
    "passwd",
    "token",
    "connection_string",
    "credential",
];

impl Source {
    pub(super) fn new(name: &str, text: &str, environment: Option<Environment<'_>>) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            name: name.to_owned(),
            original: text.to_owned(),
            expanded: environment.map(|environment| expand(text, environment)),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What is to be parsed.
    pub(super) fn text(&self) -> &str {
        self.expanded
            .as_ref()
            .map_or(&self.original, |(text, _)| text)
    }

    /// `file:line:column`, both counted from 1, the column in characters.
    pub(super) fn position(&self, offset: usize) -> String {
        let (line, column) = self.line_and_column(self.original_offset(offset));
        format!("{}:{line}:{column}", self.name)
    }

    /// Completes a fault with its position and the marked line.
    pub(super) fn locate(&self, fault: Fault, span: Span, hint: Option<String>) -> Fault {
        let fault = fault
            .at(self.position(span.start))
            .excerpt(self.excerpt(span));
        match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }

    fn original_offset(&self, offset: usize) -> usize {
        let Some((_, pieces)) = &self.expanded else {
            return offset.min(self.original.len());
        };
        let index = pieces
            .partition_point(|piece| piece.expanded <= offset)
            .saturating_sub(1);
        let original = pieces.get(index).map_or(offset, |piece| {
            if piece.substituted {
                piece.original
            } else {
                piece.original + (offset - piece.expanded)
            }
        });
        original.min(self.original.len())
    }

    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = self.original.get(..offset).unwrap_or(&self.original);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before
            .get(line_start..)
            .map_or(0, |text| text.chars().count())
            + 1;
        (line, column)
    }

    fn excerpt(&self, span: Span) -> String {
        let start = self.original_offset(span.start);
        let end = self.original_offset(span.end).max(start);
        let (number, column) = self.line_and_column(start);
        let line_start = self
            .original
            .get(..start)
            .and_then(|text| text.rfind('\n'))
            .map_or(0, |at| at + 1);
        let rest = self.original.get(line_start..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let marked = self
            .original
            .get(start..end.min(line_start + line.len()))
            .unwrap_or_default();
        let shown = printable(&blank_confidential(line));
        // A far-off fault in a long line: show the part around it.
        let skip = if column > EXCERPT_WIDTH {
            column - EXCERPT_WIDTH / 2
        } else {
            0
        };
        let shown: String = shown.chars().skip(skip).take(EXCERPT_WIDTH).collect();
        let indent: String = shown
            .chars()
            .take(column - 1 - skip.min(column - 1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let room = EXCERPT_WIDTH.saturating_sub(indent.chars().count()).max(1);
        let carets = "^".repeat(marked.chars().count().clamp(1, room));
        let number = number.to_string();
        let gap = " ".repeat(number.len());
        format!("{number} | {shown}\n{gap} | {indent}{carets}")
    }
}

/// Replaces control characters, which could steer the reader's terminal, one for one.
fn printable(line: &str) -> String {
    line.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Stars instead of the characters inside quotes, when the line seems to hold a secret.
fn blank_confidential(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    if !CONFIDENTIAL.iter().any(|word| lower.contains(word)) {
        return line.to_owned();
    }
    let mut in_string = false;
    let mut escaped = false;
    line.chars()
        .map(|c| match c {
            '"' if !escaped => {
                in_string = !in_string;
                c
            }
            _ if in_string => {
                escaped = c == '\\' && !escaped;
                '*'
            }
            _ => c,
        })
        .collect()
}
