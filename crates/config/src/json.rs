//! JSON into the same tree as HCL.
//!
//! serde_json decides what is JSON and reads strings; this walk over a text already known to be valid only finds where
//! things stand, which serde_json does not tell.

use crate::syntax::{Item, ItemId, MAX_DEPTH, Node, Span, SyntaxError, Tree, Value};

pub(super) fn parse(text: &str) -> Result<Tree, SyntaxError> {
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let at = offset_of(text, error.line(), error.column());
        let message = error.to_string();
        let what = message
            .split(" at line ")
            .next()
            .unwrap_or(&message)
            .to_owned();
        return Err(SyntaxError::new(Span::new(at, at + 1), what)
            .hint("a file that starts with { is read as JSON"));
    }
    let mut walk = Walk {
        text,
        at: 0,
        depth: 0,
        items: Vec::new(),
    };
    let node = walk.value()?;
    let Value::Object(root) = node.value else {
        return Err(SyntaxError::new(node.span, "expected an object"));
    };
    Ok(Tree {
        items: walk.items,
        root,
    })
}

/// serde_json counts lines and bytes of a line from 1.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let line_start: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let mut at = (line_start + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

struct Walk<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    items: Vec<Item>,
}

impl<'a> Walk<'a> {
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Takes `mark` if it comes next.
    fn take(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(mark);
        self.at += usize::from(found);
        found
    }

    fn error(&self, what: &str) -> SyntaxError {
        SyntaxError::new(Span::new(self.at, self.at + 1), what)
    }

    fn value(&mut self) -> Result<Node, SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(&format!(
                "objects and lists are nested more than {MAX_DEPTH} deep"
            )));
        }
        let first = self.peek();
        let start = self.at;
        let value = match first {
            Some(b'{') => self.object()?,
            Some(b'[') => self.list()?,
            Some(b'"') => Value::String(self.string()?),
            _ => self.word()?,
        };
        self.depth -= 1;
        Ok(Node {
            value,
            span: Span::new(start, self.at),
        })
    }

    fn object(&mut self) -> Result<Value, SyntaxError> {
        let mut ids: Vec<ItemId> = Vec::new();
        self.take(b'{');
        while !self.take(b'}') {
            self.take(b',');
            self.peek();
            let key_start = self.at;
            let key = self.string()?;
            let key_span = Span::new(key_start, self.at);
            self.take(b':');
            let node = self.value()?;
            // SPIRE: null is an absent value.
            if matches!(node.value, Value::Null) {
                continue;
            }
            ids.push(self.items.len());
            self.items.push(Item {
                key,
                key_span,
                node,
            });
        }
        Ok(Value::Object(ids))
    }

    fn list(&mut self) -> Result<Value, SyntaxError> {
        let mut nodes = Vec::new();
        self.take(b'[');
        while !self.take(b']') {
            self.take(b',');
            nodes.push(self.value()?);
        }
        Ok(Value::List(nodes))
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|b| {
            let closes = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            closes
        });
        let Some(quoted) = end.and_then(|end| rest.get(..end + 2)) else {
            return Err(self.error("expected a string"));
        };
        let value = serde_json::from_str(quoted).map_err(|error| self.error(&error.to_string()))?;
        self.at += quoted.len();
        Ok(value)
    }

    fn word(&mut self) -> Result<Value, SyntaxError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-')))
            .unwrap_or(rest.len());
        let word: &'a str = rest.get(..end).unwrap_or_default();
        let value = match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            "" => return Err(self.error("expected a value")),
            number => Value::Number(number.to_owned()),
        };
        self.at += word.len();
        Ok(value)
    }
}
