//! What `run` and `validate` of both daemons share: the configuration file, the log, and the signals.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use ::daemon::log_config::{LogConfig, LogFlags};
use config::Document;
use config::fault::{Code, Fault, Faults};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::Args;
use super::command::Program;
use super::context::{Context, Frontend};
use super::error::CliError;
use super::flag::{Flag, FlagSpec};
use super::output::{self, Output};
use crate::logging::{self, Log, LogFormat, parse_level};

pub(super) const CONFIG: Flag<String> = Flag::text(
    "config",
    "config",
    "The configuration file (of `plastron` by default the user's, then /etc/plastron's)",
)
.value("FILE");
pub(super) const EXPAND_ENV: Flag<bool> = Flag::switch(
    "expandEnv",
    "expand-env",
    "Replace $VAR and ${VAR} in the configuration file",
);
pub(super) const DATA_DIR: Flag<String> =
    Flag::text("dataDir", "data-dir", "Directory for persistent state").value("DIRECTORY");
pub(super) const LOG_FILE: Flag<String> = Flag::text(
    "logFile",
    "log-file",
    "File to log to; standard error when absent",
)
.value("FILE");
pub(super) const LOG_FORMAT: Flag<String> =
    Flag::text("logFormat", "log-format", "text or json").value("FORMAT");
pub(super) const LOG_LEVEL: Flag<String> =
    Flag::text("logLevel", "log-level", "trace, debug, info, warn or error").value("LEVEL");
pub(super) const LOG_SOURCE: Flag<bool> = Flag::switch(
    "logSourceLocation",
    "log-source-location",
    "Log the source file and line of each event",
);
pub(super) const TRUST_DOMAIN: Flag<String> = Flag::text(
    "trustDomain",
    "trust-domain",
    "The trust domain, such as example.org",
)
.value("TRUST-DOMAIN");

/// The configuration file to read, and whether it is there. On a shim SPIRE's default lies in the working directory.
/// Natively nothing is read from there, since a daemon of root may be started in anybody's directory.
fn file(context: &Context, args: &Args) -> PathBuf {
    if let Some(named) = args.optional(CONFIG) {
        return PathBuf::from(named);
    }
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let own = if nix::unistd::geteuid().is_root() {
        None
    } else {
        own_config(env("XDG_CONFIG_HOME"), env("HOME"))
    };
    let name = format!("{}.conf", context.program.word());
    own.map(|directory| directory.join(&name))
        .filter(|path| path.exists())
        .unwrap_or_else(|| Path::new("/etc/plastron").join(name))
}

/// The user's own configuration directory (XDG Base Directory: relative paths are ignored).
fn own_config(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    xdg.filter(|path| path.is_absolute())
        .or_else(|| {
            home.filter(|path| path.is_absolute())
                .map(|home| home.join(".config"))
        })
        .map(|base| base.join("plastron"))
}

/// Whether the flags alone are to say everything: natively, when no file is named and there is none at the usual places.
pub(super) fn is_without_file(context: &Context, args: &Args) -> bool {
    context.frontend == Frontend::Native && !args.given(CONFIG) && !file(context, args).exists()
}

/// Where the configuration comes from, for the log.
pub(super) fn origin(context: &Context, args: &Args) -> String {
    if is_without_file(context, args) {
        return "the command line".to_owned();
    }
    let file = file(context, args);
    std::path::absolute(&file)
        .unwrap_or(file)
        .display()
        .to_string()
}

/// The configuration as `read` takes it from the file that `-config` names; or, without a file, what `from_flags` makes of
/// the flags, if they say enough.
pub(super) fn configuration<C>(
    context: &Context,
    args: &Args,
    from_flags: impl FnOnce() -> Option<Result<C, Faults>>,
    read: impl FnOnce(&Document) -> Result<C, Faults>,
) -> Result<C, Faults> {
    if !is_without_file(context, args) {
        return document(context, &file(context, args), args)
            .and_then(|document| read(&document))
            .map_err(|faults| match context.frontend {
                Frontend::Native => faults,
                Frontend::Spire => with_spire_flags(faults),
            });
    }
    match from_flags() {
        Some(config) => config.map_err(of_flags),
        None => Err(no_file(context.program, &file(context, args)).into()),
    }
}

/// A flag at fault, named as the shims know it: `--trust-domain` is `-trustDomain`.
fn with_spire_flags(faults: Faults) -> Faults {
    let spire = |at: String| match at.strip_prefix("--") {
        None => at,
        Some(name) => {
            let mut words = name.split('-');
            let first = words.next().unwrap_or_default().to_owned();
            words.fold(format!("-{first}"), |text, word| {
                let (head, tail) = word.split_at(word.len().min(1));
                text + &head.to_ascii_uppercase() + tail
            })
        }
    };
    let faults: Vec<Fault> = faults
        .into_iter()
        .map(|mut fault| {
            fault.at = fault.at.map(spire);
            fault
        })
        .collect();
    faults.into()
}

/// Faults of a configuration that nobody wrote: they lie in the flags.
fn of_flags(faults: Faults) -> Faults {
    let renamed = |text: String| {
        [
            ("trust_bundle_path", "--trust-bundle"),
            ("trust_bundle_url", "--trust-bundle-url"),
            ("trust_bundle_spiffe_workload_api, ", ""),
            ("trust_bundle_spiffe_workload_api", "a configuration file"),
            ("insecure_bootstrap", "--insecure-bootstrap"),
        ]
        .into_iter()
        .fold(text, |text, (key, flag)| text.replace(key, flag))
    };
    let faults: Vec<Fault> = faults
        .into_iter()
        .map(|mut fault| {
            fault.at = fault.at.filter(|at| at.starts_with("--"));
            fault.excerpt = None;
            fault.hint = fault.hint.map(renamed);
            fault
        })
        .collect();
    faults.into()
}

/// The file, variables replaced when asked.
fn document(context: &Context, file: &Path, args: &Args) -> Result<Document, Faults> {
    let environment = |name: &str| std::env::var(name).ok();
    let environment: Option<config::Environment<'_>> = args.get(EXPAND_ENV).then_some(&environment);
    match context.frontend {
        Frontend::Native => Document::load_with_files_beside(file, environment),
        Frontend::Spire => Document::load(file, environment),
    }
}

fn no_file(program: Program, file: &Path) -> Fault {
    let bare = match program {
        Program::Server => "--trust-domain example.org --data-dir DIR",
        Program::Agent | Program::Plastron => {
            "--trust-domain example.org --server-address HOST --trust-bundle FILE --join-token TOKEN"
        }
    };
    Fault::new(Code::ConfigUnreadable, "there is no configuration file")
        .at(file.display().to_string())
        .because("no such file, and the flags given are not enough to start without one")
        .hint(format!(
            "name one with --config, or run `plastron {} run {bare}`",
            program.word()
        ))
}

/// SPIRE's line for a missing file, in place of the fault on the shim.
fn missing_on_shim(context: &Context, args: &Args) -> Option<String> {
    let file = Path::new(args.get(CONFIG));
    if context.frontend == Frontend::Native || file.exists() {
        return None;
    }
    let absolute = std::path::absolute(file).unwrap_or_else(|_no_directory| file.to_owned());
    Some(format!(
        "could not find config file {}: please use the -config flag",
        absolute.display()
    ))
}

/// Refuses to start, on the shim, without a file.
pub(super) fn need_file(context: &Context, args: &Args) -> Result<(), CliError> {
    match missing_on_shim(context, args) {
        Some(line) => {
            output::say(&line);
            Err(CliError::Silent)
        }
        None => Ok(()),
    }
}

pub(super) fn path(args: &Args, flag: Flag<String>) -> Option<PathBuf> {
    args.optional(flag).map(PathBuf::from)
}

pub(super) fn text(args: &Args, flag: Flag<String>) -> Option<String> {
    args.optional(flag).map(str::to_owned)
}

pub(super) fn switch(args: &Args, flag: Flag<bool>) -> Option<bool> {
    args.given(flag).then(|| args.get(flag))
}

/// The flags that say how a daemon logs.
pub(super) fn log_flags(args: &Args) -> LogFlags {
    LogFlags {
        level: text(args, LOG_LEVEL),
        format: text(args, LOG_FORMAT),
        file: path(args, LOG_FILE),
        source_location: switch(args, LOG_SOURCE),
    }
}

/// A port flag: a number that can be a port.
pub(super) fn port(args: &Args, flag: Flag<String>) -> Result<Option<u16>, CliError> {
    match args.optional(flag) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_not_a_port| {
            let FlagSpec { spire, native, .. } = flag.spec;
            let why = format!("{text:?} is not a port: a number from 0 to 65535");
            CliError::usage_of(format!("{spire} {why}"), format!("--{native} {why}"))
        }),
    }
}

/// How a daemon says that its configuration is wrong.
pub(super) fn refuse(faults: &Faults) -> CliError {
    CliError::Faults(Box::new(faults.clone()))
}

/// The outcome of `validate`.
pub(super) fn verdict(
    context: &Context,
    args: &Args,
    outcome: Result<(), Faults>,
) -> Result<Output, CliError> {
    let name = context.program.word();
    match outcome {
        Ok(()) if context.frontend == Frontend::Native => Ok(Output {
            replies: vec![serde_json::json!({"valid": true})],
            ..Output::text(format!("the configuration of the {name} is valid"))
        }),
        Ok(()) => Ok(Output::text(format!(
            "SPIRE {name} configuration file is valid."
        ))),
        Err(faults) if context.frontend == Frontend::Spire => {
            let why = missing_on_shim(context, args).unwrap_or_else(|| faults.to_string());
            output::say(&format!(
                "SPIRE {name} configuration file is invalid: {why}"
            ));
            Err(CliError::Silent)
        }
        Err(faults) => Err(refuse(&faults)),
    }
}

pub(super) fn start_log(settings: &LogConfig) -> Result<Log, CliError> {
    let config = logging::LogConfig {
        level: parse_level(&settings.level).unwrap_or(tracing::level_filters::LevelFilter::INFO),
        format: if settings.json {
            LogFormat::Json
        } else {
            LogFormat::Text
        },
        file: settings.file.clone(),
        source_location: settings.source_location,
    };
    Log::install(&config).map_err(|error| {
        let mut fault =
            Fault::new(Code::FileUnwritable, "the log file cannot be opened").because(error);
        if let Some(file) = &settings.file {
            fault = fault.at(file.display().to_string());
        }
        fault.into()
    })
}

/// What a daemon makes reaches its group at most (SPIRE: umask is raised to 0027 at least), and its memory, which holds
/// keys, is not written to core files.
pub(super) fn harden() {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "core files could not be switched off");
    }
    tighten_umask();
}

fn tighten_umask() {
    use nix::sys::stat::{Mode, umask};
    let least = Mode::from_bits_truncate(0o027);
    let old = umask(least);
    umask(old | least);
}

/// The signals that a daemon obeys, caught from the moment this is made.
pub(super) struct Signals {
    log: Log,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    reconfigure: Signal,
    reopen: Signal,
}

impl Signals {
    pub(super) fn catch(log: Log) -> Result<Self, CliError> {
        let catch = |kind| {
            signal(kind)
                .map_err(|error| CliError::failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            log,
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
            reconfigure: catch(SignalKind::user_defined1())?,
            reopen: catch(SignalKind::user_defined2())?,
        })
    }

    /// Ends at the first SIGINT, SIGTERM or SIGHUP (a closed terminal; SPIRE leaves SIGHUP to its default, which ends the
    /// process too). Until then SIGUSR2 reopens the log file, and SIGUSR1 has the plugins read their `plugin_data_file`
    /// again by `reload`. While that lasts, the other signals are obeyed, and a further SIGUSR1 waits.
    pub(super) async fn until_shutdown<F>(mut self, reload: impl Fn() -> F + Send)
    where
        F: Future<Output = ()> + Send,
    {
        let mut reloading: Option<Pin<Box<F>>> = None;
        loop {
            let is_reloading = reloading.is_some();
            let ending = tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.hangup.recv() => "SIGHUP",
                _ = self.reconfigure.recv(), if !is_reloading => {
                    tracing::info!("SIGUSR1 received: plugins with a plugin_data_file read it again");
                    reloading = Some(Box::pin(reload()));
                    continue;
                }
                () = finished(&mut reloading) => {
                    reloading = None;
                    continue;
                }
                _ = self.reopen.recv() => {
                    reopen_log(&self.log);
                    continue;
                }
            };
            tracing::info!(signal = ending, "Stopping");
            return;
        }
    }
}

async fn finished<F: Future<Output = ()>>(work: &mut Option<Pin<Box<F>>>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// The one who rotates logs looks at the new file, where nothing can be written: standard error has the warning too.
fn reopen_log(log: &Log) {
    match log.reopen() {
        Ok(()) => tracing::info!("log file reopened"),
        Err(error) => {
            tracing::warn!(%error, "the log file could not be reopened; logging continues in the open file");
            output::say(&format!(
                "warning: the log file could not be reopened: {error}; logging continues in the open file"
            ));
        }
    }
}

/// How a daemon's end is reported, each fault once: the shims log it in one line, as SPIRE does; natively it is printed,
/// and logged too when the log is a file that standard error does not reach.
pub(super) fn ended(
    context: &Context,
    log: &Log,
    outcome: Result<(), Fault>,
) -> Result<Output, CliError> {
    let name = match context.program {
        Program::Server => "Server",
        Program::Agent | Program::Plastron => "Agent",
    };
    let fault = match outcome {
        Ok(()) => {
            tracing::info!("{name} stopped gracefully");
            return Ok(Output::default());
        }
        Err(fault) => fault,
    };
    let logged = |message: &str| {
        tracing::error!(
            code = fault.code.as_str(),
            error = %fault.what,
            at = fault.at.as_deref(),
            because = fault.because.as_deref(),
            hint = fault.hint.as_deref(),
            "{message}"
        );
    };
    match context.frontend {
        Frontend::Spire => {
            logged(&format!("{name} crashed"));
            Err(CliError::Silent)
        }
        Frontend::Native => {
            if log.is_file() {
                logged(&format!("{name} stopped with an error"));
            }
            Err(fault.into())
        }
    }
}
