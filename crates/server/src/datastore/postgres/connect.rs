//! Makes connections that are set up alike: time limits, name, TLS as configured.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, Connection, Socket};

use super::PostgresConfig;
use super::options::Options;
use super::session::Session;
use super::tls::{Tls, TlsStream};
use crate::datastore::error::DatastoreError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that hangs in a transaction must not keep the others from writing.
const SETUP: &str = "SET statement_timeout = '14s'; SET lock_timeout = '4s'; \
                     SET idle_in_transaction_session_timeout = '15s'; SET client_min_messages = 'warning'";

#[derive(Debug)]
pub(super) struct Connector {
    config: Config,
    tls: Tls,
}

impl Connector {
    pub(super) fn new(config: &PostgresConfig) -> Result<Self, DatastoreError> {
        let options = Options::parse(config)?;
        let tls = Tls::new(&options)?;
        let mut config = options.config;
        if config.get_application_name().is_none() {
            config.application_name("plastron");
        }
        config.connect_timeout(CONNECT_TIMEOUT);
        config.keepalives_idle(Duration::from_secs(30));
        config.tcp_user_timeout(Duration::from_secs(30));
        Ok(Self { config, tls })
    }

    /// Where the database is, for messages; without user or password.
    pub(super) fn at(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        format!("{host}/{}", self.config.get_dbname().unwrap_or_default())
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

    /// A connection for the caller to drive.
    pub(super) async fn raw(
        &self,
    ) -> Result<(Client, Connection<Socket, TlsStream<Socket>>), DatastoreError> {
        let unreachable = |because: String| DatastoreError::Unavailable {
            because: format!("{}: {because}", self.at()),
        };
        match timeout(CONNECT_TIMEOUT, self.config.connect(self.tls.clone())).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => {
                let source = std::error::Error::source(&error)
                    .map(|source| format!(": {source}"))
                    .unwrap_or_default();
                Err(unreachable(format!("{error}{source}")))
            }
            Err(_elapsed) => Err(unreachable(format!(
                "no connection within {} s",
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }
}
