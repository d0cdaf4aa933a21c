//! `server run` and `server validate`.

use std::sync::Arc;

use ::daemon::runtime_dir::SocketName;
use config::fault::Faults;
use server::ca::LostKeys;
use server::config::{KeyStorage, Overrides};
use server::datastore::{DatastoreConfig, DatastoreKind};
use server::{Config, Environment, Server};

use crate::cli::args::Args;
use crate::cli::command::{Command, Kind, Prints, Program};
use crate::cli::context::{Context, Frontend};
use crate::cli::daemon::{
    self, DATA_DIR, EXPAND_ENV, LOG_FILE, LOG_FORMAT, LOG_LEVEL, LOG_SOURCE, TRUST_DOMAIN,
};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::Output;

const BIND_ADDRESS: Flag<String> = Flag::text(
    "bindAddress",
    "bind-address",
    "Address that agents connect to",
)
.value("ADDRESS");
const SERVER_PORT: Flag<String> =
    Flag::text("serverPort", "server-port", "Port that agents connect to").value("PORT");
const SOCKET_PATH: Flag<String> =
    Flag::text("socketPath", "socket-path", "The administration socket").value("SOCKET");
const NEW_AUTHORITIES: Flag<bool> = Flag::switch(
    "newAuthorities",
    "new-authorities",
    "Replace active authorities whose keys are lost (see plastron help PLA-1332)",
)
.natively();

const FLAGS: &[FlagSpec] = &[
    daemon::CONFIG.or_on_spire("conf/server/server.conf").spec,
    EXPAND_ENV.spec,
    BIND_ADDRESS.spec,
    SERVER_PORT.spec,
    TRUST_DOMAIN.spec,
    DATA_DIR.spec,
    SOCKET_PATH.spec,
    LOG_FILE.spec,
    LOG_FORMAT.spec,
    LOG_LEVEL.spec,
    LOG_SOURCE.spec,
    NEW_AUTHORITIES.spec,
];

pub(crate) const COMMAND: Command = Command::new(
    Program::Server,
    Kind::Daemon,
    &["run"],
    "Run the server",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples("\
Without a configuration file, --trust-domain and --data-dir are enough: the database (SQLite) and the keys are stored in the data directory, nodes attest with join tokens, and agents connect to port 8081.

  plastron server run --trust-domain example.org --data-dir /var/lib/plastron/server");

pub(crate) const VALIDATE_COMMAND: Command = Command::new(
    Program::Server,
    Kind::Local,
    &["validate"],
    "Check the server's configuration file",
    |context, args| Box::pin(std::future::ready(validate(&context, &args))),
)
.flags(FLAGS)
.prints(Prints::DataNatively)
.examples("\
All problems are reported at once, with their place in the file. The exit code is 0 when there is none.");

fn overrides(context: &Context, args: &Args) -> Result<Overrides, CliError> {
    Ok(Overrides {
        bind_address: daemon::text(args, BIND_ADDRESS),
        server_port: daemon::port(args, SERVER_PORT)?,
        data_dir: daemon::path(args, DATA_DIR),
        log: daemon::log_flags(args),
        trust_domain: daemon::text(args, TRUST_DOMAIN),
        socket_path: daemon::path(args, SOCKET_PATH),
        lost_keys: if args.get(NEW_AUTHORITIES) {
            LostKeys::Replace
        } else {
            LostKeys::Refuse
        },
        default_socket_path: (context.frontend == Frontend::Native)
            .then(|| SocketName::ServerAdmin.to_bind()),
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

/// The configuration of a server that has no file: everything it keeps lies in the data directory.
fn from_flags(overrides: &Overrides) -> Option<Result<Config, Faults>> {
    overrides.trust_domain.as_ref()?;
    let data = overrides.data_dir.as_deref()?;
    let path = data.join("datastore.sqlite3");
    let datastore = DatastoreConfig::new(DatastoreKind::Sqlite { path });
    let keys = KeyStorage::File(data.join("keys.json"));
    Some(Config::without_file(overrides, keys, datastore))
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    daemon::harden();
    daemon::need_file(&context, &args)?;
    let overrides = overrides(&context, &args)?;
    let config =
        configuration(&context, &args, &overrides).map_err(|faults| daemon::refuse(&faults))?;
    let log = daemon::start_log(&config.log)?;
    let signals = daemon::Signals::catch(log.clone())?;
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
