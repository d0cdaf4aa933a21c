//! One block `TYPE "name" { … }` of the configuration.

use std::cell::OnceCell;
use std::path::Path;

use super::known::{PluginType, Side};
use config::fault::Code;
use config::{Document, Located, Section, closest};

/// A plugin that is configured and not switched off.
pub(super) struct Entry {
    pub(super) plugin_type: &'static str,
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

    /// `plugin_data`, or what `plugin_data_file` holds; empty when there is neither. Not to ask for it leaves it unread.
    pub(super) fn data(&self) -> &Section {
        self.data.get_or_init(|| data(&self.block))
    }
}

/// The plugins of these types, in the order of the types, then of the file. A type that is none is told as an unknown
/// key of the block, with the likely one.
pub(super) fn entries(plugins: &Section, side: Side, types: &[&'static PluginType]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for plugin_type in types {
        let mut names: Vec<String> = Vec::new();
        for (label, block) in plugins.sections_labelled(plugin_type.name) {
            if names.contains(&label.value) {
                let what = format!(
                    "plugin {} {:?} is declared twice",
                    plugin_type.name, label.value
                );
                plugins.fault_on(&label, Code::DuplicateKey, what, "take one out");
            }
            names.push(label.value.clone());
            entries.extend(entry(plugin_type, side, label, &block));
        }
    }
    entries
}

fn entry(
    plugin_type: &'static PluginType,
    side: Side,
    label: Located<String>,
    block: &Section,
) -> Option<Entry> {
    let enabled = block.boolean("enabled").unwrap_or(true);
    let command = block.string("plugin_cmd").unwrap_or_default();
    block.strings("plugin_args");
    block.string("plugin_checksum");
    if !enabled {
        // Whatever is in it is not in force.
        block.raw("plugin_data");
        block.string("plugin_data_file");
        return None;
    }
    let supported = command.is_empty() && plugin_type.supported.contains(&label.value.as_str());
    if !supported {
        refuse(plugin_type, side, &label, block, !command.is_empty());
        block.raw("plugin_data");
        block.string("plugin_data_file");
    }
    Some(Entry {
        plugin_type: plugin_type.name,
        name: label.value.clone(),
        label,
        block: block.clone(),
        data: OnceCell::new(),
        supported,
    })
}

fn refuse(
    plugin_type: &PluginType,
    side: Side,
    label: &Located<String>,
    block: &Section,
    external: bool,
) {
    let (kind, name) = (plugin_type.name, label.value.as_str());
    let built_in = if plugin_type.supported.is_empty() {
        format!("the {} has no {kind} plugin yet", side.name())
    } else {
        format!(
            "the {} has {}",
            side.name(),
            plugin_type.supported.join(", ")
        )
    };
    if external {
        let what = format!(
            "plugin {kind} {name:?} is external (plugin_cmd); external plugins are not yet supported"
        );
        block.fault(Code::NotYetSupported, "plugin_cmd", what, built_in);
    } else if plugin_type.not_yet.contains(&name) {
        let what = format!("plugin {kind} {name:?} is not yet supported");
        block.fault_on(label, Code::NotYetSupported, what, built_in);
    } else {
        let all = plugin_type
            .supported
            .iter()
            .chain(plugin_type.not_yet)
            .copied();
        let guess = closest(name, all)
            .map_or_else(String::new, |meant| format!("; did you mean {meant:?}?"));
        let what = format!("unknown {kind} plugin {name:?}{guess}");
        block.fault_on(label, Code::UnknownPlugin, what, built_in);
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
        block.fault_on(&file, Code::ConflictingKeys, what, "take one out");
        return block.section_or_empty("plugin_data");
    }
    // SPIRE: variables are not expanded in such a file.
    match Document::load(Path::new(&file.value), None) {
        Ok(document) => {
            block.add_part(&document);
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
