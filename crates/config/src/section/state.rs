//! What all sections of one document share: the tree, what was read of it, and the faults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::{Code, Fault};
use crate::source::Source;
use crate::suggest::closest;
use crate::syntax::{ItemId, Tree, Value};

pub(crate) struct Shared {
    pub(crate) source: Source,
    pub(crate) tree: Tree,
    /// Where relative names of further files are meant from; empty for the working directory.
    pub(crate) directory: PathBuf,
    state: Mutex<State>,
}

/// Faults that are kept, and unknown keys that are reported: more help nobody, and each costs a search for its line.
const MAX_FAULTS: usize = 200;

#[derive(Default)]
struct State {
    read: BTreeSet<ItemId>,
    /// Section path → the keys somebody asked for: those that exist.
    asked: BTreeMap<String, BTreeSet<String>>,
    /// Section path → the items of the sections opened there.
    opened: BTreeMap<String, BTreeSet<ItemId>>,
    /// Items that nobody read, with the path of their section; reported only at the end, when all that exists is known.
    unknown: BTreeMap<ItemId, String>,
    /// Offset in the text → fault, in the order they came.
    faults: Vec<(usize, Fault)>,
    /// Files that this one names, read as a part of it.
    parts: Vec<Arc<Shared>>,
}

impl Shared {
    pub(crate) fn new(source: Source, tree: Tree, directory: PathBuf) -> Self {
        Self {
            source,
            tree,
            directory,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn opened(&self, path: &str, items: &[ItemId]) {
        self.state()
            .opened
            .entry(path.to_owned())
            .or_default()
            .extend(items);
    }

    pub(super) fn asked(&self, path: &str, key: &str) {
        self.state()
            .asked
            .entry(path.to_owned())
            .or_default()
            .insert(key.to_owned());
    }

    pub(super) fn mark(&self, id: ItemId) {
        self.state().read.insert(id);
    }

    /// Marks an item and all below it.
    pub(super) fn mark_all(&self, id: ItemId) {
        let mut pending = vec![id];
        let mut state = self.state();
        while let Some(id) = pending.pop() {
            state.read.insert(id);
            let mut nodes: Vec<_> = self
                .tree
                .item(id)
                .map(|item| &item.node)
                .into_iter()
                .collect();
            while let Some(node) = nodes.pop() {
                match &node.value {
                    Value::Object(ids) => pending.extend(ids),
                    Value::List(list) => nodes.extend(list),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn record(&self, offset: usize, fault: Fault) {
        let mut state = self.state();
        if state.faults.len() < MAX_FAULTS && !state.faults.iter().any(|(_, known)| *known == fault)
        {
            state.faults.push((offset, fault));
        }
    }

    pub(super) fn add_part(&self, part: Arc<Self>) {
        self.state().parts.push(part);
    }

    pub(super) fn finish(&self, path: &str, items: &[ItemId]) {
        let mut state = self.state();
        for id in items {
            if !state.read.contains(id) {
                state.unknown.insert(*id, path.to_owned());
            }
        }
    }

    pub(crate) fn finish_all(&self) {
        let opened = self.state().opened.clone();
        for (path, items) in opened {
            let items: Vec<ItemId> = items.into_iter().collect();
            self.finish(&path, &items);
        }
        let parts = self.state().parts.clone();
        for part in parts {
            part.finish_all();
        }
    }

    /// All faults in the order of the file, then those of the files it names.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let state = self.state();
        let mut faults = state.faults.clone();
        // What was read after its section was finished exists after all.
        let unknown = state
            .unknown
            .iter()
            .filter(|(id, _)| !state.read.contains(id));
        for (id, path) in unknown.take(MAX_FAULTS) {
            if let Some(item) = self.tree.item(*id) {
                let fault = unknown_key(&state, path, &item.key);
                faults.push((
                    item.key_span.start,
                    self.source.locate(fault, item.key_span, None),
                ));
            }
        }
        faults.sort_by_key(|(offset, _)| *offset);
        let mut faults: Vec<Fault> = faults.into_iter().map(|(_, fault)| fault).collect();
        faults.extend(state.parts.iter().flat_map(|part| part.faults()));
        faults
    }
}

fn unknown_key(state: &State, path: &str, key: &str) -> Fault {
    let place = if path.is_empty() {
        String::new()
    } else {
        format!(" in {path}")
    };
    let known = state.asked.get(path);
    let meant = closest(key, known.into_iter().flatten().map(String::as_str));
    if let Some(meant) = meant {
        return Fault::new(
            Code::UnknownKey,
            format!("unknown key {key:?}{place}; did you mean {meant:?}?"),
        );
    }
    let fault = Fault::new(Code::UnknownKey, format!("unknown key {key:?}{place}"));
    let elsewhere = state
        .asked
        .iter()
        .find(|(_, keys)| keys.iter().any(|known| known.eq_ignore_ascii_case(key)));
    match elsewhere {
        Some((other, _)) if other.is_empty() => {
            fault.hint("it belongs at the top level of the file")
        }
        Some((other, _)) => fault.hint(format!("it belongs in {other}")),
        None => fault,
    }
}
