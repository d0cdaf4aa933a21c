//! `dev`: server and agent in one process, in a private directory that goes with it. For trying things: authorities are kept in memory, and nothing listens beyond this machine.

use std::path::Path;
use std::sync::Arc;

use ::daemon::log_config::LogConfig;
use agent::Agent;
use config::fault::Fault;
use proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use server::Server;
use server::config::KeyStorage;
use server::datastore::{DatastoreConfig, DatastoreKind};
use spiffe::TrustDomain;
use tokio::sync::watch;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::sockets::DevDirectory;
use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::context::Context;
use crate::cli::daemon::{self, LOG_LEVEL};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{self, Output};
use crate::cli::pem;

const TRUST_DOMAIN: Flag<String> = Flag::text("trustDomain", "trust-domain", "The trust domain")
    .value("TRUST-DOMAIN")
    .or("dev.local");
const DIR: Flag<String> = Flag::text(
    "dir",
    "dir",
    "Directory for sockets and state; removed at the end",
)
.value("DIRECTORY");

const FLAGS: &[FlagSpec] = &[TRUST_DOMAIN.spec, DIR.spec, LOG_LEVEL.spec];

pub(crate) const COMMAND: Command = Command::local(
    &["dev"],
    "Run a server and an agent for trying things, with no configuration",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples(
    "\
Authorities live in memory and nothing listens beyond this machine; Ctrl-C removes everything.",
);

/// Clears the directory when the command ends, however it ends.
struct Claimed(DevDirectory);

impl Drop for Claimed {
    fn drop(&mut self) {
        self.0.clear();
    }
}

async fn run(_context: Context, args: Args) -> Result<Output, CliError> {
    let domain = TrustDomain::parse(args.get(TRUST_DOMAIN))
        .map_err(|error| CliError::usage(error.to_string()))?;
    let level = args.optional(LOG_LEVEL).unwrap_or("warn");
    let log = daemon::start_log(&LogConfig {
        level: level.to_owned(),
        json: false,
        file: None,
        source_location: false,
    })?;
    let signals = daemon::Signals::catch(log.clone())?;
    let place = DevDirectory::new(args.optional(DIR));
    place.claim()?;
    let claimed = Claimed(place);
    let (stop, stopped) = watch::channel(());
    let environment = server::Environment {
        log: Some(Arc::new(log)),
        ..server::Environment::default()
    };
    let server = Box::pin(Server::bind_in(
        server_config(&claimed.0, &domain)?,
        environment,
    ))
    .await?;
    let port = server.tcp_addr.port();
    let server = tokio::spawn(Box::pin(server.run(when_dropped(stopped))));
    let (leave, left) = watch::channel(());
    let node = Box::pin(join(&claimed.0, &domain, port)).await?;
    let agent = tokio::spawn(Box::pin(node.run(when_dropped(left))));
    let outcome = tokio::select! {
        // Its plugins have no files of their own.
        () = signals.until_shutdown(|| std::future::ready(())) => Ok(()),
        outcome = served(&claimed.0, &domain) => outcome,
    };
    // The agent first: it tells the server goodbye.
    drop(leave);
    let agent = ended(agent.await);
    drop(stop);
    let server = ended(server.await);
    outcome.and(agent).and(server)?;
    Ok(Output::default())
}

async fn when_dropped(mut stop: watch::Receiver<()>) {
    while stop.changed().await.is_ok() {}
}

fn ended(outcome: Result<Result<(), Fault>, tokio::task::JoinError>) -> Result<(), CliError> {
    match outcome {
        Ok(outcome) => outcome.map_err(CliError::from),
        Err(error) => Err(CliError::failed(format!(
            "a task of the instance failed: {error}"
        ))),
    }
}

fn server_config(place: &DevDirectory, domain: &TrustDomain) -> Result<server::Config, CliError> {
    let data = place.directory.join("server");
    let path = data.join("datastore.sqlite3");
    let overrides = server::config::Overrides {
        trust_domain: Some(domain.to_string()),
        bind_address: Some("127.0.0.1".to_owned()),
        server_port: Some(0),
        socket_path: Some(place.server_socket()),
        data_dir: Some(data),
        ..Default::default()
    };
    let datastore = DatastoreConfig::new(DatastoreKind::Sqlite { path });
    server::Config::without_file(&overrides, KeyStorage::Memory, datastore)
        .map_err(|faults| daemon::refuse(&faults))
}

/// Makes a token, keeps the bundle, and binds the agent: what an operator does by hand on a real node.
async fn join(
    place: &DevDirectory,
    domain: &TrustDomain,
    port: u16,
) -> Result<agent::Bound, CliError> {
    let channel = proto::channel::connect_uds(place.server_socket())
        .await
        .map_err(|error| CliError::failed(error.to_string()))?;
    let token = AgentClient::new(channel.clone())
        .create_join_token(CreateJoinTokenRequest {
            ttl: 60,
            token: String::new(),
            agent_id: None,
        })
        .await
        .map_err(|status| CliError::status("cannot make a join token", status))?
        .into_inner();
    let bundle = BundleClient::new(channel)
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(|status| CliError::status("cannot read the bundle", status))?
        .into_inner();
    let path = place.directory.join("bundle.pem");
    pem::write_file(
        &path,
        &pem::certificates(
            bundle
                .x509_authorities
                .iter()
                .map(|authority| authority.asn1.as_slice()),
        ),
        false,
    )?;
    let config = agent_config(place, domain, port, &path, token.value)?;
    Ok(Agent::bind(config).await?)
}

fn agent_config(
    place: &DevDirectory,
    domain: &TrustDomain,
    port: u16,
    bundle: &Path,
    token: String,
) -> Result<agent::Config, CliError> {
    let overrides = agent::Overrides {
        trust_domain: Some(domain.to_string()),
        server_address: Some("127.0.0.1".to_owned()),
        server_port: Some(port),
        socket_path: Some(place.workload_socket()),
        data_dir: Some(place.directory.join("agent")),
        trust_bundle_path: Some(bundle.to_owned()),
        join_token: Some(token),
        ..Default::default()
    };
    agent::Config::without_file(&overrides, KeyStorage::Memory)
        .map_err(|faults| daemon::refuse(&faults))
}

/// Waits until the agent serves, says so, and then only watches: ends when the agent stops serving.
async fn served(place: &DevDirectory, domain: &TrustDomain) -> Result<(), CliError> {
    let channel = proto::channel::connect_uds(place.workload_socket())
        .await
        .map_err(|error| CliError::failed(error.to_string()))?;
    let mut health = HealthClient::new(channel)
        .watch(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .map_err(|status| CliError::status("cannot ask the agent for its health", status))?
        .into_inner();
    let mut greeted = false;
    while let Ok(Some(reply)) = health.message().await {
        if reply.status() == ServingStatus::Serving && !greeted {
            greeted = true;
            greet(place, domain)?;
        }
    }
    // Why the agent ended is its own to say: its task's outcome is the command's.
    Ok(())
}

fn greet(place: &DevDirectory, domain: &TrustDomain) -> Result<(), CliError> {
    let default = place.directory == DevDirectory::new(None).directory;
    let dir = if default {
        String::new()
    } else {
        format!(" --dir {}", place.directory.display())
    };
    let program = own_name();
    output::write_out(&format!(
        "  trust domain      {domain}        authorities are kept in memory; Ctrl-C removes everything\n\
         \x20 server socket     {server}\n\
         \x20 workload socket   {workload}\n\n\
         try, in another terminal:\n\
         \x20 {program} run{dir} --id web -- {program} agent api fetch x509\n\
         \x20 {program} server entry show --socket-path {server}\n",
        server = place.server_socket().display(),
        workload = place.workload_socket().display(),
    ))
}

/// How this program was called, so that what is printed can be typed: a path, or the bare name when it is on PATH.
fn own_name() -> String {
    std::env::args()
        .next()
        .filter(|name| name.contains('/'))
        .unwrap_or_else(|| "plastron".to_owned())
}
