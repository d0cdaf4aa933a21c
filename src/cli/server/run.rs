//! `server run` and `server validate`.

use std::path::Path;
use std::sync::Arc;

use ::daemon::runtime_dir::SocketName;
use server::ca::LostKeys;
use server::config::Overrides;
use server::{Config, Environment, Server};

use crate::cli::args::Args;
use crate::cli::context::{Context, Face};
use crate::cli::daemon::{
    self, DATA_DIR, EXPAND_ENV, LOG_FILE, LOG_FORMAT, LOG_LEVEL, LOG_SOURCE, LogSettings,
    TRUST_DOMAIN,
};
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[
    daemon::CONFIG.or_on_shim("conf/server/server.conf"),
    EXPAND_ENV,
    flag(
        "bindAddress",
        "bind-address",
        Kind::Text,
        "Address that agents connect to",
    ),
    flag(
        "serverPort",
        "server-port",
        Kind::Text,
        "Port that agents connect to",
    ),
    TRUST_DOMAIN,
    DATA_DIR,
    flag(
        "socketPath",
        "socket-path",
        Kind::Text,
        "The administration socket",
    ),
    LOG_FILE,
    LOG_FORMAT,
    LOG_LEVEL,
    LOG_SOURCE,
    flag(
        "newAuthorities",
        "new-authorities",
        Kind::Switch,
        "Replace active authorities whose keys are lost (see plastron help PLA-1332)",
    )
    .natively(),
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Server,
        path: &["run"],
        about: "Run the server",
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
        about: "Check the server's configuration file",
        run: |context, args| Box::pin(std::future::ready(validate(&context, &args))),
        ..command()
    }
}

fn overrides(context: &Context, args: &Args) -> Result<Overrides, CliError> {
    Ok(Overrides {
        bind_address: daemon::text(args, "bindAddress"),
        server_port: daemon::port(args, "serverPort")?,
        data_dir: daemon::path(args, "dataDir"),
        log_file: daemon::path(args, "logFile"),
        log_format: daemon::text(args, "logFormat"),
        log_level: daemon::text(args, "logLevel"),
        log_source_location: daemon::switch(args, "logSourceLocation"),
        trust_domain: daemon::text(args, "trustDomain"),
        socket_path: daemon::path(args, "socketPath"),
        lost_keys: if args.switch("newAuthorities") {
            LostKeys::Replace
        } else {
            LostKeys::Refuse
        },
        default_socket_path: (context.face == Face::Native)
            .then(|| SocketName::ServerAdmin.to_bind()),
    })
}

fn validate(context: &Context, args: &Args) -> Result<Output, CliError> {
    let overrides = overrides(context, args)?;
    let outcome = daemon::configuration(context, args, from_flags, |document| {
        Config::from_document(document, &overrides).map(drop)
    });
    daemon::verdict(context, args, outcome)
}

/// The configuration of a server that has no file: everything it keeps lies in the data directory.
fn from_flags(args: &Args) -> Option<String> {
    args.optional("trustDomain")?;
    let data = Path::new(args.optional("dataDir")?);
    Some(format!(
        r#"server {{}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = {store:?} }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = {keys:?} }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}"#,
        store = data.join("datastore.sqlite3"),
        keys = data.join("keys.json"),
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
    let shutdown = daemon::until_signalled(log.clone())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = daemon::origin(&context, &args),
        trust_domain = config.trust_domain.as_str(),
        "Starting server"
    );
    let environment = Environment {
        log: Some(Arc::new(log.clone())),
        ..Environment::default()
    };
    let outcome = match Box::pin(Server::bind_in(config, environment)).await {
        Ok(bound) => Box::pin(bound.run(shutdown)).await,
        Err(fault) => Err(fault),
    };
    daemon::ended(&context, &log, outcome)
}
