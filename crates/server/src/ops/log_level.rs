//! The log level, to look at and to change while the server runs.

use daemon::log_control::{LevelNumbers, LogLevelError, LogLevels};

use crate::audit::Fields;
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};

#[derive(Debug)]
pub(crate) struct LogLevel {
    pub(crate) levels: LogLevels,
}

impl LogLevel {
    /// # Errors
    /// Unimplemented when this process's logging has no switch.
    pub(crate) fn get(&self) -> Result<LevelNumbers, OpError> {
        Ok(self.levels.numbers()?)
    }

    /// Sets the level with SPIRE's number and gives the levels as they are then.
    ///
    /// # Errors
    /// As [`Self::get`]; InvalidArgument for a number that is no level.
    pub(crate) fn set(&self, caller: &Caller, number: i32) -> Result<LevelNumbers, OpError> {
        let level = self.levels.set(number)?;
        tracing::info!(new_log_level = %level, "log level set");
        caller.describe(|| Fields::new().with("new_log_level", level));
        self.get()
    }

    /// Sets the level of the server's start.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn reset(&self) -> Result<LevelNumbers, OpError> {
        let level = self.levels.reset()?;
        tracing::info!(launch_log_level = %level, "log level reset");
        self.get()
    }
}

impl From<LogLevelError> for OpError {
    fn from(error: LogLevelError) -> Self {
        let kind = match error {
            LogLevelError::NoControl => Kind::Unimplemented,
            LogLevelError::Unspecified | LogLevelError::Unsupported => Kind::InvalidArgument,
        };
        refused(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_pretend_when_there_is_no_switch() {
        let levels = LogLevels::new(None);
        let log = LogLevel { levels };
        assert_eq!(log.get().unwrap_err().kind(), Kind::Unimplemented);
        assert_eq!(log.reset().unwrap_err().kind(), Kind::Unimplemented);
    }
}
