//! `agent run` and `agent validate`.

use std::path::Path;
use std::sync::Arc;

use ::daemon::runtime_dir::SocketName;
use agent::{Agent, Config, Overrides};

use crate::cli::args::Args;
use crate::cli::context::{Context, Face};
use crate::cli::daemon::{
    self, DATA_DIR, EXPAND_ENV, LOG_FILE, LOG_FORMAT, LOG_LEVEL, LOG_SOURCE, LogSettings,
    TRUST_DOMAIN,
};
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

/// The port of a server that was started without a file.
const SERVER_PORT: u16 = 8081;

const FLAGS: &[Flag] = &[
    daemon::CONFIG.or_on_shim("conf/agent/agent.conf"),
    EXPAND_ENV,
    flag(
        "joinToken",
        "join-token",
        Kind::Text,
        "Join token with which the node attests",
    ),
    flag(
        "joinTokenFile",
        "join-token-file",
        Kind::Text,
        "File with the join token",
    ),
    flag(
        "serverAddress",
        "server-address",
        Kind::Text,
        "The server's address",
    ),
    flag("serverPort", "server-port", Kind::Text, "The server's port"),
    TRUST_DOMAIN,
    flag(
        "trustBundle",
        "trust-bundle",
        Kind::Text,
        "Trust bundle file used to verify the server",
    ),
    flag(
        "trustBundleUrl",
        "trust-bundle-url",
        Kind::Text,
        "Where to fetch that bundle",
    ),
    flag(
        "trustBundleFormat",
        "trust-bundle-format",
        Kind::Text,
        "pem or spiffe",
    ),
    flag(
        "insecureBootstrap",
        "insecure-bootstrap",
        Kind::Switch,
        "Trust whichever server answers first; for testing only",
    ),
    flag(
        "allowUnauthenticatedVerifiers",
        "allow-unauthenticated-verifiers",
        Kind::Switch,
        "Give the bundle to callers without an identity too",
    ),
    flag(
        "rebootstrapMode",
        "rebootstrap-mode",
        Kind::Text,
        "What to do when the server shows another trust bundle: never, auto or always",
    ),
    flag(
        "rebootstrapDelay",
        "rebootstrap-delay",
        Kind::Text,
        "How long the mismatch must last before the agent bootstraps again",
    ),
    flag(
        "disableWorkloadAPI",
        "disable-workload-api",
        Kind::Switch,
        "Do not serve the SPIFFE Workload API",
    ),
    flag(
        "disableSDSAPI",
        "disable-sds-api",
        Kind::Switch,
        "Do not serve Envoy's SDS API",
    ),
    DATA_DIR,
    flag(
        "socketPath",
        "socket-path",
        Kind::Text,
        "The Workload API socket",
    ),
    LOG_FILE,
    LOG_FORMAT,
    LOG_LEVEL,
    LOG_SOURCE,
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Agent,
        path: &["run"],
        about: "Run the agent",
        flags: FLAGS,
        endpoint: Endpoint::None,
        formats: false,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

pub(crate) fn validate_command() -> Command {
    Command {
        path: &["validate"],
        about: "Check the agent's configuration file",
        run: |context, args| Box::pin(std::future::ready(validate(&context, &args))),
        ..command()
    }
}

fn overrides(context: &Context, args: &Args) -> Result<Overrides, CliError> {
    let native = context.face == Face::Native;
    let usual = daemon::is_without_file(context, args).then_some(SERVER_PORT);
    let server_port = daemon::port(args, "serverPort")?.or(usual);
    Ok(Overrides {
        data_dir: daemon::path(args, "dataDir"),
        join_token: daemon::text(args, "joinToken"),
        join_token_file: daemon::path(args, "joinTokenFile"),
        log_file: daemon::path(args, "logFile"),
        log_format: daemon::text(args, "logFormat"),
        log_level: daemon::text(args, "logLevel"),
        log_source_location: daemon::switch(args, "logSourceLocation"),
        server_address: daemon::text(args, "serverAddress"),
        server_port,
        socket_path: daemon::path(args, "socketPath"),
        default_socket_path: native.then(|| SocketName::Workload.to_bind()),
        default_admin_socket_path: native.then(|| SocketName::AgentAdmin.to_bind()),
        trust_bundle_path: daemon::path(args, "trustBundle"),
        trust_bundle_url: daemon::text(args, "trustBundleUrl"),
        trust_bundle_format: daemon::text(args, "trustBundleFormat"),
        trust_domain: daemon::text(args, "trustDomain"),
        insecure_bootstrap: daemon::switch(args, "insecureBootstrap"),
        allow_unauthenticated_verifiers: daemon::switch(args, "allowUnauthenticatedVerifiers"),
        rebootstrap_mode: daemon::text(args, "rebootstrapMode"),
        rebootstrap_delay: daemon::text(args, "rebootstrapDelay"),
        disable_workload_api: daemon::switch(args, "disableWorkloadAPI"),
        disable_sds_api: daemon::switch(args, "disableSDSAPI"),
    })
}

fn validate(context: &Context, args: &Args) -> Result<Output, CliError> {
    let overrides = overrides(context, args)?;
    let outcome = daemon::configuration(context, args, from_flags, |document| {
        Config::from_document(document, &overrides).map(drop)
    });
    daemon::verdict(context, args, outcome)
}

/// The configuration of an agent that has no file: its keys lie in the data directory.
fn from_flags(args: &Args) -> Option<String> {
    args.optional("trustDomain")?;
    args.optional("serverAddress")?;
    let data = Path::new(args.optional("dataDir")?);
    Some(format!(
        r#"agent {{}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = {data:?} }} }}
  WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}"#
    ))
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    daemon::harden();
    daemon::need_file(&context, &args)?;
    let overrides = overrides(&context, &args)?;
    let config = daemon::configuration(&context, &args, from_flags, |document| {
        Config::from_document(document, &overrides)
    })
    .map_err(|faults| daemon::refuse(&faults))?;
    let log = daemon::start_log(&LogSettings {
        level: &config.log.level,
        json: config.log.json,
        file: config.log.file.as_deref(),
        source_location: config.log.source_location,
    })?;
    let environment = agent::Environment {
        log: Some(Arc::new(log.clone())),
    };
    let shutdown = daemon::until_signalled(log.clone())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = daemon::origin(&context, &args),
        trust_domain = config.trust_domain.as_str(),
        "Starting agent"
    );
    let outcome = match Agent::bind_in(config, environment).await {
        Ok(bound) => Box::pin(bound.run(shutdown)).await,
        Err(fault) => Err(fault),
    };
    daemon::ended(&context, &log, outcome)
}
