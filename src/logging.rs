//! The daemons' log: levels, SPIRE's two formats, and the file that SIGUSR2 reopens.

mod format;
mod sink;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use daemon::log_control::LogControl;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub(crate) use format::LogFormat;
use sink::Sink;

/// The name under which audit events are logged, at every level.
const AUDIT: &str = "audit";

/// How a daemon logs.
#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    pub(crate) level: LevelFilter,
    pub(crate) format: LogFormat,
    /// Standard error when absent.
    pub(crate) file: Option<PathBuf>,
    /// Adds the source file and line of each event.
    pub(crate) source_location: bool,
}

/// Reads SPIRE's level names.
pub(crate) fn parse_level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Some(LevelFilter::TRACE),
        "debug" => Some(LevelFilter::DEBUG),
        "" | "info" => Some(LevelFilter::INFO),
        "warn" | "warning" => Some(LevelFilter::WARN),
        // logrus ends the process on the last two; here they are errors like the rest.
        "error" | "fatal" | "panic" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

/// The running log.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    sink: Sink,
    filter: reload::Handle<Targets, Registry>,
    level: Arc<Mutex<LevelFilter>>,
}

impl Log {
    /// Installs the log for the process. Fails when the file cannot be opened.
    pub(crate) fn install(config: &LogConfig) -> io::Result<Self> {
        let sink = Sink::open(config.file.as_deref())?;
        let (layer, filter) = reload::Layer::new(targets(config.level));
        let events = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(format::Events {
                format: config.format,
                source_location: config.source_location,
            })
            .with_writer(sink.clone());
        // A second install (tests in one process) keeps the first.
        drop(
            tracing_subscriber::registry()
                .with(layer)
                .with(events)
                .try_init(),
        );
        Ok(Self {
            sink,
            filter,
            level: Arc::new(Mutex::new(config.level)),
        })
    }

    /// Whether lines go to a file, and not to standard error.
    pub(crate) fn is_file(&self) -> bool {
        self.sink.is_file()
    }

    /// Opens the log file again, after log rotation moved it away. Without a file nothing is done; on failure the file
    /// that is open stays in use.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        self.sink.reopen()
    }
}

/// SPIRE: the logger service reads and sets the level of the running process.
impl LogControl for Log {
    fn level(&self) -> Level {
        let level = *self.level.lock().unwrap_or_else(PoisonError::into_inner);
        level.into_level().unwrap_or(Level::ERROR)
    }

    fn set_level(&self, level: Level) {
        let level = LevelFilter::from_level(level);
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
        if self.filter.reload(targets(level)).is_err() {
            tracing::error!("the log level could not be changed");
        }
    }
}

/// Our own events at the chosen level; other libraries' warnings; the audit always.
fn targets(level: LevelFilter) -> Targets {
    let others = level.min(LevelFilter::WARN);
    Targets::new()
        .with_default(others)
        .with_target("plastron", level)
        .with_target(AUDIT, LevelFilter::INFO)
}

#[cfg(test)]
mod tests {
    use super::parse_level;
    use tracing::level_filters::LevelFilter;

    #[test]
    fn knows_the_level_names_of_spire() {
        assert_eq!(parse_level("WARNING"), Some(LevelFilter::WARN));
        assert_eq!(parse_level("loud"), None);
    }
}
