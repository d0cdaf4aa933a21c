//! One block `TYPE "name" { … }` of the configuration.

use std::cell::OnceCell;
use std::path::PathBuf;

use super::table::{Kind, Side};
use config::fault::Code;
use config::{Document, Located, Section, closest};

/// A plugin that is configured and not switched off.
pub(super) struct Entry {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) label: Located<String>,
    block: Section,
    data: OnceCell<Section>,
    /// Whether this program has it. If not, that was recorded as a fault.
    pub(super) supported: bool,
}

impl Entry {
    pub(super) fn is(&self, name: &str) -> bool {
        self.supported && self.name == name
    }

    /// The file that `plugin_data_file` names.
    pub(super) fn data_file(&self) -> Option<PathBuf> {
        let file = self.block.string("plugin_data_file");
        file.filter(|_| !self.block.has("plugin_data"))
            .map(|file| self.block.file_named(&file))
    }

    /// `plugin_data`, or what `plugin_data_file` holds; empty when there is neither. Not to ask for it leaves it unread.
    pub(super) fn data(&self) -> &Section {
        self.data.get_or_init(|| data(&self.block))
    }
}

/// The plugins of these kinds, in the order of the kinds, then of the file. A kind that does not exist is reported as an
/// unknown key of the block, with the likely one.
pub(super) fn entries(
    plugins: &Section,
    side: Side,
    kinds: impl IntoIterator<Item = &'static Kind>,
) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for kind in kinds {
        let mut names: Vec<String> = Vec::new();
        for (label, block) in plugins.sections_labelled(kind.name) {
            if names.contains(&label.value) {
                let what = format!("plugin {} {:?} is declared twice", kind.name, label.value);
                plugins.fault_on(&label, Code::DuplicateKey, what, "remove one of them");
            }
            names.push(label.value.clone());
            entries.extend(entry(kind, side, label, &block));
        }
    }
    entries
}

fn entry(
    kind: &'static Kind,
    side: Side,
    label: Located<String>,
    block: &Section,
) -> Option<Entry> {
    let enabled = block.boolean("enabled").unwrap_or(true);
    let command = block.string("plugin_cmd").unwrap_or_default();
    block.strings("plugin_args");
    block.string("plugin_checksum");
    if !enabled {
        // What is in it is not in force.
        block.raw("plugin_data");
        block.string("plugin_data_file");
        return None;
    }
    let supported = command.is_empty() && kind.built_in.contains(&label.value.as_str());
    if !supported {
        refuse(kind, side, &label, block, !command.is_empty());
        block.raw("plugin_data");
        block.string("plugin_data_file");
    }
    Some(Entry {
        kind: kind.name,
        name: label.value.clone(),
        label,
        block: block.clone(),
        data: OnceCell::new(),
        supported,
    })
}

fn refuse(kind: &Kind, side: Side, label: &Located<String>, block: &Section, external: bool) {
    let name = label.value.as_str();
    let Kind {
        name: kind_name,
        built_in,
        not_yet,
        ..
    } = kind;
    let offered = if built_in.is_empty() {
        format!("the {} has no {kind_name} plugin yet", side.name)
    } else {
        format!("the {} has {}", side.name, built_in.join(", "))
    };
    if external {
        let what = format!(
            "plugin {kind_name} {name:?} is external (plugin_cmd); external plugins are not yet supported"
        );
        block.fault(Code::NotYetSupported, "plugin_cmd", what, offered);
    } else if not_yet.contains(&name) {
        let what = format!("plugin {kind_name} {name:?} is not yet supported");
        block.fault_on(label, Code::NotYetSupported, what, offered);
    } else {
        let all = built_in.iter().chain(*not_yet).copied();
        let guess = closest(name, all)
            .map_or_else(String::new, |meant| format!("; did you mean {meant:?}?"));
        let what = format!("unknown {kind_name} plugin {name:?}{guess}");
        block.fault_on(label, Code::UnknownPlugin, what, offered);
    }
}

/// The plugin's own configuration, in the block or in a file of its own.
fn data(block: &Section) -> Section {
    let file = block.located_string("plugin_data_file");
    let Some(file) = file else {
        return block.section_or_empty("plugin_data");
    };
    if block.has("plugin_data") {
        let what = "only one of plugin_data and plugin_data_file can be used";
        block.fault_on(&file, Code::ConflictingKeys, what, "remove one of them");
        return block.section_or_empty("plugin_data");
    }
    // SPIRE: variables are not expanded in such a file.
    match Document::load(&block.file_named(&file.value), None) {
        Ok(document) => {
            block.add_part(&document.root());
            document.root()
        }
        Err(faults) => {
            for fault in faults {
                block.push_fault(fault);
            }
            block.section_or_empty("plugin_data")
        }
    }
}
