//! Makes connections that are set up alike: host after host, time limits, name, TLS as configured. Passwords and
//! certificates are read from their files each time, so that renewed ones count from the next connection on.

use std::sync::Arc;

use spiffe::random::{Random, SystemRandom};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, Connection, Socket};

use super::PostgresConfig;
use super::options::Options;
use super::passfile::{Lookup, Wanted, look_up};
use super::session::Session;
use super::tls::{Tls, TlsStream};
use crate::datastore::error::{DatastoreError, SettingsError};

/// A server that hangs in a transaction must not keep the others from writing. Shorter limits, which the connection
/// string or the role may have set, stay.
const SETUP: &str = "SELECT set_config(name, most, false) FROM pg_settings JOIN (VALUES ('statement_timeout', '14000'), \
                     ('lock_timeout', '4000'), ('idle_in_transaction_session_timeout', '15000')) AS limits (name, most) \
                     USING (name) WHERE setting::bigint = 0 OR setting::bigint > most::bigint; \
                     SET client_min_messages = 'warning'";

#[derive(Debug)]
pub(super) struct Connector {
    options: Arc<Options>,
}

/// What one attempt needs, with everything that lies in files.
struct Attempt {
    targets: Vec<(String, Config)>,
    tls: Tls,
    /// Why a password file was not read.
    ignored: Option<String>,
}

impl Connector {
    pub(super) async fn new(config: &PostgresConfig) -> Result<Self, DatastoreError> {
        let connector = Self {
            options: Arc::new(Options::parse(config)?),
        };
        // What is wrong with a file is better known now than when the connection breaks.
        let attempt = connector.prepare().await?;
        if let Some(because) = attempt.ignored {
            tracing::warn!("{because}");
        }
        Ok(connector)
    }

    async fn prepare(&self) -> Result<Attempt, DatastoreError> {
        let options = Arc::clone(&self.options);
        let prepared = tokio::task::spawn_blocking(move || attempt(&options)).await;
        let prepared = prepared.map_err(|_ended| DatastoreError::Closed)?;
        Ok(prepared?)
    }

    /// Where the database is, for messages; without user or password.
    pub(super) fn at(&self) -> String {
        let hosts: Vec<_> = self
            .options
            .targets
            .iter()
            .map(|target| target.name())
            .collect();
        let database = self.options.config.get_dbname().unwrap_or_default();
        format!("{}/{database}", hosts.join(","))
    }

    /// A connection whose traffic runs in a task of its own.
    pub(super) async fn connect(&self) -> Result<Session, DatastoreError> {
        let (client, connection) = self.raw().await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the database broke");
            }
        });
        let session = Session::new(client);
        session.run(SETUP).await?;
        Ok(session)
    }

    /// A connection for the caller to drive: to the first host that accepts one.
    pub(super) async fn raw(
        &self,
    ) -> Result<(Client, Connection<Socket, TlsStream<Socket>>), DatastoreError> {
        let attempt = self.prepare().await?;
        let mut failures = Vec::new();
        for (host, config) in &attempt.targets {
            let limit = self.options.connect_timeout;
            let failure = match timeout(limit, config.connect(attempt.tls.clone())).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => {
                    let source = std::error::Error::source(&error)
                        .map(|source| format!(": {source}"))
                        .unwrap_or_default();
                    format!("{error}{source}")
                }
                Err(_elapsed) => format!("no connection within {} s", limit.as_secs()),
            };
            failures.push(if attempt.targets.len() > 1 {
                format!("{host}: {failure}")
            } else {
                failure
            });
        }
        failures.extend(attempt.ignored);
        Err(DatastoreError::Unavailable {
            because: format!("{}: {}", self.at(), failures.join("; ")),
        })
    }
}

/// Reads the files, and makes the configuration of each host. Blocks.
fn attempt(options: &Options) -> Result<Attempt, SettingsError> {
    let tls = Tls::new(&options.tls)?;
    let mut ignored = None;
    let mut targets = Vec::with_capacity(options.targets.len());
    for target in &options.targets {
        let mut config = options.config.clone();
        target.add_to(&mut config);
        if let Some(password) = &options.password {
            config.password(password.expose());
        } else if let (Some(path), Some(user)) = (&options.passfile, options.config.get_user()) {
            let wanted = Wanted {
                host: &target.host,
                port: target.port,
                database: options.config.get_dbname().unwrap_or(user),
                user,
            };
            match look_up(path, &wanted) {
                Lookup::Password(password) => {
                    config.password(password.expose());
                }
                Lookup::Nothing => {}
                Lookup::Ignored(because) => ignored = Some(because),
            }
        }
        targets.push((target.name().to_owned(), config));
    }
    if options.in_random_order {
        targets.sort_by_cached_key(|_| {
            let mut key = [0; 8];
            SystemRandom.fill(&mut key);
            key
        });
    }
    Ok(Attempt {
        targets,
        tls,
        ignored,
    })
}
