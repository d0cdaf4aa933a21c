//! What a running command knows: which command line called it, the format asked for, the socket, and the door to the outside
//! (environment, standard input, clock).

use std::io::Read;
use std::sync::Arc;

use config::fault::{Code, Fault};
use proto::channel::ChannelError;
use spiffe::clock::{Clock, SystemClock};
use tonic::Status;
use tonic::transport::Channel;

use super::command::{Command, Endpoint, Program};
use super::error::CliError;
use super::socket::Socket;

/// Input read from files and from standard input ends here.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

/// The command line that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frontend {
    /// SPIRE's names, flags, texts and exit codes.
    Spire,
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
    pub(crate) frontend: Frontend,
    pub(crate) program: Program,
    /// The endpoint that is called; `None` for a command that calls none.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) format: Format,
    pub(crate) socket: Socket,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Context {
    pub(crate) fn new(
        frontend: Frontend,
        command: &Command,
        format: Format,
        socket: Socket,
    ) -> Self {
        Self {
            frontend,
            program: command.program,
            endpoint: command.endpoint(),
            format,
            socket,
            clock: Arc::new(SystemClock),
        }
    }

    /// Whether the reply itself is printed as data.
    pub(crate) fn prints_data(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Connects to the command's socket. On a shim the call itself finds out that nobody answers, so that its words
    /// stand before the reason, as with SPIRE.
    pub(crate) async fn channel(&self) -> Result<Channel, CliError> {
        if self.frontend == Frontend::Spire {
            return Ok(proto::channel::lazy_uds(&self.socket.path));
        }
        proto::channel::connect_uds(&self.socket.path)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ChannelError) -> CliError {
        let (cause, kind) = match error {
            ChannelError::Connect { cause, kind, .. } => (cause.clone(), *kind),
            ChannelError::Address { .. } => (error.to_string(), None),
        };
        let (code, who, start) = match self.endpoint {
            Some(Endpoint::ServerAdmin) => {
                (Code::ServerUnreachable, "server", "plastron server run")
            }
            Some(Endpoint::Workload | Endpoint::AgentAdmin) | None => {
                (Code::AgentUnreachable, "agent", "plastron agent run")
            }
        };
        let fault = if kind == Some(std::io::ErrorKind::PermissionDenied) {
            Fault::new(
                Code::PermissionDenied,
                format!("this user may not use the {who}'s socket"),
            )
            .hint(format!(
                "run the command as the {who}'s user or in its group: ls -l {}",
                self.socket.path
            ))
        } else {
            let hint = match self.program {
                _ if self.endpoint == Some(Endpoint::AgentAdmin) => {
                    "an agent that runs has this socket when its admin_socket_path is set; name it with --socket-path".to_owned()
                }
                Program::Plastron => {
                    "start one for trying things with `plastron dev` in another terminal".to_owned()
                }
                _ => format!("start it with `{start}`, or name its socket with --socket-path"),
            };
            let what = match self.endpoint {
                Some(Endpoint::AgentAdmin) => "no agent answers at its admin socket".to_owned(),
                _ => format!("no {who} answers on this host"),
            };
            Fault::new(code, what).hint(hint)
        };
        fault
            .at(format!("{} (from {})", self.socket.path, self.socket.from))
            .because(plain(&cause))
            .into()
    }

    /// A refused connection in SPIRE's words, the socket's path in them; other errors as they are.
    pub(crate) fn explained(&self, error: CliError) -> CliError {
        match error {
            CliError::Status { context, status } if self.frontend == Frontend::Spire => {
                let status = match dial_error(&status) {
                    Some(reason) => {
                        let slashes = if self.endpoint == Some(Endpoint::Workload) {
                            ""
                        } else {
                            "//"
                        };
                        Box::new(Status::unavailable(format!(
                            "connection error: desc = \"transport: Error while dialing: dial unix {slashes}{}: connect: {}\"",
                            self.socket.path,
                            error_text(reason)
                        )))
                    }
                    None => status,
                };
                CliError::Status { context, status }
            }
            other => other,
        }
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
        read.map_err(|error| CliError::file(Code::FileUnreadable, "open", path, &error))?;
        if bytes.len() as u64 > MAX_INPUT {
            return Err(CliError::usage(format!(
                "{path} is larger than {} MiB",
                MAX_INPUT / 1024 / 1024
            )));
        }
        Ok(bytes)
    }
}

/// The error of a connection that was never made.
fn dial_error(status: &Status) -> Option<&std::io::Error> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(reason) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                reason.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::PermissionDenied
            )
            .then_some(reason);
        }
        source = error.source();
    }
    None
}

/// An I/O error in the words of the operating system, in lower case and without Rust's error number.
pub(crate) fn error_text(error: &std::io::Error) -> String {
    plain(&error.to_string())
}

fn plain(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}
