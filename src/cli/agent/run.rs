//! `agent run` and `agent validate`.

use std::sync::Arc;

use ::daemon::runtime_dir::SocketName;
use ::daemon::state_dir::default_data_dir;
use agent::config::KeyStorage;
use agent::{Agent, Config, Overrides};
use config::fault::Faults;

use crate::cli::args::Args;
use crate::cli::command::{Command, Kind, Prints, Program};
use crate::cli::context::{Context, Frontend};
use crate::cli::daemon::{
    self, DATA_DIR, EXPAND_ENV, LOG_FILE, LOG_FORMAT, LOG_LEVEL, LOG_SOURCE, TRUST_DOMAIN,
};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::Output;

/// The port of a server that was started without a file.
const USUAL_PORT: u16 = 8081;

const JOIN_TOKEN: Flag<String> = Flag::text(
    "joinToken",
    "join-token",
    "Join token with which the node attests",
)
.value("TOKEN");
const JOIN_TOKEN_FILE: Flag<String> = Flag::text(
    "joinTokenFile",
    "join-token-file",
    "File with the join token",
)
.value("FILE");
const SERVER_ADDRESS: Flag<String> =
    Flag::text("serverAddress", "server-address", "The server's address").value("ADDRESS");
const SERVER_PORT: Flag<String> =
    Flag::text("serverPort", "server-port", "The server's port").value("PORT");
const TRUST_BUNDLE: Flag<String> = Flag::text(
    "trustBundle",
    "trust-bundle",
    "Trust bundle file used to verify the server",
)
.value("FILE");
const TRUST_BUNDLE_URL: Flag<String> = Flag::text(
    "trustBundleUrl",
    "trust-bundle-url",
    "Where to fetch that bundle",
)
.value("URL");
const TRUST_BUNDLE_FORMAT: Flag<String> =
    Flag::text("trustBundleFormat", "trust-bundle-format", "pem or spiffe").value("FORMAT");
const INSECURE_BOOTSTRAP: Flag<bool> = Flag::switch(
    "insecureBootstrap",
    "insecure-bootstrap",
    "Trust whichever server answers first; for testing only",
);
const ALLOW_UNAUTHENTICATED_VERIFIERS: Flag<bool> = Flag::switch(
    "allowUnauthenticatedVerifiers",
    "allow-unauthenticated-verifiers",
    "Give the bundle to callers without an identity too",
);
const REBOOTSTRAP_MODE: Flag<String> = Flag::text(
    "rebootstrapMode",
    "rebootstrap-mode",
    "What to do when the server shows another trust bundle: never, auto or always",
)
.value("MODE");
const REBOOTSTRAP_DELAY: Flag<String> = Flag::text(
    "rebootstrapDelay",
    "rebootstrap-delay",
    "How long the mismatch must last before the agent bootstraps again",
)
.value("DURATION");
const DISABLE_WORKLOAD_API: Flag<bool> = Flag::switch(
    "disableWorkloadAPI",
    "disable-workload-api",
    "Do not serve the SPIFFE Workload API",
);
const DISABLE_SDSAPI: Flag<bool> = Flag::switch(
    "disableSDSAPI",
    "disable-sds-api",
    "Do not serve Envoy's SDS API",
);
const SOCKET_PATH: Flag<String> =
    Flag::text("socketPath", "socket-path", "The Workload API socket").value("SOCKET");

const FLAGS: &[FlagSpec] = &[
    daemon::CONFIG.or_on_spire("conf/agent/agent.conf").spec,
    EXPAND_ENV.spec,
    JOIN_TOKEN.spec,
    JOIN_TOKEN_FILE.spec,
    SERVER_ADDRESS.spec,
    SERVER_PORT.spec,
    TRUST_DOMAIN.spec,
    TRUST_BUNDLE.spec,
    TRUST_BUNDLE_URL.spec,
    TRUST_BUNDLE_FORMAT.spec,
    INSECURE_BOOTSTRAP.spec,
    ALLOW_UNAUTHENTICATED_VERIFIERS.spec,
    REBOOTSTRAP_MODE.spec,
    REBOOTSTRAP_DELAY.spec,
    DISABLE_WORKLOAD_API.spec,
    DISABLE_SDSAPI.spec,
    DATA_DIR.spec,
    SOCKET_PATH.spec,
    LOG_FILE.spec,
    LOG_FORMAT.spec,
    LOG_LEVEL.spec,
    LOG_SOURCE.spec,
];

pub(crate) const COMMAND: Command = Command::new(
    Program::Agent,
    Kind::Daemon,
    &["run"],
    "Run the agent",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples("\
Without a configuration file, --trust-domain and --server-address are enough, together with a trust bundle to verify the server (--trust-bundle) and, for the first start, a join token. Keys are stored in the data directory (by default /var/lib/plastron/agent, or $XDG_STATE_HOME/plastron/agent if the agent does not run as root), workloads are identified by user, group and program (unix), the server's port is 8081.

  plastron server bundle show > bundle.pem
  plastron agent run --trust-domain example.org \\
    --server-address 10.0.0.5 --trust-bundle bundle.pem --join-token TOKEN");

pub(crate) const VALIDATE_COMMAND: Command = Command::new(
    Program::Agent,
    Kind::Local,
    &["validate"],
    "Check the agent's configuration file",
    |context, args| Box::pin(std::future::ready(validate(&context, &args))),
)
.flags(FLAGS)
.prints(Prints::DataNatively)
.examples("\
All problems are reported at once, with their place in the file. The exit code is 0 when there is none.");

fn overrides(context: &Context, args: &Args) -> Result<Overrides, CliError> {
    let native = context.frontend == Frontend::Native;
    let usual = daemon::is_without_file(context, args).then_some(USUAL_PORT);
    let server_port = daemon::port(args, SERVER_PORT)?.or(usual);
    Ok(Overrides {
        data_dir: daemon::path(args, DATA_DIR),
        join_token: daemon::text(args, JOIN_TOKEN),
        join_token_file: daemon::path(args, JOIN_TOKEN_FILE),
        log: daemon::log_flags(args),
        server_address: daemon::text(args, SERVER_ADDRESS),
        server_port,
        socket_path: daemon::path(args, SOCKET_PATH),
        default_socket_path: native.then(|| SocketName::Workload.to_bind()),
        default_data_dir: native.then(|| default_data_dir("agent")),
        default_admin_socket_path: native.then(|| SocketName::AgentAdmin.to_bind()),
        trust_bundle_path: daemon::path(args, TRUST_BUNDLE),
        trust_bundle_url: daemon::text(args, TRUST_BUNDLE_URL),
        trust_bundle_format: daemon::text(args, TRUST_BUNDLE_FORMAT),
        trust_domain: daemon::text(args, TRUST_DOMAIN),
        insecure_bootstrap: daemon::switch(args, INSECURE_BOOTSTRAP),
        allow_unauthenticated_verifiers: daemon::switch(args, ALLOW_UNAUTHENTICATED_VERIFIERS),
        rebootstrap_mode: daemon::text(args, REBOOTSTRAP_MODE),
        rebootstrap_delay: daemon::text(args, REBOOTSTRAP_DELAY),
        disable_workload_api: daemon::switch(args, DISABLE_WORKLOAD_API),
        disable_sds_api: daemon::switch(args, DISABLE_SDSAPI),
    })
}

fn validate(context: &Context, args: &Args) -> Result<Output, CliError> {
    let overrides = overrides(context, args)?;
    let outcome = configuration(context, args, &overrides).map(drop);
    daemon::verdict(context, args, outcome)
}

fn configuration(context: &Context, args: &Args, overrides: &Overrides) -> Result<Config, Faults> {
    daemon::configuration(
        context,
        args,
        || from_flags(overrides),
        |document| Config::from_document(document, overrides),
    )
}

/// The configuration of an agent that has no file: its keys lie in the data directory.
fn from_flags(overrides: &Overrides) -> Option<Result<Config, Faults>> {
    overrides.trust_domain.as_ref()?;
    overrides.server_address.as_ref()?;
    let data = overrides.data_dir.as_ref();
    let keys = data
        .or(overrides.default_data_dir.as_ref())?
        .join("keys.json");
    Some(Config::without_file(overrides, KeyStorage::File(keys)))
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    daemon::harden();
    daemon::need_file(&context, &args)?;
    let overrides = overrides(&context, &args)?;
    let config =
        configuration(&context, &args, &overrides).map_err(|faults| daemon::refuse(&faults))?;
    let log = daemon::start_log(&config.log)?;
    let environment = agent::Environment {
        log: Some(Arc::new(log.clone())),
        ..agent::Environment::default()
    };
    let signals = daemon::Signals::catch(log.clone())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = daemon::origin(&context, &args),
        trust_domain = config.node.trust_domain.as_str(),
        "Starting agent"
    );
    let outcome = match Agent::bind_in(config, environment).await {
        Ok(bound) => {
            let plugins = bound.plugins();
            let shutdown = signals.until_shutdown(move || {
                let plugins = plugins.clone();
                async move { plugins.reload_logged().await }
            });
            Box::pin(bound.run(shutdown)).await
        }
        Err(fault) => Err(fault),
    };
    daemon::ended(&context, &log, outcome)
}
