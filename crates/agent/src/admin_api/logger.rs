//! The Logger service. SPIRE: spire.api.agent.logger.v1, texts and all.

use daemon::log_control::{LogLevelError, LogLevels};
use proto::spire::api::agent::logger::v1::logger_server::Logger as LoggerApi;
use proto::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub(super) struct Logger(pub(super) LogLevels);

impl Logger {
    fn answer(&self) -> Result<Response<types::Logger>, Status> {
        let numbers = self.0.numbers().map_err(refused)?;
        Ok(Response::new(types::Logger {
            current_level: numbers.current,
            launch_level: numbers.launch,
        }))
    }
}

#[tonic::async_trait]
impl LoggerApi for Logger {
    async fn get_logger(
        &self,
        _: Request<GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        self.answer()
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = self.0.set(request.get_ref().new_level).map_err(refused)?;
        tracing::info!(new_log_level = %level, "log level set");
        self.answer()
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = self.0.reset().map_err(refused)?;
        tracing::info!(launch_log_level = %level, "log level reset");
        self.answer()
    }
}

fn refused(error: LogLevelError) -> Status {
    match error {
        LogLevelError::NoControl => Status::unimplemented(error.to_string()),
        LogLevelError::Unspecified | LogLevelError::Unsupported => {
            Status::invalid_argument(error.to_string())
        }
    }
}
