//! The `log_*` keys, which both daemons have.

use std::path::PathBuf;

use config::Section;

const LEVELS: &str = "log_level must be one of DEBUG, INFO, WARN, ERROR";
const FORMATS: &str = "log_format must be one of text, json";

/// How a daemon logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Upper case: `TRACE`, `DEBUG`, `INFO`, `WARN`, `ERROR`.
    pub level: String,
    pub json: bool,
    /// Standard error when absent.
    pub file: Option<PathBuf>,
    /// Adds the source file and line of each event.
    pub source_location: bool,
}

/// The same from the command line; each wins over the file.
#[derive(Debug, Clone, Default)]
pub struct LogFlags {
    pub level: Option<String>,
    pub format: Option<String>,
    pub file: Option<PathBuf>,
    pub source_location: Option<bool>,
}

impl LogConfig {
    /// Reads the keys of a daemon's block. What is wrong is recorded on the document.
    pub fn read(daemon: &Section, flags: &LogFlags) -> Option<Self> {
        let level = daemon.non_empty_string("log_level");
        let format = daemon.non_empty_string("log_format");
        let file = daemon.non_empty_string("log_file").map(PathBuf::from);
        let source_location = daemon.boolean("log_source_location");
        let level = flags.level.clone().or(level);
        let Some(level) = level.map_or(Some("INFO"), |level| level_of(&level)) else {
            daemon.fault_of_value("log_level", flags.level.is_some(), LEVELS, "");
            return None;
        };
        let format = flags.format.clone().or(format);
        let Some(json) = format.map_or(Some(false), |format| is_json(&format)) else {
            daemon.fault_of_value("log_format", flags.format.is_some(), FORMATS, "");
            return None;
        };
        Some(Self {
            level: level.to_owned(),
            json,
            file: flags.file.clone().or(file),
            source_location: flags.source_location.or(source_location).unwrap_or(false),
        })
    }
}

/// SPIRE takes logrus' levels; those beyond ours are the nearest one.
fn level_of(text: &str) -> Option<&'static str> {
    match text.to_ascii_uppercase().as_str() {
        "TRACE" => Some("TRACE"),
        "DEBUG" => Some("DEBUG"),
        "INFO" => Some("INFO"),
        "WARN" | "WARNING" => Some("WARN"),
        "ERROR" | "FATAL" | "PANIC" => Some("ERROR"),
        _ => None,
    }
}

fn is_json(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "" | "text" => Some(false),
        "json" => Some(true),
        _ => None,
    }
}
