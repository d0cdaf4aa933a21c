//! HCL 1 into a tree.
//!
//! Takes what SPIRE's parser takes: a comma after any item, several items on a line, quoted keys, blocks within
//! `= { }`, and no difference between `key { }` and `key = { }`. Stops at the first error.

use crate::scanner::{Scanner, Token};
use crate::syntax::{Item, ItemId, MAX_DEPTH, Node, Span, SyntaxError, Tree, Value};

pub(super) fn parse(text: &str) -> Result<Tree, SyntaxError> {
    let mut scanner = Scanner::new(text);
    let ahead = scanner.next_token()?;
    let mut parser = Parser {
        scanner,
        ahead,
        depth: 0,
        items: Vec::new(),
    };
    let root = parser.items_until(&Token::End, None)?;
    Ok(Tree {
        items: parser.items,
        root,
    })
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    /// The token that was read but not taken.
    ahead: (Token, Span),
    depth: usize,
    items: Vec<Item>,
}

type Parsed<T> = Result<T, SyntaxError>;

impl Parser<'_> {
    fn take(&mut self) -> Parsed<(Token, Span)> {
        let next = self.scanner.next_token()?;
        Ok(std::mem::replace(&mut self.ahead, next))
    }

    fn take_comma(&mut self) -> Parsed<()> {
        if self.ahead.0 == Token::Comma {
            self.take()?;
        }
        Ok(())
    }

    /// The items of a file or a block, up to but without its end.
    fn items_until(&mut self, end: &Token, opened: Option<Span>) -> Parsed<Vec<ItemId>> {
        let mut ids = Vec::new();
        while self.ahead.0 != *end {
            if let (Token::End, Some(opened)) = (&self.ahead.0, opened) {
                return Err(
                    SyntaxError::new(opened, "this block is not closed").hint("close it with }")
                );
            }
            ids.push(self.item()?);
            self.take_comma()?;
        }
        Ok(ids)
    }

    fn item(&mut self) -> Parsed<ItemId> {
        let mut keys: Vec<(String, Span)> = Vec::new();
        loop {
            let (token, span) = self.take()?;
            match token {
                Token::Identifier(name) | Token::String(name) => {
                    if keys.len() >= MAX_DEPTH {
                        return Err(SyntaxError::new(span, "too many labels"));
                    }
                    keys.push((name, span));
                }
                Token::LeftBrace if !keys.is_empty() => {
                    let node = self.block(span)?;
                    return self.store(keys, node);
                }
                Token::Assign if keys.len() == 1 => {
                    let node = self.assigned(&keys, span)?;
                    return self.store(keys, node);
                }
                other => return Err(unexpected_in_item(&keys, &other, span)),
            }
        }
    }

    fn assigned(&mut self, keys: &[(String, Span)], assign: Span) -> Parsed<Node> {
        if matches!(
            self.ahead.0,
            Token::RightBrace | Token::RightBracket | Token::End | Token::Comma | Token::Assign
        ) {
            let span = keys.first().map_or(assign, |(_, key)| key.to(assign));
            return Err(SyntaxError::new(span, "expected a value after \"=\"")
                .hint("for instance 8081, \"text\", true or [\"a\", \"b\"]"));
        }
        self.value()
    }

    fn value(&mut self) -> Parsed<Node> {
        let (token, span) = self.take()?;
        let value = match token {
            Token::String(text) => Value::String(text),
            Token::Number(text) => Value::Number(text),
            Token::Bool(value) => Value::Bool(value),
            Token::LeftBrace => return self.block(span),
            Token::LeftBracket => return self.list(span),
            Token::Identifier(word) => {
                let error = SyntaxError::new(
                    span,
                    format!(
                        "expected a value, found {}",
                        Token::Identifier(word.clone()).name()
                    ),
                );
                let meant = match word.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" => "true".to_owned(),
                    "false" | "no" | "off" => "false".to_owned(),
                    _ => format!("{word:?}, for text is written in quotes"),
                };
                return Err(error.hint(format!("did you mean {meant}?")));
            }
            other => {
                return Err(SyntaxError::new(
                    span,
                    format!("expected a value, found {}", other.name()),
                ));
            }
        };
        Ok(Node { value, span })
    }

    fn block(&mut self, opened: Span) -> Parsed<Node> {
        self.enter(opened)?;
        let ids = self.items_until(&Token::RightBrace, Some(opened))?;
        let (_, closed) = self.take()?;
        self.depth -= 1;
        Ok(Node {
            value: Value::Object(ids),
            span: opened.to(closed),
        })
    }

    fn list(&mut self, opened: Span) -> Parsed<Node> {
        self.enter(opened)?;
        let mut nodes = Vec::new();
        let closed = loop {
            match self.ahead.0 {
                Token::RightBracket => break self.take()?.1,
                Token::End => {
                    return Err(
                        SyntaxError::new(opened, "this list is not closed").hint("close it with ]")
                    );
                }
                _ => {}
            }
            nodes.push(self.value()?);
            match &self.ahead.0 {
                Token::Comma => {
                    self.take()?;
                }
                Token::RightBracket | Token::End => {}
                other => {
                    let what = format!(
                        "expected \",\" or \"]\" in the list, found {}",
                        other.name()
                    );
                    return Err(SyntaxError::new(self.ahead.1, what));
                }
            }
        };
        self.depth -= 1;
        Ok(Node {
            value: Value::List(nodes),
            span: opened.to(closed),
        })
    }

    fn enter(&mut self, span: Span) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(SyntaxError::new(
                span,
                format!("blocks and lists are nested more than {MAX_DEPTH} deep"),
            ));
        }
        Ok(())
    }

    /// Puts an item with labels into the arena as items within each other.
    fn store(&mut self, keys: Vec<(String, Span)>, node: Node) -> Parsed<ItemId> {
        if self.depth + keys.len() > MAX_DEPTH {
            return Err(SyntaxError::new(
                node.span,
                format!("blocks are nested more than {MAX_DEPTH} deep"),
            ));
        }
        let mut node = node;
        let mut id = self.items.len();
        for (key, key_span) in keys.into_iter().rev() {
            id = self.items.len();
            let span = key_span.to(node.span);
            self.items.push(Item {
                key,
                key_span,
                node,
            });
            node = Node {
                value: Value::Object(vec![id]),
                span,
            };
        }
        Ok(id)
    }
}

fn unexpected_in_item(keys: &[(String, Span)], token: &Token, span: Span) -> SyntaxError {
    let Some((name, key_span)) = keys.last() else {
        let error = SyntaxError::new(span, format!("expected a key, found {}", token.name()));
        return match token {
            Token::RightBrace => {
                error.hint("there is one \"}\" too many, or a block was closed too early")
            }
            _ => error,
        };
    };
    if *token == Token::Assign {
        let error = SyntaxError::new(span, "\"=\" after more than one key");
        return error.hint("a key that is set has no label; a block is written without \"=\"");
    }
    let error = SyntaxError::new(
        *key_span,
        format!(
            "expected \"=\" or \"{{\" after {name:?}, found {}",
            token.name()
        ),
    );
    match token {
        Token::Number(_) | Token::Bool(_) | Token::LeftBracket => {
            error.hint(format!("write {name} = …"))
        }
        _ => error,
    }
}
