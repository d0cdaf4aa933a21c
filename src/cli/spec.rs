//! What a command is: its words, its flags and the function that runs it. One description serves both faces: the
//! `spire-server`/`spire-agent` shims (Go flags, `go_flags.rs`) and the native command line (clap, `native.rs`).

use std::future::Future;
use std::pin::Pin;

use super::args::Args;
use super::context::Context;
use super::error::CliError;
use super::output::Output;

/// How the text of a flag is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// Present or absent; also `=true` and `=false`.
    Switch,
    /// A point in time as Unix seconds; natively RFC 3339 too.
    Moment,
    /// A lifetime. SPIRE takes bare seconds; natively `90`, `90s` and `1h30m` mean what they say.
    Seconds,
    /// A Go duration (`1h30m`); the native face takes bare seconds too.
    Duration,
    /// A duration whose faults SPIRE words differently: how long to wait.
    Timeout,
    /// The format of the output.
    Format,
    /// May be given several times.
    List,
    /// Comma-separated values, may also be given several times.
    CommaList,
    /// A word without dashes; native only.
    Word,
    /// Any number of them; native only.
    Words,
    /// Everything that follows, unread; native only.
    Rest,
}

/// One flag under its two names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// SPIRE's name, without dashes: `spiffeID`. Also the key in [`Args`].
    pub(crate) spire: &'static str,
    /// The native name, without dashes: `spiffe-id`. Empty: the shims alone have it.
    pub(crate) native: &'static str,
    pub(crate) kind: Kind,
    /// Shown in help and used when the flag is absent; empty for none.
    pub(crate) default: &'static str,
    /// The same on the shims alone, where SPIRE's default is not ours.
    pub(crate) shim_default: &'static str,
    pub(crate) surface: Surface,
    /// Natively its value may also stand without the flag's name.
    pub(crate) positional: bool,
    pub(crate) help: &'static str,
}

/// A flag of the given kind without a default.
pub(crate) const fn flag(
    spire: &'static str,
    native: &'static str,
    kind: Kind,
    help: &'static str,
) -> Flag {
    Flag {
        spire,
        native,
        kind,
        default: "",
        shim_default: "",
        surface: Surface::Both,
        positional: false,
        help,
    }
}

impl Flag {
    /// A flag whose value natively needs no name before it, such as the one ID that a command is about.
    pub(crate) const fn positional(mut self) -> Self {
        self.positional = true;
        self
    }

    /// A flag that SPIRE's command does not have.
    pub(crate) const fn natively(mut self) -> Self {
        self.surface = Surface::Native;
        self
    }

    /// A default of the shims alone.
    pub(crate) const fn or_on_shim(mut self, default: &'static str) -> Self {
        self.shim_default = default;
        self
    }

    /// The default on the shims.
    pub(crate) const fn default_on_shim(&self) -> &'static str {
        if self.shim_default.is_empty() {
            self.default
        } else {
            self.shim_default
        }
    }

    pub(crate) const fn or(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }
}

/// The program whose command this is: it decides the shim, the default socket and the error prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Server,
    Agent,
    /// The commands of `plastron` itself: `dev`, `run`, `help`, `completions`, `man`.
    Plastron,
}

impl Program {
    pub(crate) const fn shim_name(self) -> &'static str {
        match self {
            Self::Server => "spire-server",
            Self::Agent => "spire-agent",
            Self::Plastron => "plastron",
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
            Self::Plastron => "plastron",
        }
    }
}

/// The endpoint a command talks to; decides which socket flags it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The server's admin socket.
    ServerAdmin,
    /// The agent's Workload API socket.
    Workload,
    /// The agent's admin socket.
    AgentAdmin,
    /// None: a daemon or a command that works on files.
    None,
}

/// Which of the two faces shows the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    Both,
    Native,
}

pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Output, CliError>>>>;

/// One command.
pub(crate) struct Command {
    pub(crate) program: Program,
    /// Its words after the program's name: `["entry", "create"]`.
    pub(crate) path: &'static [&'static str],
    pub(crate) about: &'static str,
    pub(crate) flags: &'static [Flag],
    pub(crate) endpoint: Endpoint,
    /// Whether it has `-output`.
    pub(crate) formats: bool,
    pub(crate) surface: Surface,
    pub(crate) run: fn(Context, Args) -> Running,
}

/// How long the native commands wait for a server or an agent. (SPIRE: most commands wait for ever.)
const TIMEOUT: Flag = flag(
    "timeout",
    "timeout",
    Kind::Timeout,
    "How long to wait for the answer",
)
.or("30s");

const FORMAT: Flag = flag(
    "output",
    "output",
    Kind::Format,
    "Output format: pretty or json",
);

/// All flags of the native command: its own, the shared ones, and what SPIRE's command lacks.
pub(crate) fn native_flags(command: &Command) -> Vec<Flag> {
    let mut flags: Vec<Flag> = command.flags.to_vec();
    flags.extend(shared_flags(command));
    if command.endpoint != Endpoint::None
        && !command.is_watch()
        && flags.iter().all(|flag| flag.spire != "timeout")
    {
        flags.push(TIMEOUT);
    }
    if !command.formats && command.speaks_data() {
        flags.push(FORMAT);
    }
    flags
}

impl Command {
    /// Whether it runs until it is interrupted.
    pub(crate) fn is_watch(&self) -> bool {
        self.path == ["api", "watch"]
    }

    /// Whether its output is data that has formats, natively; the others run something or print a text for a tool.
    fn speaks_data(&self) -> bool {
        matches!(
            self.path,
            ["healthcheck" | "validate" | "help" | "version"] | ["api", "watch"]
        )
    }

    /// Its words as they are typed natively, without the program's name.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let program = match self.program {
            Program::Plastron => None,
            program => Some(program.word()),
        };
        program
            .into_iter()
            .chain(self.path.iter().copied())
            .collect()
    }
}

impl Command {
    /// A command on the server's admin socket that both faces show, with output formats.
    pub(crate) const fn of_server(
        path: &'static [&'static str],
        about: &'static str,
        flags: &'static [Flag],
        run: fn(Context, Args) -> Running,
    ) -> Self {
        Self {
            program: Program::Server,
            path,
            about,
            flags,
            endpoint: Endpoint::ServerAdmin,
            formats: true,
            surface: Surface::Both,
            run,
        }
    }
}

/// The flags that follow from the command's endpoint and from its having formats.
pub(crate) fn shared_flags(command: &Command) -> Vec<Flag> {
    let mut flags = Vec::new();
    match command.endpoint {
        Endpoint::ServerAdmin => {
            flags.push(
                flag(
                    "socketPath",
                    "socket-path",
                    Kind::Text,
                    "The server's admin socket (default: your own server's, or /run/plastron/server/api.sock)",
                )
                .or_on_shim(super::socket::SERVER_ADMIN),
            );
            flags.push(flag(
                "instance",
                "instance",
                Kind::Text,
                "Name put in place of %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE",
            ));
        }
        Endpoint::Workload => {
            flags.push(
                flag(
                    "socketPath",
                    "socket-path",
                    Kind::Text,
                    "The agent's Workload API socket (default: your own agent's, or /run/plastron/agent/public/api.sock)",
                )
                .or_on_shim(super::socket::WORKLOAD),
            );
            flags.push(flag(
                "instance",
                "instance",
                Kind::Text,
                "Name put in place of %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE",
            ));
        }
        Endpoint::AgentAdmin => flags.push(
            flag(
                "socketPath",
                "socket-path",
                Kind::Text,
                "The agent's admin socket (default: your own agent's, or /run/plastron/agent/private/admin.sock)",
            )
            .or_on_shim(super::socket::AGENT_ADMIN),
        ),
        Endpoint::None => {}
    }
    if command.formats {
        flags.push(FORMAT);
    }
    flags
}
