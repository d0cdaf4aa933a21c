//! What a running command knows: which face called it, the format asked for, the socket, and the door to the outside
//! (environment, standard input, clock).

use std::io::Read;
use std::sync::Arc;

use plugin::fault::{Code, Fault};
use spiffe::clock::{Clock, SystemClock};
use tonic::transport::Channel;

use super::error::CliError;
use super::spec::{Endpoint, Program};

/// Input read from files and from standard input ends here.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// The face that called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// SPIRE's names, flags, texts and exit codes.
    Shim,
    Native,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// SPIRE's text on the shims.
    Pretty,
    Json,
    Table,
    Yaml,
}

#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) face: Face,
    pub(crate) program: Program,
    pub(crate) endpoint: Endpoint,
    pub(crate) format: Format,
    pub(crate) socket: String,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Context {
    pub(crate) fn new(
        face: Face,
        program: Program,
        endpoint: Endpoint,
        format: Format,
        socket: String,
    ) -> Self {
        Self {
            face,
            program,
            endpoint,
            format,
            socket,
            clock: Arc::new(SystemClock),
        }
    }

    /// Connects to the command's socket.
    pub(crate) async fn channel(&self) -> Result<Channel, CliError> {
        if let Err(error) = std::os::unix::net::UnixStream::connect(&self.socket) {
            return Err(self.unreachable(&error));
        }
        proto::channel::connect_uds(&self.socket)
            .await
            .map_err(|error| CliError::failed(error.to_string()))
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let reason = error_text(error);
        if self.face == Face::Shim {
            return CliError::failed(format!(
                "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix //{}: connect: {reason}\"",
                self.socket
            ));
        }
        let (code, who, start) = match self.endpoint {
            Endpoint::ServerAdmin => (Code::ServerUnreachable, "server", "plastron server run"),
            Endpoint::Workload | Endpoint::AgentAdmin | Endpoint::None => {
                (Code::AgentUnreachable, "agent", "plastron agent run")
            }
        };
        Fault::new(code, format!("no {who} answers on this host"))
            .at(&self.socket)
            .because(reason)
            .hint(format!(
                "start it with `{start}`, or name its socket with --socket-path"
            ))
            .into()
    }

    /// Reads a file, or standard input for `-`; bounded.
    pub(crate) fn read_input(&self, path: &str) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        let read = if path == "-" {
            std::io::stdin()
                .lock()
                .take(MAX_INPUT + 1)
                .read_to_end(&mut bytes)
        } else {
            std::fs::File::open(path)
                .and_then(|file| file.take(MAX_INPUT + 1).read_to_end(&mut bytes))
        };
        read.map_err(|error| CliError::failed(format!("open {path}: {}", error_text(&error))))?;
        if bytes.len() as u64 > MAX_INPUT {
            return Err(CliError::usage(format!(
                "{path} is larger than {} MiB",
                MAX_INPUT / 1024 / 1024
            )));
        }
        Ok(bytes)
    }
}

/// An I/O error in the words of the operating system, in lower case and without Rust's error number.
pub(crate) fn error_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}
