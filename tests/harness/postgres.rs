//! Databases of a test's own on the PostgreSQL server that `PLASTRON_TEST_POSTGRES_URL` names.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// A database that is dropped with its value.
#[derive(Debug)]
pub struct PostgresDatabase {
    server: String,
    name: String,
}

impl PostgresDatabase {
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = std::env::var("PLASTRON_TEST_POSTGRES_URL").context(
            "PLASTRON_TEST_POSTGRES_URL is not set; tests/run starts PostgreSQL and sets it",
        )?;
        let name = format!(
            "plastron_it_{}_{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        execute(&server, &format!("CREATE DATABASE {name}"))?;
        Ok(Self { server, name })
    }

    /// Its URL, in the form that both programs take.
    pub fn url(&self) -> String {
        let (base, parameters) = match self.server.split_once('?') {
            Some((base, parameters)) => (base, format!("?{parameters}")),
            None => (self.server.as_str(), "?sslmode=disable".to_owned()),
        };
        let base = match base.match_indices('/').nth(2) {
            Some((at, _)) => base.get(..at).unwrap_or(base),
            None => base,
        };
        format!("{base}/{}{parameters}", self.name)
    }

    /// Runs statements in it.
    pub fn execute(&self, statements: &str) -> Result<()> {
        execute(&self.url(), statements)
    }

    /// The first column of each row, as text.
    pub fn column(&self, query: &str) -> Result<Vec<String>> {
        let query = query.to_owned();
        connected(&self.url(), async move |client| {
            let messages = client.simple_query(&query).await?;
            Ok(messages
                .into_iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                })
                .collect())
        })
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        drop(execute(
            &self.server,
            &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
        ));
    }
}

/// Runs statements on the database of this URL, without TLS.
pub(crate) fn execute(url: &str, statements: &str) -> Result<()> {
    let statements = statements.to_owned();
    connected(url, async move |client| {
        Ok(client.batch_execute(&statements).await?)
    })
}

fn connected<T: Send + 'static>(
    url: &str,
    work: impl AsyncFnOnce(tokio_postgres::Client) -> Result<T> + Send + 'static,
) -> Result<T> {
    let url = url.to_owned();
    // A thread of its own: the caller may be inside a runtime.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
                .await
                .context("connect to PostgreSQL")?;
            let driver = tokio::spawn(connection);
            let outcome = work(client).await;
            driver.abort();
            outcome
        })
    });
    thread
        .join()
        .map_err(|_panic| anyhow::anyhow!("the database thread panicked"))?
}
