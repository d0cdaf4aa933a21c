//! Typed, counted access to a block: what is read is known, what is not read is a fault.

mod faults;
mod state;

pub(super) use state::Shared;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::duration::parse_duration;
use crate::fault::Code;
use crate::suggest::closest;
use crate::syntax::{Item, ItemId, Node, Span, Value};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    pub value: T,
    pub(crate) span: Span,
}

/// A block of the configuration, or several blocks of the same name taken together.
///
/// Keys are compared without regard to case (SPIRE: as HCL 1). Each getter gives nothing both when the key is missing
/// and when its value cannot be used; in the second case it records a fault on the document. A clone is the same
/// section.
#[derive(Clone)]
pub struct Section {
    pub(crate) shared: Arc<Shared>,
    pub(crate) items: Vec<ItemId>,
    /// `server.federation`, for messages; empty for the top level.
    path: Arc<str>,
    /// The name of the block; nothing for the top level and for a block that is not there.
    head: Option<Span>,
}

impl Section {
    pub(crate) fn root(shared: &Arc<Shared>) -> Self {
        let section = Self {
            shared: Arc::clone(shared),
            items: shared.tree.root.clone(),
            path: Arc::from(""),
            head: None,
        };
        section.shared.opened(&section.path, &section.items);
        section
    }

    /// `server.federation`; empty for the top level.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the block begins, as `file:line:column`, or the file's name.
    pub fn position(&self) -> String {
        match self.head {
            Some(span) => self.shared.source.position(span.start),
            None => self.shared.source.name().to_owned(),
        }
    }

    /// Where a value stands, as `file:line:column`.
    pub fn position_of<T>(&self, located: &Located<T>) -> String {
        self.shared.source.position(located.span.start)
    }

    /// Whether the key is there, with whatever value. Does not count as reading it.
    pub fn has(&self, key: &str) -> bool {
        self.items_named(key).next().is_some()
    }

    /// Whether the key is there and its value is a block. Does not count as reading it.
    pub fn is_block(&self, key: &str) -> bool {
        self.items_named(key)
            .any(|(item, _)| matches!(item.node.value, Value::Object(_)))
    }

    /// The keys as they are written, each once, in order. Does not count as reading them.
    pub fn keys(&self) -> Vec<Located<String>> {
        let mut keys: Vec<Located<String>> = Vec::new();
        for item in self
            .items
            .iter()
            .filter_map(|id| self.shared.tree.item(*id))
        {
            if !keys
                .iter()
                .any(|key| key.value.eq_ignore_ascii_case(&item.key))
            {
                keys.push(Located {
                    value: item.key.clone(),
                    span: item.key_span,
                });
            }
        }
        keys
    }

    /// Text; a number is taken as it is written.
    pub fn string(&self, key: &str) -> Option<String> {
        self.located_string(key).map(|located| located.value)
    }

    /// As [`Self::string`], but an empty one counts as missing.
    pub fn non_empty_string(&self, key: &str) -> Option<String> {
        self.string(key).filter(|text| !text.is_empty())
    }

    pub fn located_string(&self, key: &str) -> Option<Located<String>> {
        let node = self.single(key)?;
        let value = match &node.value {
            Value::String(text) | Value::Number(text) => text.clone(),
            other => return self.wrong_type(key, node, "a string", other),
        };
        Some(Located {
            value,
            span: node.span,
        })
    }

    /// As [`Self::required_string`], where a flag of the command line may say it too and wins.
    pub fn required_of(&self, key: &str, flag: Option<&str>, example: &str) -> Option<String> {
        match flag {
            Some(value) => {
                // The file's value counts as read though the flag wins.
                drop(self.string(key));
                Some(value.to_owned())
            }
            None => self.required_string(key, example),
        }
    }

    /// As [`Self::required_of`], and `parse` has to take it.
    pub fn required_parsed<T, E: fmt::Display>(
        &self,
        key: &str,
        flag: Option<&str>,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.required_of(key, flag, example)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                let hint = format!("for instance {key} = {example:?}");
                self.fault_of_value(
                    key,
                    flag.is_some(),
                    format!("{key} {text:?}: {error}"),
                    hint,
                );
                None
            }
        }
    }

    /// Text that must be there and not be empty. `example` is a value as an operator would write it.
    pub fn required_string(&self, key: &str, example: &str) -> Option<String> {
        match self.located_string(key) {
            Some(located) if !located.value.is_empty() => Some(located.value),
            Some(_) => {
                let hint = format!("for instance {key} = {example:?}");
                self.fault(
                    Code::MissingKey,
                    key,
                    format!("{} must not be empty", self.full_name(key)),
                    hint,
                );
                None
            }
            // A value of the wrong type has its fault already.
            None if self.has(key) => None,
            None => {
                let what = format!("{} is missing", self.full_name(key));
                self.fault_here(
                    Code::MissingKey,
                    what,
                    format!("for instance {key} = {example:?}"),
                );
                None
            }
        }
    }

    /// Text that must be one of `allowed`, exactly.
    pub fn one_of<'a>(&self, key: &str, allowed: &[&'a str]) -> Option<&'a str> {
        let text = self.string(key)?;
        if let Some(found) = allowed.iter().find(|name| **name == text) {
            return Some(found);
        }
        let meant = closest(&text, allowed.iter().copied()).or_else(|| {
            allowed
                .iter()
                .copied()
                .find(|name| name.eq_ignore_ascii_case(&text))
        });
        let hint = meant.map_or_else(String::new, |name| format!("did you mean {name:?}?"));
        self.fault_at(
            key,
            format!("{key} must be one of {}", allowed.join(", ")),
            hint,
        );
        None
    }

    pub fn boolean(&self, key: &str) -> Option<bool> {
        let node = self.single(key)?;
        match &node.value {
            Value::Bool(value) => Some(*value),
            other => self.wrong_type(key, node, "true or false", other),
        }
    }

    /// A whole number, decimal, hexadecimal (`0x`) or octal (`0`); one in quotes counts too.
    pub fn integer(&self, key: &str) -> Option<i64> {
        let node = self.single(key)?;
        let (Value::Number(text) | Value::String(text)) = &node.value else {
            return self.wrong_type(key, node, "a whole number", &node.value);
        };
        let number = parse_integer(text);
        if number.is_none() {
            return self.wrong_type(key, node, "a whole number", &node.value);
        }
        number
    }

    /// A whole number within `low..=high`.
    pub fn integer_between(&self, key: &str, low: i64, high: i64) -> Option<i64> {
        let number = self.integer(key)?;
        if (low..=high).contains(&number) {
            return Some(number);
        }
        let nearest = number.clamp(low, high);
        self.fault_at(
            key,
            format!("{key} must be from {low} to {high}"),
            format!("the nearest allowed value: {key} = {nearest}"),
        );
        None
    }

    /// A TCP port, 1 to 65535; 0, where the kernel chooses, only for tests.
    pub fn port(&self, key: &str) -> Option<u16> {
        self.integer_between(key, 0, i64::from(u16::MAX))
            .and_then(|port| u16::try_from(port).ok())
    }

    /// A duration such as `"1h30m"`.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        let node = self.single(key)?;
        let (Value::String(text) | Value::Number(text)) = &node.value else {
            return self.wrong_type(key, node, "a duration such as \"1h30m\"", &node.value);
        };
        match parse_duration(text) {
            Ok(duration) => Some(duration),
            Err(why) => {
                self.fault_at(
                    key,
                    format!("{key}: the duration {why}"),
                    format!("for instance {key} = \"1h30m\""),
                );
                None
            }
        }
    }

    /// The path of a further file that this one names.
    pub fn file_named(&self, name: &str) -> PathBuf {
        self.shared.directory.join(name)
    }

    /// A list of strings. A missing key is nothing, `[]` an empty list.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        Some(
            self.located_strings(key)?
                .into_iter()
                .map(|located| located.value)
                .collect(),
        )
    }

    pub fn located_strings(&self, key: &str) -> Option<Vec<Located<String>>> {
        let node = self.single(key)?;
        let Value::List(nodes) = &node.value else {
            return self.wrong_type(key, node, "a list of strings", &node.value);
        };
        let mut strings = Vec::with_capacity(nodes.len());
        for node in nodes {
            let (Value::String(text) | Value::Number(text)) = &node.value else {
                return self.wrong_type(key, node, "a list of strings", &node.value);
            };
            strings.push(Located {
                value: text.clone(),
                span: node.span,
            });
        }
        Some(strings)
    }

    /// The block `name`, several of them taken together; nothing when there is none.
    pub fn section(&self, name: &str) -> Option<Self> {
        let sections = self.sections(name);
        let first = sections.first()?;
        let mut merged = first.clone();
        merged.items = sections
            .iter()
            .flat_map(|section| section.items.iter().copied())
            .collect();
        Some(merged)
    }

    /// The block `name`, or an empty one when there is none: for blocks whose keys all have defaults.
    pub fn section_or_empty(&self, name: &str) -> Self {
        self.section(name)
            .unwrap_or_else(|| self.open(name, Vec::new(), None))
    }

    /// Each of the blocks `name`, for keys that may be repeated.
    pub fn sections(&self, name: &str) -> Vec<Self> {
        let mut sections = Vec::new();
        for (item, id) in self.read(name) {
            let nodes = match &item.node.value {
                Value::List(nodes) => nodes.as_slice(),
                _ => std::slice::from_ref(&item.node),
            };
            for node in nodes {
                match &node.value {
                    Value::Object(items) => {
                        sections.push(self.open(name, items.clone(), Some(item.key_span)));
                    }
                    other => {
                        let _: Option<()> = self.wrong_type(name, node, "a block", other);
                        self.shared.mark_all(id);
                    }
                }
            }
        }
        sections
    }

    /// The blocks `name "label" { }`, in order. A label may come twice; what that means is for the caller.
    pub fn sections_labelled(&self, name: &str) -> Vec<(Located<String>, Self)> {
        let mut labelled = Vec::new();
        for outer in self.sections(name) {
            for item in outer.items.iter().filter_map(|id| {
                self.shared
                    .tree
                    .item(*id)
                    .inspect(|_| self.shared.mark(*id))
            }) {
                let path = format!("{name} {:?}", item.key);
                if let Some(items) = self.block_items(&path, &item.node) {
                    let label = Located {
                        value: item.key.clone(),
                        span: item.key_span,
                    };
                    labelled.push((label, self.open(&path, items, Some(item.key_span))));
                }
            }
        }
        labelled
    }

    /// The items of a block, or of the list of blocks that JSON makes of one.
    fn block_items(&self, name: &str, node: &Node) -> Option<Vec<ItemId>> {
        let nodes = match &node.value {
            Value::List(nodes) => nodes.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut items = Vec::new();
        for node in nodes {
            match &node.value {
                Value::Object(found) => items.extend(found.iter().copied()),
                other => return self.wrong_type(name, node, "a block", other),
            }
        }
        Some(items)
    }

    /// The text of a value as it is written, after the expansion of variables; for parts that read it themselves. All
    /// below it counts as read.
    pub fn raw(&self, key: &str) -> Option<Located<String>> {
        let ids: Vec<ItemId> = self.items_named(key).map(|(_, id)| id).collect();
        for id in &ids {
            self.shared.mark_all(*id);
        }
        self.shared.asked(&self.path, key);
        let span = self.shared.tree.item(*ids.first()?)?.node.span;
        let value = self
            .shared
            .source
            .text()
            .get(span.start..span.end)?
            .to_owned();
        Some(Located { value, span })
    }

    /// Where the value of a key stands.
    pub(crate) fn value_span(&self, key: &str) -> Option<Span> {
        self.items_named(key).next().map(|(item, _)| item.node.span)
    }

    pub(crate) fn head(&self) -> Option<Span> {
        self.head
    }

    pub(crate) fn full_name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn open(&self, name: &str, items: Vec<ItemId>, head: Option<Span>) -> Self {
        let section = Self {
            shared: Arc::clone(&self.shared),
            items,
            path: Arc::from(self.full_name(name)),
            head,
        };
        section.shared.opened(&section.path, &section.items);
        section
    }

    fn items_named(&self, key: &str) -> impl Iterator<Item = (&Item, ItemId)> {
        let key = key.to_owned();
        self.items
            .iter()
            .filter_map(|id| Some((self.shared.tree.item(*id)?, *id)))
            .filter(move |(item, _)| item.key.eq_ignore_ascii_case(&key))
    }

    /// Marks the items of this name as read and gives them.
    fn read(&self, key: &str) -> Vec<(&Item, ItemId)> {
        self.shared.asked(&self.path, key);
        let found: Vec<_> = self.items_named(key).collect();
        for (_, id) in &found {
            self.shared.mark(*id);
        }
        found
    }

    /// The one value of a key that takes one.
    fn single(&self, key: &str) -> Option<&Node> {
        let found = self.read(key);
        let (first, _) = found.first()?;
        for (item, _) in found.iter().skip(1) {
            let before = self.shared.source.position(first.key_span.start);
            self.fault_span(
                Code::DuplicateKey,
                item.key_span,
                format!("{key} is set twice"),
                &format!("it is set before at {before}; remove one"),
            );
        }
        Some(&first.node)
    }
}

/// Go: `strconv.ParseInt(text, 0, 0)`.
fn parse_integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, digits.get(2..)?),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys().into_iter().map(|key| key.value).collect();
        f.debug_struct("Section")
            .field("path", &self.path)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}
