//! What a command is: one row says its words, what kind of command it is, what object it is about, its flags, what it
//! prints and how it is used. Both command lines, `help`, completions, manual pages and the lists of the tests read these
//! rows; nothing else knows a fact about a command.

use std::future::Future;
use std::pin::Pin;

use super::args::Args;
use super::context::Context;
use super::error::CliError;
use super::flag::{Flag, FlagSpec, Surface};
use super::output::Output;

/// The program whose command this is: it decides SPIRE's command line, the default socket and the error prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Server,
    Agent,
    /// The commands of `plastron` itself: `dev`, `run`, `help`, `completions`, `man`.
    Plastron,
}

impl Program {
    pub(crate) const fn spire_name(self) -> &'static str {
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

/// The endpoint that a command calls; decides which socket flags it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The server's admin socket.
    ServerAdmin,
    /// The agent's Workload API socket.
    Workload,
    /// The agent's admin socket.
    AgentAdmin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Serves until it is stopped by a signal.
    Daemon,
    /// Calls an endpoint and ends with the answer, or when `--timeout` is over.
    Call(Endpoint),
    /// Follows an endpoint until it is interrupted.
    Watch(Endpoint),
    /// Works on this machine alone, or chooses its sockets itself.
    Local,
}

/// The kind of object that a command is about: what a refusal of its call means follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Entry,
    Agent,
    Bundle,
    /// None that has codes of its own.
    Other,
}

/// What a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prints {
    /// Text for people, a log, or a document for another program.
    Text,
    /// Data, natively in every format; SPIRE's command has its text alone.
    DataNatively,
    /// Data, on both command lines.
    Data,
}

pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Output, CliError>>>>;
type Run = fn(Context, Args) -> Running;

/// One command.
#[derive(Clone, Copy)]
pub(crate) struct Command {
    pub(crate) program: Program,
    /// Its words after the program's name: `["entry", "create"]`. All but the last name groups; see [`GROUPS`].
    pub(crate) path: &'static [&'static str],
    pub(crate) about: &'static str,
    pub(crate) kind: Kind,
    pub(crate) object: Object,
    /// Its own flags; those that follow from its kind and from what it prints are [`spire_flags`] and [`native_flags`].
    pub(crate) flags: &'static [FlagSpec],
    pub(crate) prints: Prints,
    pub(crate) surface: Surface,
    /// Native words for the last word.
    pub(crate) aliases: &'static [&'static str],
    /// Below the flags in the native help: how the command is used.
    pub(crate) examples: &'static str,
    pub(crate) run: Run,
}

impl Command {
    /// A row of both command lines. A call prints data unless it says otherwise, any other command text.
    pub(crate) const fn new(
        program: Program,
        kind: Kind,
        path: &'static [&'static str],
        about: &'static str,
        run: Run,
    ) -> Self {
        Self {
            program,
            path,
            about,
            kind,
            object: Object::Other,
            flags: &[],
            prints: match kind {
                Kind::Call(_) => Prints::Data,
                Kind::Daemon | Kind::Watch(_) | Kind::Local => Prints::Text,
            },
            surface: Surface::Both,
            aliases: &[],
            examples: "",
            run,
        }
    }

    /// A call of the server's admin socket.
    pub(crate) const fn of_server(
        path: &'static [&'static str],
        about: &'static str,
        run: Run,
    ) -> Self {
        Self::new(
            Program::Server,
            Kind::Call(Endpoint::ServerAdmin),
            path,
            about,
            run,
        )
    }

    /// A call of the agent's Workload API.
    pub(crate) const fn of_workload(
        path: &'static [&'static str],
        about: &'static str,
        run: Run,
    ) -> Self {
        Self::new(
            Program::Agent,
            Kind::Call(Endpoint::Workload),
            path,
            about,
            run,
        )
    }

    /// A command of `plastron` itself.
    pub(crate) const fn local(
        path: &'static [&'static str],
        about: &'static str,
        run: Run,
    ) -> Self {
        Self::new(Program::Plastron, Kind::Local, path, about, run).natively()
    }

    pub(crate) const fn object(mut self, object: Object) -> Self {
        self.object = object;
        self
    }

    pub(crate) const fn flags(mut self, flags: &'static [FlagSpec]) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) const fn prints(mut self, prints: Prints) -> Self {
        self.prints = prints;
        self
    }

    /// A command that SPIRE does not have.
    pub(crate) const fn natively(mut self) -> Self {
        self.surface = Surface::Native;
        self
    }

    pub(crate) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(crate) const fn examples(mut self, examples: &'static str) -> Self {
        self.examples = examples;
        self
    }

    pub(crate) const fn endpoint(&self) -> Option<Endpoint> {
        match self.kind {
            Kind::Call(endpoint) | Kind::Watch(endpoint) => Some(endpoint),
            Kind::Daemon | Kind::Local => None,
        }
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

/// Words that other words follow, as they are typed natively.
pub(crate) struct Group {
    pub(crate) words: &'static [&'static str],
    pub(crate) about: &'static str,
}

const fn group(words: &'static [&'static str], about: &'static str) -> Group {
    Group { words, about }
}

pub(crate) const GROUPS: &[Group] = &[
    group(&["server"], "Run and administer the identity server"),
    group(
        &["server", "agent"],
        "Attested nodes: list, show, count, ban, evict, purge",
    ),
    group(
        &["server", "bundle"],
        "The trust bundle, and those of other trust domains",
    ),
    group(
        &["server", "entry"],
        "Registration entries: which workload gets which identity",
    ),
    group(
        &["server", "token"],
        "Join tokens for a node's first attestation",
    ),
    group(&["server", "x509"], "X509-SVIDs"),
    group(&["server", "jwt"], "JWT-SVIDs"),
    group(
        &["server", "localauthority"],
        "The server's own signing authorities",
    ),
    group(&["server", "localauthority", "x509"], "X509-SVIDs"),
    group(&["server", "localauthority", "jwt"], "JWT-SVIDs"),
    group(
        &["server", "logger"],
        "The log level of the running process",
    ),
    group(&["server", "debug"], "Runtime information"),
    group(&["agent"], "Run the node agent and use its Workload API"),
    group(&["agent", "api"], "The Workload API, as a workload sees it"),
    group(
        &["agent", "api", "fetch"],
        "Fetch the identity of the calling process",
    ),
    group(
        &["agent", "api", "validate"],
        "Validate a document through the Workload API",
    ),
    group(&["agent", "logger"], "The log level of the running process"),
    group(&["agent", "debug"], "Runtime information"),
];

/// How long the native commands wait for a server or an agent. (SPIRE: most commands wait for ever.)
pub(crate) const TIMEOUT: Flag<std::time::Duration> =
    Flag::timeout("timeout", "timeout", "How long to wait for the answer").or("30s");
pub(crate) const OUTPUT: Flag<String> =
    Flag::format("output", "output", "Output format: pretty or json");
pub(crate) const SOCKET_PATH: Flag<String> = Flag::text(
    "socketPath",
    "socket-path",
    "The server's admin socket (of `plastron` by default your own server's, or /run/plastron/server/api.sock)",
)
.value("SOCKET")
.or_on_spire(super::socket::SERVER_ADMIN);
const WORKLOAD_SOCKET_PATH: Flag<String> = Flag::text(
    "socketPath",
    "socket-path",
    "The agent's Workload API socket (of `plastron` by default your own agent's, or /run/plastron/agent/public/api.sock)",
)
.value("SOCKET")
.or_on_spire(super::socket::WORKLOAD);
const AGENT_ADMIN_SOCKET_PATH: Flag<String> = Flag::text(
    "socketPath",
    "socket-path",
    "The agent's admin socket (of `plastron` by default your own agent's, or /run/plastron/agent/private/admin.sock)",
)
.value("SOCKET")
.or_on_spire(super::socket::AGENT_ADMIN);
pub(crate) const INSTANCE: Flag<String> = Flag::text(
    "instance",
    "instance",
    "Name put in place of %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE",
)
.value("NAME");
const WORKLOAD_INSTANCE: Flag<String> = Flag::text(
    "instance",
    "instance",
    "Name put in place of %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE",
)
.value("NAME");

/// The command's own flags, and those that follow from the endpoint that it calls.
fn flags(command: &Command) -> Vec<FlagSpec> {
    let of_endpoint: &[FlagSpec] = match command.endpoint() {
        Some(Endpoint::ServerAdmin) => &[SOCKET_PATH.spec, INSTANCE.spec],
        Some(Endpoint::Workload) => &[WORKLOAD_SOCKET_PATH.spec, WORKLOAD_INSTANCE.spec],
        Some(Endpoint::AgentAdmin) => &[AGENT_ADMIN_SOCKET_PATH.spec],
        None => &[],
    };
    [command.flags, of_endpoint].concat()
}

/// All flags of SPIRE's command.
pub(crate) fn spire_flags(command: &Command) -> Vec<FlagSpec> {
    let mut flags = flags(command);
    if command.prints == Prints::Data {
        flags.push(OUTPUT.spec);
    }
    flags.retain(|flag| flag.surface == Surface::Both);
    flags
}

/// All flags of the native command.
pub(crate) fn native_flags(command: &Command) -> Vec<FlagSpec> {
    let mut flags = flags(command);
    if command.prints == Prints::Data {
        flags.push(OUTPUT.spec);
    }
    if matches!(command.kind, Kind::Call(_))
        && flags.iter().all(|flag| flag.spire != TIMEOUT.spec.spire)
    {
        flags.push(TIMEOUT.spec);
    }
    if command.prints == Prints::DataNatively {
        flags.push(OUTPUT.spec);
    }
    flags.retain(|flag| !flag.native.is_empty());
    flags
}

#[cfg(test)]
mod tests {
    use super::GROUPS;
    use crate::cli::commands;

    #[test]
    fn every_group_is_described_and_has_commands() {
        let commands = commands();
        for command in &commands {
            let words = command.words();
            for length in 1..words.len() {
                let group = words.get(..length).unwrap();
                assert!(
                    GROUPS.iter().any(|known| known.words == group),
                    "{group:?} has no row"
                );
            }
        }
        for group in GROUPS {
            let is_below = |words: Vec<&str>| {
                words.len() > group.words.len() && words.starts_with(group.words)
            };
            assert!(
                commands.iter().any(|command| is_below(command.words())),
                "{:?} has no commands",
                group.words
            );
        }
    }

    #[test]
    fn no_two_commands_have_the_same_words() {
        let mut words: Vec<String> = commands()
            .iter()
            .flat_map(|command| {
                let words = command.words();
                let group = words
                    .split_last()
                    .map_or(&[][..], |(_, group)| group)
                    .to_vec();
                std::iter::once(words)
                    .chain(command.aliases.iter().map(move |alias| {
                        let mut words = group.clone();
                        words.push(alias);
                        words
                    }))
                    .map(|words| words.join(" "))
                    .collect::<Vec<_>>()
            })
            .collect();
        let count = words.len();
        words.sort();
        words.dedup();
        assert_eq!(words.len(), count);
    }
}
