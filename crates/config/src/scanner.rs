//! Tokens of HCL 1 (`hashicorp/hcl` 1.0, not HCL 2), each with its place.

use crate::syntax::{Span, SyntaxError};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Identifier(String),
    String(String),
    Number(String),
    Bool(bool),
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    Comma,
    Assign,
    End,
}

impl Token {
    /// What a fault calls it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Identifier(name) => format!("the word {name:?}"),
            Self::String(_) => "a string".to_owned(),
            Self::Number(_) => "a number".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::LeftBrace => "\"{\"".to_owned(),
            Self::RightBrace => "\"}\"".to_owned(),
            Self::LeftBracket => "\"[\"".to_owned(),
            Self::RightBracket => "\"]\"".to_owned(),
            Self::Comma => "\",\"".to_owned(),
            Self::Assign => "\"=\"".to_owned(),
            Self::End => "the end of the file".to_owned(),
        }
    }
}

pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

type Scanned<T> = Result<T, SyntaxError>;

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(super) fn next_token(&mut self) -> Scanned<(Token, Span)> {
        self.skip_blanks_and_comments()?;
        let start = self.at;
        let Some(first) = self.peek() else {
            return Ok((Token::End, Span::new(start, start)));
        };
        let token = match first {
            '{' => self.single(Token::LeftBrace),
            '}' => self.single(Token::RightBrace),
            '[' => self.single(Token::LeftBracket),
            ']' => self.single(Token::RightBracket),
            ',' => self.single(Token::Comma),
            '=' => self.single(Token::Assign),
            '"' => self.string()?,
            '<' => self.heredoc()?,
            c if c.is_ascii_digit() || c == '-' || c == '.' => self.number()?,
            c if is_letter(c) => self.identifier(),
            '\'' => {
                let error =
                    SyntaxError::new(Span::new(start, start + 1), "unexpected single quote");
                return Err(error.hint("strings are written in double quotes"));
            }
            other => {
                let span = Span::new(start, start + other.len_utf8());
                return Err(SyntaxError::new(
                    span,
                    format!("unexpected character {other:?}"),
                ));
            }
        };
        Ok((token, Span::new(start, self.at)))
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next_char(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn single(&mut self, token: Token) -> Token {
        self.at += 1;
        token
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    fn skip_blanks_and_comments(&mut self) -> Scanned<()> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            let rest = self.rest();
            if rest.starts_with('#') || rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if rest.starts_with("/*") {
                let Some(end) = rest.get(2..).and_then(|body| body.find("*/")) else {
                    let span = Span::new(self.at, self.at + 2);
                    return Err(SyntaxError::new(span, "this comment is not closed")
                        .hint("close it with */"));
                };
                self.at += end + 4;
            } else {
                return Ok(());
            }
        }
    }

    fn identifier(&mut self) -> Token {
        let name = self.take_while(|c| is_letter(c) || c.is_numeric() || c == '-' || c == '.');
        match name {
            "true" => Token::Bool(true),
            "false" => Token::Bool(false),
            _ => Token::Identifier(name.to_owned()),
        }
    }

    fn number(&mut self) -> Scanned<Token> {
        let start = self.at;
        let mut before = ' ';
        let text = self.take_number(&mut before);
        if is_number(text) {
            return Ok(Token::Number(text.to_owned()));
        }
        // Take in what follows without a blank, so that the whole word is marked: 10.0.0.5, 30s.
        self.take_while(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '/'));
        let span = Span::new(start, self.at.max(start + 1));
        let word = self.text.get(span.start..span.end).unwrap_or_default();
        let error = SyntaxError::new(span, "this is not a number");
        Err(error.hint(format!(
            "text and durations are written in quotes: {word:?}"
        )))
    }

    fn take_number(&mut self, before: &mut char) -> &'a str {
        let rest = self.rest();
        let hexadecimal = rest.trim_start_matches('-').starts_with("0x")
            || rest.trim_start_matches('-').starts_with("0X");
        let mut length = 0;
        for c in rest.chars() {
            let sign = matches!(c, '+' | '-')
                && (length == 0 || !hexadecimal && matches!(*before, 'e' | 'E'));
            if !(c.is_ascii_alphanumeric() || c == '.' || sign) {
                break;
            }
            length += c.len_utf8();
            *before = c;
        }
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    fn string(&mut self) -> Scanned<Token> {
        let start = self.at;
        self.at += 1;
        let mut value = String::new();
        loop {
            let at = self.at;
            match self.next_char() {
                None | Some('\n') => {
                    let error = SyntaxError::new(Span::new(start, at), "this string is not closed");
                    return Err(error.hint("a string ends with a double quote on the same line"));
                }
                Some('"') => return Ok(Token::String(value)),
                Some('\\') => value.push(self.escape(at)?),
                Some('$') if self.peek() == Some('{') => {
                    value.push('$');
                    self.interpolation(start, &mut value)?;
                }
                Some(c) => value.push(c),
            }
        }
    }

    /// `${…}` is kept as it stands, quotes and line feeds and all: HCL 1 leaves it to a later language.
    fn interpolation(&mut self, string_start: usize, value: &mut String) -> Scanned<()> {
        let mut braces = 0_usize;
        while let Some(c) = self.next_char() {
            value.push(c);
            match c {
                '{' => braces += 1,
                '}' => braces -= 1,
                _ => {}
            }
            if braces == 0 {
                return Ok(());
            }
        }
        let span = Span::new(string_start, self.at.min(string_start + 1));
        Err(SyntaxError::new(span, "\"${\" in this string is not closed").hint("close it with }"))
    }

    fn escape(&mut self, start: usize) -> Scanned<char> {
        let letter = self.next_char();
        let plain = match letter {
            Some('a') => Some('\u{7}'),
            Some('b') => Some('\u{8}'),
            Some('f') => Some('\u{c}'),
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('v') => Some('\u{b}'),
            Some('\\') => Some('\\'),
            Some('"') => Some('"'),
            Some(c @ '0'..='7') => {
                self.at -= c.len_utf8();
                self.digits(3, 8).filter(char::is_ascii)
            }
            Some('x') => self.digits(2, 16).filter(char::is_ascii),
            Some('u') => self.digits(4, 16),
            Some('U') => self.digits(8, 16),
            _ => None,
        };
        plain.ok_or_else(|| {
            let error = SyntaxError::new(Span::new(start, self.at), "unknown escape in a string");
            error.hint("a backslash itself is written \\\\")
        })
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<char> {
        let digits = self.rest().get(..count)?;
        if !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        self.at += count;
        u32::from_str_radix(digits, radix)
            .ok()
            .and_then(char::from_u32)
    }

    /// `<<EOF`, lines, `EOF`; with `<<-EOF` the indent of the last line is taken from all.
    fn heredoc(&mut self) -> Scanned<Token> {
        let start = self.at;
        let head = self.rest().lines().next().unwrap_or_default();
        let head_span = Span::new(start, start + head.len());
        let Some(anchor) = head.strip_prefix("<<") else {
            return Err(SyntaxError::new(
                Span::new(start, start + 1),
                "unexpected character '<'",
            ));
        };
        let (indented, anchor) = match anchor.strip_prefix('-') {
            Some(anchor) => (true, anchor),
            None => (false, anchor),
        };
        if anchor.is_empty() || !anchor.chars().all(|c| is_letter(c) || c.is_numeric()) {
            let error = SyntaxError::new(head_span, "this text block has no proper end mark");
            return Err(error.hint("write <<EOF, then the lines, then EOF on a line of its own"));
        }
        self.at += head.len();
        self.take_while(|c| c == '\r');
        self.next_char();
        let mut lines = Vec::new();
        loop {
            let rest = self.rest();
            let line = rest.split('\n').next().unwrap_or_default();
            let bare = line.trim_end_matches('\r');
            if bare.trim_start() == anchor {
                // The line feed after the end mark is left for the next token.
                self.at += bare.len();
                let indent = bare.get(..bare.len() - anchor.len()).unwrap_or_default();
                return Ok(Token::String(heredoc_value(&lines, indent, indented)));
            }
            if rest.len() == line.len() {
                let error = SyntaxError::new(head_span, "this text block is not closed");
                return Err(error.hint(format!("end it with {anchor} on a line of its own")));
            }
            lines.push(bare);
            self.at += line.len() + 1;
        }
    }
}

/// SPIRE: with `<<-`, the end mark's indent is taken away only if every line has it.
fn heredoc_value(lines: &[&str], indent: &str, indented: bool) -> String {
    let strip = indented && lines.iter().all(|line| line.starts_with(indent));
    let mut value = String::new();
    for line in lines {
        value.push_str(if strip {
            line.strip_prefix(indent).unwrap_or(line)
        } else {
            line
        });
        value.push('\n');
    }
    value
}

fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

/// Decimal, hexadecimal (`0x1f`), octal (`0644`) or floating, with a minus sign or without.
pub(super) fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    let all_decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if all_decimal {
        let octal = digits.len() > 1 && digits.starts_with('0');
        return !octal || digits.bytes().all(|b| b < b'8');
    }
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.parse::<f64>().is_ok()
}
