//! The Logger service: the log level, to look at and to change while the server runs.

use daemon::log_control::LevelNumbers;
use proto::spire::api::server::logger::v1::logger_server::Logger as LoggerApi;
use proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use proto::spire::api::types;
use tonic::{Request, Response, Status};

use crate::caller::Caller;
use crate::ops::log_level::LogLevel;

#[derive(Debug)]
pub(crate) struct LoggerService {
    pub(crate) log_level: LogLevel,
}

#[tonic::async_trait]
impl LoggerApi for LoggerService {
    async fn get_logger(
        &self,
        _: Request<GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        Ok(answer(self.log_level.get()?))
    }

    async fn set_log_level(
        &self,
        request: Request<SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let caller = Caller::of(&request)?;
        let level = request.get_ref().new_level;
        Ok(answer(self.log_level.set(&caller, level)?))
    }

    async fn reset_log_level(
        &self,
        _: Request<ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        Ok(answer(self.log_level.reset()?))
    }
}

fn answer(numbers: LevelNumbers) -> Response<types::Logger> {
    Response::new(types::Logger {
        current_level: numbers.current,
        launch_level: numbers.launch,
    })
}
