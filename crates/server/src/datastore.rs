//! The durable truth. Every write goes through one task that gathers what is queued into one transaction, gives it
//! the next revision, and answers once it is on disk; the registry in memory is fed from here and answers all reads.
//! Several servers on one PostgreSQL database see each other's writes. Knows nothing of services or issuance.

mod agents;
mod backend;
mod bundles;
mod codec;
mod commit;
#[cfg(test)]
mod contract;
mod database;
mod draft;
mod entries;
mod error;
mod fault;
mod federation;
mod journals;
mod monitor;
mod postgres;
mod schema;
mod sqlite;
mod stored_bundle;
#[cfg(test)]
mod tests;
mod tokens;
mod upstream;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::telemetry::Telemetry;
use spiffe::clock::Clock;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::{mpsc, oneshot};

use crate::registry::Registry;
use backend::Backend;
use database::Database;
use draft::Draft;
use entries::CommonSelectors;
use monitor::Monitor;
use writer::{Operation, QUEUE, Work, Writer};

#[cfg(any(test, fuzzing))]
pub(crate) use postgres::check_connection_string;

pub use agents::AgentWriteError;
pub use bundles::{BundleError, BundleMask, DeleteMode};
pub use entries::{Created, EntryPatch, EntryWriteError};
pub(crate) use error::WriteFailure;
pub use error::{DatastoreError, SettingsError};
pub use federation::RelationshipError;
pub use postgres::{Environment, PostgresConfig};
pub use tokens::{JoinToken, TokenError};
pub use upstream::{RootsSynced, UpstreamRoots};

/// Agents are served from memory for so long while the database is away.
pub const DEFAULT_STALENESS: Duration = Duration::from_secs(300);
/// The smallest bound that is kept without refusals in health: the database is looked at every second, and a look may
/// take a moment.
pub const SMALLEST_STALENESS: Duration = Duration::from_secs(5);
/// Expired objects that are deleted in one transaction (SPIRE: 1000 agents).
const PRUNE_BATCH: usize = 1_000;
/// The longest wait for the last writes when the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which database to use.
#[derive(Debug, Clone)]
pub struct DatastoreConfig {
    pub kind: DatastoreKind,
    /// How long agents are served without a confirmation that the state in memory is the database's.
    pub max_staleness: Duration,
}

impl DatastoreConfig {
    pub fn new(kind: DatastoreKind) -> Self {
        Self {
            kind,
            max_staleness: DEFAULT_STALENESS,
        }
    }
}

#[derive(Debug, Clone)]
pub enum DatastoreKind {
    /// A file of this server alone. Its directory must exist.
    Sqlite {
        path: PathBuf,
    },
    Postgres(PostgresConfig),
}

/// What every kind of database is opened with.
struct Settings {
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    max_staleness: Duration,
    telemetry: Telemetry,
}

/// A handle on the writer. Cheap to clone; the writer ends after the last handle is dropped.
#[derive(Clone)]
pub struct Datastore {
    queue: mpsc::Sender<Box<dyn Work>>,
    closing: mpsc::Sender<oneshot::Sender<()>>,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    common: Arc<Mutex<CommonSelectors>>,
}

impl std::fmt::Debug for Datastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datastore")
            .field("revision", &self.registry.revision())
            .finish_non_exhaustive()
    }
}

impl Datastore {
    /// Opens the database, creating or migrating its schema, loads it into a registry and begins to follow it.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the database can't be opened or read, or is another trust domain's, another program's or a newer one's.
    pub async fn open(
        config: DatastoreConfig,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        telemetry: Telemetry,
    ) -> Result<(Self, Arc<Registry>), DatastoreError> {
        let settings = Settings {
            trust_domain,
            clock,
            max_staleness: config.max_staleness,
            telemetry,
        };
        match config.kind {
            DatastoreKind::Sqlite { path } => {
                Self::start(sqlite::Sqlite::open(path).await?, settings).await
            }
            DatastoreKind::Postgres(config) => {
                Self::start(postgres::Postgres::open(config).await?, settings).await
            }
        }
    }

    /// Opens a SQLite file that others have open, which a server never does.
    #[cfg(test)]
    pub(crate) async fn open_beside_others(
        config: DatastoreConfig,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Arc<Registry>), DatastoreError> {
        let DatastoreKind::Sqlite { path } = config.kind.clone() else {
            return Self::open(config, trust_domain, clock, Telemetry::default()).await;
        };
        let settings = Settings {
            trust_domain,
            clock,
            max_staleness: config.max_staleness,
            telemetry: Telemetry::default(),
        };
        Self::start(sqlite::Sqlite::open_unlocked(path).await?, settings).await
    }

    async fn start(
        backend: impl Backend,
        settings: Settings,
    ) -> Result<(Self, Arc<Registry>), DatastoreError> {
        let Settings {
            trust_domain,
            clock,
            max_staleness,
            telemetry,
        } = settings;
        let mut database = Database::open(backend, trust_domain.clone()).await?;
        // On the heap: it holds a whole state in the making.
        let state = Box::pin(database.load()).await?;
        let registry = Arc::new(Registry::new(
            state,
            trust_domain,
            Arc::clone(&clock),
            max_staleness,
            telemetry.clone(),
        ));
        let (queue, queued) = mpsc::channel(QUEUE);
        let (closing, asked) = mpsc::channel(1);
        let writer = Writer {
            database,
            queue: queued,
            closing: asked,
            monitor: Monitor::new(Arc::clone(&registry)),
            registry: Arc::clone(&registry),
            telemetry,
        };
        tokio::spawn(writer.run());
        Ok((
            Self {
                queue,
                closing,
                registry: Arc::clone(&registry),
                clock,
                common: Arc::default(),
            },
            registry,
        ))
    }

    /// The state in memory that this datastore feeds.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Returns when the writer has ended although nobody closed the datastore: it panicked, or lost the thread that
    /// holds the database. A server that can neither write nor follow must stop.
    pub async fn stopped(&self) {
        self.queue.closed().await;
    }

    /// Commits what is queued and leaves the files as a backup should find them; later writes fail with `Closed`.
    /// Gives up after a while: a database that does not answer must not keep a server from stopping.
    pub async fn close(&self) {
        let (asked, done) = oneshot::channel();
        let closing = async {
            if self.closing.send(asked).await.is_ok() {
                // An error means that the writer has ended, which is what is waited for.
                drop(done.await);
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!(
                seconds = CLOSE_TIMEOUT.as_secs(),
                "the datastore did not close in time; queued writes that were not acknowledged are lost"
            );
        }
    }

    /// Makes the writer panic in the middle of an operation.
    #[cfg(test)]
    pub(crate) async fn poison(&self) -> DatastoreError {
        let poisoned = self.submit(1, |_| -> () { panic!("a poisoned operation") });
        poisoned.await.unwrap_err()
    }

    /// Queues an operation and waits until it is durable.
    async fn submit<T: Send + 'static>(
        &self,
        weight: usize,
        evaluate: impl FnMut(&mut Draft<'_>) -> T + Send + 'static,
    ) -> Result<T, DatastoreError> {
        let (reply, answer) = oneshot::channel();
        let operation = Box::new(Operation {
            weight,
            evaluate,
            outcome: None,
            reply,
        });
        self.queue
            .send(operation)
            .await
            .map_err(|_closed| DatastoreError::Closed)?;
        answer.await.map_err(|_gone| DatastoreError::Closed)?
    }
}
