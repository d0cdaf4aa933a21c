//! The tree that both readers make, HCL and JSON.
//!
//! Items lie in one arena so that a section can mark by number which of them were read. `a "b" { }` is stored as
//! `a { b { } }`: the two mean the same (SPIRE distinguishes them nowhere).

/// Bytes `start..end` of the expanded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    pub(crate) fn to(self, other: Self) -> Self {
        Self::new(self.start, other.end)
    }
}

/// Number of an item in the arena.
pub(crate) type ItemId = usize;

pub(crate) enum Value {
    String(String),
    /// As written: `8081`, `-1`, `0x1f`, `0644`, `1.5`, `1e3`.
    Number(String),
    Bool(bool),
    Null,
    List(Vec<Node>),
    Object(Vec<ItemId>),
}

impl Value {
    /// What a fault calls a value of this kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Null => "null",
            Self::List(_) => "a list",
            Self::Object(_) => "a block",
        }
    }
}

pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

pub(crate) struct Item {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

pub(crate) struct Tree {
    pub(crate) items: Vec<Item>,
    pub(crate) root: Vec<ItemId>,
}

impl Tree {
    pub(crate) fn item(&self, id: ItemId) -> Option<&Item> {
        self.items.get(id)
    }
}

/// The first thing that could not be read.
pub(crate) struct SyntaxError {
    pub(crate) what: String,
    pub(crate) span: Span,
    pub(crate) hint: Option<String>,
}

impl SyntaxError {
    pub(crate) fn new(span: Span, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            span,
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Blocks and lists within each other, at most. Deeper nesting is refused rather than let it exhaust the stack.
pub(crate) const MAX_DEPTH: usize = 64;
