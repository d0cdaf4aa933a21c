//! Putting the server together: sockets first, so that a conflict shows before anything is touched; then datastore,
//! plugins, authorities; then everything runs until the shutdown.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::fault::{Code, Fault};
use plugin::catalog::{RunningServerPlugins, ServerPlugins};
use plugin::lifecycle::HostServices;
use plugin::node_attestor::server::NodeAttestor;
use proto::spire::api::server::agent::v1::agent_server::AgentServer;
use proto::spire::api::server::debug::v1::debug_server::DebugServer;
use proto::spire::api::server::entry::v1::entry_server::EntryServer;
use proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use spiffe::clock::{Clock, SystemClock};
use spiffe::id::SpiffeId;
use spiffe::random::{Random, SystemRandom};
use spiffe::tls::{KeyExchange, SpiffeAcceptor, SpiffeClientVerifier};
use tonic_health::pb::health_server::HealthServer;

use crate::api::{
    Api, agent::AgentService, bundle::BundleService, debug::DebugService, entry::EntryService,
    health::HealthService, localauthority::LocalAuthorityService, logger::LoggerService,
    svid::SvidService, trustdomain::TrustDomainService,
};
use crate::attest::{Attestation, Tokens};
use crate::audit::{AuditSink, Auditor, LogSink};
use crate::authz::Authorizer;
use crate::ca::{Ca, CaParts};
use crate::config::{Config, PruningConfig};
use crate::datastore::{Datastore, DatastoreKind};
use crate::endpoints::admin::AdminSocket;
use crate::endpoints::admission::room_for_connections;
use crate::endpoints::tcp::{Peers, TcpEndpoint};
use crate::endpoints::trust::PeerBundles;
use crate::endpoints::{GRACEFUL_STOP, Serving, admin, tcp};
use crate::health::Health;
use crate::metrics::STARTED;
use crate::ops::agents::Agents;
use crate::ops::attestations::Attestations;
use crate::ops::authorities::Authorities;
use crate::ops::bundles::Bundles;
use crate::ops::entries::Entries;
use crate::ops::federation::Federation;
use crate::ops::log_level::LogLevel;
use crate::ops::server_info::ServerInfo;
use crate::ops::svids::Svids;
use crate::ops::tokens::Tokens as JoinTokenOps;
use crate::prune::Pruning;
use crate::ratelimit::RateLimits;
use crate::registry::Registry;
use crate::watch::notifier::Notifier;
use crate::watch::{FIRST_LISTS, WatchService};
use daemon::http_probes::{HttpProbes, Report};
use daemon::log_control::{LogControl, LogLevels};
use daemon::tasks::{Tasks, stopped_unexpectedly};
use daemon::telemetry::Telemetry;

#[cfg(test)]
mod tests;

/// How long an agent that seems unknown may be news of another server on the same database.
const FOLLOW_OTHERS_FOR: Duration = Duration::from_secs(2);

/// What the process gives to the server beside its configuration.
#[derive(Debug, Clone)]
pub struct Environment {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// None: the log level cannot be changed over the API.
    pub log: Option<Arc<dyn LogControl>>,
    /// None: the audit trail goes into the log, when the configuration asks for one.
    pub audit: Option<Arc<dyn AuditSink>>,
    /// Where measurements go; nowhere by default.
    pub telemetry: Telemetry,
    /// Node attestors of the embedding program's own, beside those of the configuration.
    pub node_attestors: Vec<Arc<dyn NodeAttestor>>,
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
            log: None,
            audit: None,
            telemetry: Telemetry::default(),
            node_attestors: Vec::new(),
        }
    }
}

impl Environment {
    fn attestors(&self, plugins: &RunningServerPlugins) -> Vec<Arc<dyn NodeAttestor>> {
        let configured = plugins.node_attestors.iter();
        let configured = configured.map(|attestor| Arc::clone(attestor.plugin()));
        configured
            .chain(self.node_attestors.iter().cloned())
            .collect()
    }

    fn auditor(&self, log: bool) -> Auditor {
        let sink = match &self.audit {
            Some(sink) => Some(Arc::clone(sink)),
            None if log => Some(Arc::new(LogSink) as Arc<dyn AuditSink>),
            None => None,
        };
        Auditor::new(sink, Arc::clone(&self.clock))
    }
}

/// The server, before it runs.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Binds, opens, and makes the authorities ready.
    ///
    /// # Errors
    /// What is in the way, as a [`Fault`].
    pub async fn bind(config: Config) -> Result<Bound, Fault> {
        Self::bind_in(config, Environment::default()).await
    }

    /// As [`Server::bind`], with a clock, randomness and a log switch of the caller's.
    ///
    /// # Errors
    /// What is in the way, as a [`Fault`].
    pub async fn bind_in(config: Config, environment: Environment) -> Result<Bound, Fault> {
        for notice in &config.notices {
            tracing::warn!("{notice}");
        }
        make_data_dir(&config.data_dir)?;
        let labels = [env!("CARGO_PKG_VERSION"), config.trust_domain.as_str()];
        environment.telemetry.set_number(&STARTED, 1, labels);
        let tcp = tcp::bind(&config.bind_address, config.bind_port).await?;
        let admin = admin::bind(&config.socket_path)?;
        let health_checks = match &config.health {
            Some(health) => Some(HttpProbes::bind(health)?),
            None => None,
        };
        let (pruning, require_pq_kem) = (config.pruning, config.require_pq_kem);
        // On the heap: it is by far the largest step, and its caller keeps it but for a moment.
        let core = Box::pin(Core::open(config, environment)).await?;
        Ok(Bound {
            tcp_addr: tcp.address(),
            admin_socket: admin.path().to_owned(),
            health_addr: health_checks.as_ref().map(HttpProbes::address),
            tcp,
            admin,
            health_checks,
            core,
            pruning,
            require_pq_kem,
        })
    }
}

/// A server that holds its sockets and can issue, but does not answer yet.
#[derive(Debug)]
pub struct Bound {
    /// Where agents connect; the port that was taken, when the configuration asks for port 0.
    pub tcp_addr: SocketAddr,
    pub admin_socket: PathBuf,
    pub health_addr: Option<SocketAddr>,
    tcp: TcpEndpoint,
    admin: AdminSocket,
    health_checks: Option<HttpProbes>,
    core: Core,
    pruning: Option<PruningConfig>,
    require_pq_kem: bool,
}

/// The parts that live as long as the server.
#[derive(Debug)]
struct Core {
    environment: Environment,
    plugins: RunningServerPlugins,
    datastore: Datastore,
    registry: Arc<Registry>,
    ca: Arc<Ca>,
    api: Arc<Api>,
    notifier: Arc<Notifier>,
}

impl Core {
    async fn open(config: Config, environment: Environment) -> Result<Self, Fault> {
        let trust_domain = config.trust_domain;
        let telemetry = environment.telemetry.clone();
        let shared = matches!(config.datastore.kind, DatastoreKind::Postgres(_));
        let (datastore, registry) = Datastore::open(
            config.datastore,
            trust_domain.clone(),
            Arc::clone(&environment.clock),
            telemetry.clone(),
        )
        .await?;
        let auditor = environment.auditor(config.audit_log);
        let plugins = open_plugins(&config.plugins, &environment, &datastore).await?;
        let upstream = plugins.upstream_authority.as_ref();
        let ca_ttl = config.issuance.ca_ttl;
        let parts = CaParts {
            keys: Arc::clone(plugins.key_manager.plugin()),
            upstream: upstream.map(|upstream| Arc::clone(upstream.plugin())),
            registry: Arc::clone(&registry),
            bundles: datastore.bundles.clone(),
            journals: datastore.journals.clone(),
            leases: datastore.leases.clone(),
            clock: Arc::clone(&environment.clock),
            random: Arc::clone(&environment.random),
            auditor: auditor.clone(),
            telemetry: telemetry.clone(),
            lost_keys: config.lost_keys,
            sole_server: !shared,
        };
        let ca = Arc::new(
            Ca::open(config.issuance, parts)
                .await
                .map_err(|error| error.to_fault())?,
        );
        let authorizer = Arc::new(Authorizer {
            registry: Arc::clone(&registry),
            agents: datastore.agents.clone(),
            clock: Arc::clone(&environment.clock),
            admin_ids: HashSet::from_iter(config.admin_ids),
            follow_for: follow_for(shared),
        });
        let attestation = Attestation {
            trust_domain,
            registry: Arc::clone(&registry),
            agents: datastore.agents.clone(),
            attestors: environment.attestors(&plugins),
            agent_id_as_selector: config.agent_id_as_selector,
        };
        let limits = Arc::new(RateLimits::new(config.rate_limits, &telemetry));
        let notifier = Arc::new(Notifier::new(
            Arc::clone(&registry),
            Arc::clone(&environment.clock),
            telemetry,
        ));
        let agents = Arc::new(Agents {
            registry: Arc::clone(&registry),
            agents: datastore.agents.clone(),
            ca: Arc::clone(&ca),
        });
        let watch = watch_service(&agents, &limits, &authorizer, &notifier, &environment.clock);
        let parts = ServiceParts {
            agents,
            authorizer,
            auditor,
            attestation,
            limits,
            ca: Arc::clone(&ca),
            ca_ttl,
        };
        let api = Arc::new(parts.api(watch, &datastore, &environment));
        Ok(Self {
            environment,
            plugins,
            datastore,
            registry,
            ca,
            api,
            notifier,
        })
    }
}

/// Where no other server writes, there is nothing to wait for.
fn follow_for(shared: bool) -> Duration {
    if shared {
        FOLLOW_OTHERS_FOR
    } else {
        Duration::ZERO
    }
}

/// Opens the plugins, with what this server offers them.
async fn open_plugins(
    plugins: &ServerPlugins,
    environment: &Environment,
    datastore: &Datastore,
) -> Result<RunningServerPlugins, Fault> {
    let host = HostServices::new(
        datastore.registry().trust_domain().clone(),
        Arc::clone(&environment.clock),
        Arc::clone(&environment.random),
    );
    let tokens = Tokens {
        tokens: datastore.tokens.clone(),
        clock: Arc::clone(&environment.clock),
    };
    plugins.open(&host.with_join_tokens(Arc::new(tokens))).await
}

fn watch_service(
    agents: &Arc<Agents>,
    limits: &Arc<RateLimits>,
    authorizer: &Arc<Authorizer>,
    notifier: &Arc<Notifier>,
    clock: &Arc<dyn Clock>,
) -> WatchService {
    WatchService {
        agents: Arc::clone(agents),
        limits: Arc::clone(limits),
        registry: Arc::clone(&authorizer.registry),
        authorizer: Arc::clone(authorizer),
        clock: Arc::clone(clock),
        notifier: Arc::clone(notifier),
        lists: Arc::new(tokio::sync::Semaphore::new(FIRST_LISTS)),
    }
}

/// What services are made of.
struct ServiceParts {
    agents: Arc<Agents>,
    authorizer: Arc<Authorizer>,
    auditor: Auditor,
    attestation: Attestation,
    limits: Arc<RateLimits>,
    ca: Arc<Ca>,
    ca_ttl: Duration,
}

impl ServiceParts {
    /// Gives each service what it needs and nothing else.
    fn api(self, watch: WatchService, datastore: &Datastore, environment: &Environment) -> Api {
        let Self {
            agents,
            authorizer,
            auditor,
            attestation,
            limits,
            ca,
            ca_ttl,
        } = self;
        let registry = || Arc::clone(&authorizer.registry);
        let clock = || Arc::clone(&environment.clock);
        let trust_domain = || authorizer.registry.trust_domain().clone();
        Api {
            bundle: Arc::new(BundleService::new(
                Bundles {
                    trust_domain: trust_domain(),
                    registry: registry(),
                    bundles: datastore.bundles.clone(),
                },
                Arc::clone(&limits),
            )),
            debug: DebugServer::new(DebugService {
                info: ServerInfo::new(registry(), Arc::clone(&ca), clock()),
            }),
            entry: EntryServer::new(EntryService {
                entries: Entries {
                    trust_domain: trust_domain(),
                    registry: registry(),
                    entries: datastore.entries.clone(),
                    ca_ttl,
                },
                authorizer: Arc::clone(&authorizer),
            }),
            health: HealthServer::new(HealthService {
                trust_domain: trust_domain(),
                registry: registry(),
            }),
            local_authority: LocalAuthorityServer::new(LocalAuthorityService {
                authorities: Authorities {
                    ca: Arc::clone(&ca),
                },
            }),
            logger: LoggerServer::new(LoggerService {
                log_level: LogLevel {
                    levels: LogLevels::new(environment.log.clone()),
                },
            }),
            svid: Arc::new(SvidService {
                svids: Svids {
                    trust_domain: trust_domain(),
                    registry: registry(),
                    ca: Arc::clone(&ca),
                },
                limits: Arc::clone(&limits),
            }),
            trust_domain: TrustDomainServer::new(TrustDomainService {
                federation: Federation {
                    registry: registry(),
                    relationships: datastore.federation_relationships.clone(),
                },
            }),
            watch: Arc::new(watch),
            agent: AgentServer::new(AgentService {
                trust_domain: trust_domain(),
                agents,
                attestations: Arc::new(Attestations { attestation, ca }),
                tokens: JoinTokenOps {
                    trust_domain: trust_domain(),
                    tokens: datastore.tokens.clone(),
                    clock: clock(),
                },
                limits,
            }),
            authorizer,
            auditor,
            telemetry: environment.telemetry.clone(),
            refused_attestations: Arc::default(),
            log_limit: Arc::default(),
        }
    }
}

impl Bound {
    /// The plugins, to have them read their files again.
    pub fn plugins(&self) -> RunningServerPlugins {
        self.core.plugins.clone()
    }

    /// Serves until `shutdown` completes, then stops gracefully: calls in flight get ten seconds.
    ///
    /// # Errors
    /// When a part of the server ended although nobody asked it to.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Fault> {
        let core = self.core;
        let health = Arc::new(Health::new(
            Arc::clone(&core.registry),
            Arc::clone(&core.ca),
        ));
        let mut tasks = Tasks::new();
        let peers = core.peers(self.require_pq_kem, &mut tasks);
        let serving = Serving {
            api: Arc::clone(&core.api),
            random: Arc::clone(&core.environment.random),
            shutdown: tasks.shutdown(),
        };
        tracing::info!(address = %self.tcp_addr, "serving agents");
        tracing::info!(path = %self.admin_socket.display(), "serving administrators");
        tasks.spawn("admin socket", self.admin.run(serving.clone()));
        tasks.spawn(
            "mTLS endpoint",
            self.tcp.run(peers, room_for_connections(), serving),
        );
        core.spawn_background(&mut tasks, self.pruning);
        if let Some(health_checks) = self.health_checks {
            tracing::info!(address = %health_checks.address(), "serving health checks");
            let health = Arc::clone(&health);
            let report = move || probe_report(&health);
            tasks.spawn("health checks", health_checks.run(report, tasks.shutdown()));
        }
        health.set_serving(true);
        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            fault = tasks.failure() => Err(fault),
            () = core.datastore.stopped() => Err(writer_stopped()),
        };
        health.set_serving(false);
        tracing::info!("stopping");
        let stopped = tasks.stop(GRACEFUL_STOP + Duration::from_secs(1)).await;
        core.plugins.stop().await;
        core.datastore.close().await;
        outcome.and(stopped)
    }
}

fn probe_report(health: &Health) -> Report {
    let report = health.report();
    Report {
        live: report.live,
        ready: report.ready,
        details: report.details.to_string(),
    }
}

/// Without its writer the server could neither write nor hear of bans and revocations that other servers write.
fn writer_stopped() -> Fault {
    stopped_unexpectedly("datastore writer")
        .because("it panicked, or the thread that holds the database ended; the log says more")
        .hint("start the server again: every write that was acknowledged is in the database; please report this")
}

#[cfg(test)]
impl Bound {
    pub(crate) fn state_for_tests(&self) -> (Arc<Registry>, Datastore) {
        (Arc::clone(&self.core.registry), self.core.datastore.clone())
    }

    pub(crate) fn api_for_tests(&self) -> Arc<Api> {
        Arc::clone(&self.core.api)
    }
}

impl Core {
    /// Whom the mTLS endpoint accepts. Begins to follow the bundles that they are verified against.
    fn peers(&self, require_pq_kem: bool, tasks: &mut Tasks) -> Peers {
        let key_exchange = if require_pq_kem {
            KeyExchange::RequirePostQuantum
        } else {
            KeyExchange::PreferPostQuantum
        };
        let own = self.registry.trust_domain();
        let mut foreign: Vec<_> = self
            .api
            .authorizer
            .admin_ids
            .iter()
            .map(SpiffeId::trust_domain)
            .collect();
        foreign.retain(|trust_domain| trust_domain != own);
        let clock = Arc::clone(&self.environment.clock);
        let bundles = Arc::new(PeerBundles::new(
            Arc::clone(&self.registry),
            foreign,
            Arc::clone(&clock),
        ));
        tasks.spawn(
            "trust in peers",
            Arc::clone(&bundles).follow(tasks.shutdown()),
        );
        let clients = SpiffeClientVerifier::optional(Arc::<PeerBundles>::clone(&bundles));
        let tls = SpiffeAcceptor::new(self.ca.resolver(), Arc::new(clients), clock, key_exchange);
        Peers::new(tls, bundles)
    }

    fn spawn_background(&self, tasks: &mut Tasks, agents: Option<PruningConfig>) {
        let (ca, mut shutdown) = (Arc::clone(&self.ca), tasks.shutdown());
        tasks.spawn("watch", Arc::clone(&self.notifier).run(tasks.shutdown()));
        tasks.spawn("authorities", async move {
            tokio::select! {
                () = ca.run() => {}
                () = shutdown.requested() => {}
            }
        });
        let pruning = || Pruning {
            entries: self.datastore.entries.clone(),
            agents: self.datastore.agents.clone(),
            tokens: self.datastore.tokens.clone(),
            clock: Arc::clone(&self.environment.clock),
            random: Arc::clone(&self.environment.random),
            telemetry: self.environment.telemetry.clone(),
        };
        tasks.spawn(
            "pruning of entries",
            pruning().run_entries(tasks.shutdown()),
        );
        if let Some(agents) = agents {
            tasks.spawn(
                "pruning of agents",
                pruning().run_agents(agents, tasks.shutdown()),
            );
        }
    }
}

/// Makes the directory of everything that the server keeps, for itself alone.
fn make_data_dir(directory: &Path) -> Result<(), Fault> {
    use nix::unistd::{AccessFlags, access};
    use std::os::unix::fs::DirBuilderExt as _;

    let fault = |because: &dyn std::fmt::Display| {
        Fault::new(
            Code::DataDirUnusable,
            format!("the data directory {} cannot be used", directory.display()),
        )
        .because(because)
        .hint(format!(
            "install -d -m 0700 -o \"$(id -un)\" {}",
            directory.display()
        ))
    };
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|error| fault(&error))?;
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| fault(&error))
}
