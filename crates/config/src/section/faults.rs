//! How a reader of a section says that something in it is wrong.

use std::sync::Arc;

use super::{Located, Section};
use crate::fault::{Code, Fault};
use crate::syntax::{Node, Span, Value};

impl Section {
    /// Records that the value of `key` is not allowed. An empty hint means no hint.
    pub fn fault_at(&self, key: &str, what: impl Into<String>, hint: impl Into<String>) {
        self.fault(Code::InvalidValue, key, what, hint);
    }

    /// Records a fault at the value of `key`, or at the head of the block when the key is not there.
    pub fn fault(&self, code: Code, key: &str, what: impl Into<String>, hint: impl Into<String>) {
        match self.value_span(key) {
            Some(span) => self.fault_span(code, span, what, &hint.into()),
            None => self.fault_here(code, what, hint),
        }
    }

    /// Records that a value is not allowed: at its place in the file or, when it was given on the command line, at the
    /// flag, which is spelt as the key with dashes. No line of the file is to blame for a flag.
    pub fn fault_of_value(
        &self,
        key: &str,
        is_flag: bool,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if !is_flag {
            return self.fault_at(key, what, hint);
        }
        let flag = format!("--{}", key.replace('_', "-"));
        let fault = Fault::new(Code::InvalidValue, what).at(flag);
        self.shared.record(0, with_hint(fault, &hint.into()));
    }

    /// Records a fault at a value that was read before.
    pub fn fault_on<T>(
        &self,
        located: &Located<T>,
        code: Code,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.fault_span(code, located.span, what, &hint.into());
    }

    /// Records a fault at the head of the block.
    pub fn fault_here(&self, code: Code, what: impl Into<String>, hint: impl Into<String>) {
        match self.head() {
            Some(span) => self.fault_span(code, span, what, &hint.into()),
            None => {
                let fault = Fault::new(code, what).at(self.shared.source.name());
                self.shared.record(0, with_hint(fault, &hint.into()));
            }
        }
    }

    /// Records a fault that was made elsewhere, such as one of another file that this section names.
    pub fn push_fault(&self, fault: Fault) {
        let offset = self.head().map_or(0, |span| span.start);
        self.shared.record(offset, fault);
    }

    /// Takes another file that this section names, by its top level, as a part of the document: its faults are the
    /// document's, and its unread keys are unknown like any other.
    pub fn add_part(&self, part: &Self) {
        self.shared.add_part(Arc::clone(&part.shared));
    }

    /// Refuses keys and blocks that exist in SPIRE but not here. Each comes with a few words that follow "not yet
    /// supported: ", such as what to use instead; they may be empty.
    pub fn unsupported(&self, keys: &[(&str, &str)]) {
        for (key, why) in keys {
            for (item, id) in self.items_named(key) {
                self.shared.mark_all(id);
                let name = self.full_name(key);
                self.fault_span(
                    Code::NotYetSupported,
                    item.key_span,
                    format!("{name} is not yet supported"),
                    why,
                );
            }
            self.shared.asked(self.path(), key);
        }
    }

    /// Refuses keys that SPIRE once had, or that belong elsewhere; each comes with what to write instead.
    pub fn replaced(&self, keys: &[(&str, &str)]) {
        for (key, instead) in keys {
            for (item, id) in self.items_named(key) {
                self.shared.mark_all(id);
                let what = format!("{} does not exist any more", self.full_name(key));
                self.fault_span(Code::UnknownKey, item.key_span, what, instead);
            }
        }
    }

    /// Records a fault for each key that nobody read. To be called when all that exists has been asked for.
    pub fn finish(&self) {
        self.shared.finish(self.path(), &self.items);
    }

    pub(crate) fn fault_span(&self, code: Code, span: Span, what: impl Into<String>, hint: &str) {
        let fault = self
            .shared
            .source
            .locate(Fault::new(code, what), span, None);
        self.shared.record(span.start, with_hint(fault, hint));
    }

    /// Gives nothing, so that a getter can end with it.
    pub(super) fn wrong_type<T>(
        &self,
        key: &str,
        node: &Node,
        wanted: &str,
        found: &Value,
    ) -> Option<T> {
        let what = format!("{key} takes {wanted}, found {}", found.kind());
        let hint = match (found, wanted) {
            (Value::String(text), "true or false") if matches!(text.as_str(), "true" | "false") => {
                format!("write {key} = {text}, without quotes")
            }
            (Value::String(_) | Value::Number(_), "a list of strings") => {
                format!("write {key} = [ … ]")
            }
            (Value::Bool(value), "a string") => format!("write {key} = \"{value}\""),
            (_, "a block") => format!("write {key} {{ … }}"),
            _ => String::new(),
        };
        self.fault_span(Code::WrongType, node.span, what, &hint);
        None
    }
}

fn with_hint(fault: Fault, hint: &str) -> Fault {
    if hint.is_empty() {
        fault
    } else {
        fault.hint(hint)
    }
}
