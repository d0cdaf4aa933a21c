//! The log level, to look at and to change while a daemon runs.
//!
//! Owns what the Logger services of both daemons share: the switch, the level of the start, and SPIRE's numbers for levels.

use std::fmt::Debug;
use std::sync::Arc;

use tracing::Level;

/// The switch of the process's logging. The process that sets up logging passes it to the daemon.
pub trait LogControl: Send + Sync + Debug {
    fn level(&self) -> Level;
    fn set_level(&self, level: Level);
}

/// The switch, and the level that it was at when the daemon started.
#[derive(Debug, Clone)]
pub struct LogLevels {
    control: Option<Arc<dyn LogControl>>,
    launched_at: Level,
}

/// The levels as `spire.api.types.Logger` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelNumbers {
    pub current: i32,
    pub launch: i32,
}

/// Why a level is not set or reported. The texts are SPIRE's where SPIRE has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogLevelError {
    #[error("this process's log level cannot be changed while it runs")]
    NoControl,
    #[error("newLevel value cannot be LogLevel_UNSPECIFIED")]
    Unspecified,
    #[error("unsupported log level")]
    Unsupported,
}

impl LogLevels {
    /// The present level is that of the start.
    pub fn new(control: Option<Arc<dyn LogControl>>) -> Self {
        let launched_at = control
            .as_ref()
            .map_or(Level::INFO, |control| control.level());
        Self {
            control,
            launched_at,
        }
    }

    fn control(&self) -> Result<&dyn LogControl, LogLevelError> {
        self.control.as_deref().ok_or(LogLevelError::NoControl)
    }

    pub fn numbers(&self) -> Result<LevelNumbers, LogLevelError> {
        Ok(LevelNumbers {
            current: to_number(self.control()?.level()),
            launch: to_number(self.launched_at),
        })
    }

    /// Sets the level with SPIRE's number.
    pub fn set(&self, number: i32) -> Result<Level, LogLevelError> {
        let level = from_number(number)?;
        self.control()?.set_level(level);
        Ok(level)
    }

    /// Sets the level of the start.
    pub fn reset(&self) -> Result<Level, LogLevelError> {
        self.control()?.set_level(self.launched_at);
        Ok(self.launched_at)
    }
}

/// `spire.api.types.LogLevel`.
fn to_number(level: Level) -> i32 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    }
}

/// Panic (1) and fatal (2) have no level of their own here: both show errors only.
fn from_number(number: i32) -> Result<Level, LogLevelError> {
    match number {
        0 => Err(LogLevelError::Unspecified),
        1..=3 => Ok(Level::ERROR),
        4 => Ok(Level::WARN),
        5 => Ok(Level::INFO),
        6 => Ok(Level::DEBUG),
        7 => Ok(Level::TRACE),
        _ => Err(LogLevelError::Unsupported),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug)]
    struct Switch(Mutex<Level>);

    impl LogControl for Switch {
        fn level(&self) -> Level {
            *self.0.lock().unwrap()
        }
        fn set_level(&self, level: Level) {
            *self.0.lock().unwrap() = level;
        }
    }

    #[test]
    fn refuses_levels_that_do_not_exist() {
        let levels = LogLevels::new(Some(Arc::new(Switch(Mutex::new(Level::WARN)))));
        for (number, error) in [
            (0, LogLevelError::Unspecified),
            (-1, LogLevelError::Unsupported),
            (8, LogLevelError::Unsupported),
        ] {
            assert_eq!(levels.set(number), Err(error));
        }
        assert_eq!(levels.numbers().unwrap().current, 4);
    }

    #[test]
    fn goes_back_to_the_level_of_the_start() {
        let levels = LogLevels::new(Some(Arc::new(Switch(Mutex::new(Level::WARN)))));
        for number in 3..=7 {
            levels.set(number).unwrap();
            let numbers = levels.numbers().unwrap();
            assert_eq!((numbers.current, numbers.launch), (number, 4));
        }
        assert_eq!(levels.reset(), Ok(Level::WARN));
        assert_eq!(levels.numbers().unwrap().current, 4);
    }

    #[test]
    fn does_not_pretend_where_there_is_no_switch() {
        let levels = LogLevels::new(None);
        assert_eq!(levels.numbers(), Err(LogLevelError::NoControl));
        assert_eq!(levels.set(5), Err(LogLevelError::NoControl));
        assert_eq!(levels.reset(), Err(LogLevelError::NoControl));
    }
}
