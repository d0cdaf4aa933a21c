//! The Logger service: the log level, to look at and to change while the server runs.

use std::fmt::Debug;
use std::sync::Arc;

use proto::spire::api::server::logger::v1::logger_server::Logger as LoggerApi;
use proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status};
use tracing::Level;

use crate::audit::Fields;
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};

/// The switch of the process's logging, which whoever sets logging up hands to the server.
pub trait LogControl: Send + Sync + Debug {
    fn level(&self) -> Level;
    fn set_level(&self, level: Level);
}

#[derive(Debug)]
pub(crate) struct LoggerService {
    control: Option<Arc<dyn LogControl>>,
    launched_at: Level,
}

impl LoggerService {
    pub(crate) fn new(control: Option<Arc<dyn LogControl>>) -> Self {
        let launched_at = control
            .as_ref()
            .map_or(Level::INFO, |control| control.level());
        Self {
            control,
            launched_at,
        }
    }

    fn control(&self) -> Result<&dyn LogControl, OpError> {
        self.control.as_deref().ok_or_else(|| {
            refused(
                Kind::Unimplemented,
                "this process's log level cannot be changed while it runs",
            )
        })
    }

    fn answer(&self) -> Result<Response<types::Logger>, OpError> {
        Ok(Response::new(types::Logger {
            current_level: to_wire(self.control()?.level()) as i32,
            launch_level: to_wire(self.launched_at) as i32,
        }))
    }
}

#[tonic::async_trait]
impl LoggerApi for LoggerService {
    async fn get_logger(
        &self,
        _: Request<GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        Ok(self.answer()?)
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = Caller::of(&request)?;
        let level = from_wire(request.get_ref().new_level)?;
        self.control()?.set_level(level);
        tracing::info!(new_log_level = %level, "log level set");
        caller.describe(|| Fields::new().with("new_log_level", level));
        Ok(self.answer()?)
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        self.control()?.set_level(self.launched_at);
        tracing::info!(launch_log_level = %self.launched_at, "log level reset");
        Ok(self.answer()?)
    }
}

fn to_wire(level: Level) -> types::LogLevel {
    match level {
        Level::ERROR => types::LogLevel::Error,
        Level::WARN => types::LogLevel::Warn,
        Level::INFO => types::LogLevel::Info,
        Level::DEBUG => types::LogLevel::Debug,
        Level::TRACE => types::LogLevel::Trace,
    }
}

/// Panic and fatal have no level of their own here: both show errors only.
fn from_wire(level: i32) -> Result<Level, OpError> {
    match types::LogLevel::try_from(level) {
        Ok(types::LogLevel::Unspecified) => Err(refused(
            Kind::InvalidArgument,
            "newLevel value cannot be LogLevel_UNSPECIFIED",
        )),
        Ok(types::LogLevel::Panic | types::LogLevel::Fatal | types::LogLevel::Error) => {
            Ok(Level::ERROR)
        }
        Ok(types::LogLevel::Warn) => Ok(Level::WARN),
        Ok(types::LogLevel::Info) => Ok(Level::INFO),
        Ok(types::LogLevel::Debug) => Ok(Level::DEBUG),
        Ok(types::LogLevel::Trace) => Ok(Level::TRACE),
        Err(_) => Err(refused(Kind::InvalidArgument, "unsupported log level")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_levels_that_are_none() {
        assert_eq!(
            from_wire(0).unwrap_err().message(),
            "newLevel value cannot be LogLevel_UNSPECIFIED"
        );
        assert_eq!(
            from_wire(99).unwrap_err().message(),
            "unsupported log level"
        );
    }

    #[test]
    fn refuses_to_pretend_when_there_is_no_switch() {
        assert_eq!(
            LoggerService::new(None).answer().unwrap_err().kind(),
            Kind::Unimplemented
        );
    }
}
