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
mod write_queue;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::telemetry::Telemetry;
use spiffe::clock::Clock;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::{mpsc, oneshot};

use crate::registry::{Registry, RegistryWriter};
use backend::Backend;
use database::Database;
use monitor::Monitor;
use write_queue::WriteQueue;
use writer::{QUEUE, Writer};

#[cfg(any(test, fuzzing))]
pub(crate) use postgres::check_connection_string;

pub use agents::{AgentWriteError, Agents};
pub use bundles::{BundleError, BundleMask, Bundles, DeleteMode};
pub use entries::{Created, Entries, EntryPatch, EntryWriteError};
pub(crate) use error::WriteFailure;
pub use error::{DatastoreError, SettingsError};
pub use federation::{FederationRelationships, RelationshipError};
pub use journals::{Journals, Leases};
pub use postgres::{Environment, PostgresConfig};
pub use tokens::{JoinToken, TokenError, Tokens};
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

/// The open database, as whoever opened it holds it: everybody else gets the handles that it needs and no other. Cheap to
/// clone, as each handle is.
#[derive(Clone)]
pub struct Datastore {
    pub entries: Entries,
    pub agents: Agents,
    pub bundles: Bundles,
    pub tokens: Tokens,
    pub federation_relationships: FederationRelationships,
    pub journals: Journals,
    pub leases: Leases,
    queue: Arc<WriteQueue>,
    closing: mpsc::Sender<oneshot::Sender<()>>,
}

impl std::fmt::Debug for Datastore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datastore")
            .field("queue", &self.queue)
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
        let registry_writer = RegistryWriter::new(
            state,
            trust_domain,
            Arc::clone(&clock),
            max_staleness,
            telemetry.clone(),
        );
        let registry = Arc::clone(registry_writer.registry());
        let (operations, queued) = mpsc::channel(QUEUE);
        let (closing, asked) = mpsc::channel(1);
        let writer = Writer {
            database,
            queue: queued,
            closing: asked,
            monitor: Monitor::default(),
            registry: registry_writer,
            telemetry,
        };
        tokio::spawn(writer.run());
        let queue = Arc::new(WriteQueue {
            operations,
            registry: Arc::clone(&registry),
            clock,
            common: Mutex::default(),
        });
        let datastore = Self {
            entries: Entries(Arc::clone(&queue)),
            agents: Agents(Arc::clone(&queue)),
            bundles: Bundles(Arc::clone(&queue)),
            tokens: Tokens(Arc::clone(&queue)),
            federation_relationships: FederationRelationships(Arc::clone(&queue)),
            journals: Journals(Arc::clone(&queue)),
            leases: Leases(Arc::clone(&queue)),
            queue,
            closing,
        };
        Ok((datastore, registry))
    }

    /// The state in memory that this datastore feeds.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.queue.registry
    }

    /// Returns when the writer has ended although nobody closed the datastore: it panicked, or lost the thread that
    /// holds the database. A server that can neither write nor follow must stop.
    pub async fn stopped(&self) {
        self.queue.operations.closed().await;
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
        let poisoned = self
            .queue
            .submit(1, |_| -> () { panic!("a poisoned operation") });
        poisoned.await.unwrap_err()
    }
}
