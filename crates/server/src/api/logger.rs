//! The Logger service: the log level, to look at and to change while the server runs.

use daemon::log_control::{LogLevelError, LogLevels};
use proto::spire::api::server::logger::v1::logger_server::Logger as LoggerApi;
use proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status};

use crate::audit::Fields;
use crate::caller::Caller;
use crate::error::{Kind, OpError, refused};

#[derive(Debug)]
pub(crate) struct LoggerService(LogLevels);

impl LoggerService {
    pub(crate) fn new(levels: LogLevels) -> Self {
        Self(levels)
    }

    fn answer(&self) -> Result<Response<types::Logger>, OpError> {
        let numbers = self.0.numbers()?;
        Ok(Response::new(types::Logger {
            current_level: numbers.current,
            launch_level: numbers.launch,
        }))
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
        let level = self
            .0
            .set(request.get_ref().new_level)
            .map_err(OpError::from)?;
        tracing::info!(new_log_level = %level, "log level set");
        caller.describe(|| Fields::new().with("new_log_level", level));
        Ok(self.answer()?)
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = self.0.reset().map_err(OpError::from)?;
        tracing::info!(launch_log_level = %level, "log level reset");
        Ok(self.answer()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_pretend_when_there_is_no_switch() {
        let service = LoggerService::new(LogLevels::new(None));
        assert_eq!(service.answer().unwrap_err().kind(), Kind::Unimplemented);
    }
}
