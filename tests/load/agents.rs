//! Very many agents with watch streams on one server: memory, idle processor time, the way of a change, and all of them coming
//! back after a restart. The agents are played by this process, each with a connection and an address of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt as _;
use harness::rpc::{self, Credentials};
use harness::{Server, Subject, TRUST_DOMAIN};
use proto::plastron::server::v1::watch_client::WatchClient;
use proto::plastron::server::v1::{WatchEvent, WatchRequest};
use proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::types::Spiffeid;
use tokio::sync::{Semaphore, mpsc};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::rate::milliseconds;
use crate::report::{Better, Report};
use crate::server_side::megabytes;
use crate::{Plan, deployment, entries, say};

/// Every agent has this SPIFFE ID as an alias.
const FLEET: &str = "/fleet";
const ENTRIES_OF_FLEET: usize = 100;
/// Agents that attest or connect at once, before the restart.
const AT_ONCE: usize = 32;
/// Single changes that are timed.
const CHANGES: usize = 500;
const IDLE: Duration = Duration::from_secs(20);
/// How long an agent that was cut off waits before it tries again, and by how much agents differ.
const RETRY: Duration = Duration::from_millis(500);
const GIVE_UP: Duration = Duration::from_secs(180);

struct SimulatedAgent {
    number: usize,
    /// The agent's own path in the trust domain.
    path: String,
    credentials: Credentials,
}

/// What an agent saw.
enum Seen {
    /// The first event of a stream came, with or without the whole list.
    Open {
        reset: bool,
    },
    /// An entry came.
    Entry {
        number: usize,
        at: Instant,
    },
    Closed,
    /// The server said that the agent is not attested.
    Refused(tonic::Status),
}

pub(crate) async fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut server = Server::start(deployment::options(Subject::Plastron))?;
    let admin = rpc::unix(&server.socket()).await?;
    let from = Instant::now();
    let agents = attest_all(&server, &admin, plan.agents).await?;
    say(&format!(
        "    attested in {:.1} s",
        from.elapsed().as_secs_f64()
    ));
    let shared = (0..ENTRIES_OF_FLEET).map(|number| entries::numbered(FLEET, number));
    entries::create(&admin, shared.collect()).await?;
    memory(&mut server, "memory_before", report)?;

    let (seen, mut events) = mpsc::channel(plan.agents.max(1));
    let paths: Vec<String> = agents.iter().map(|agent| agent.path.clone()).collect();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let address = server.address();
    let from = Instant::now();
    for agent in agents {
        tokio::spawn(agent.play(address, seen.clone(), Arc::clone(&turns)));
    }
    all_open(&mut events, plan.agents).await?;
    add(report, "connected", "s", from.elapsed().as_secs_f64());
    idle(&mut server, report).await?;
    change_for_one(&admin, &paths, &mut events, report).await?;
    change_for_all(&admin, paths.len(), &mut events, report).await?;

    // From here on the agents come back as they like.
    turns.add_permits(plan.agents);
    drop(admin);
    let from = Instant::now();
    // On a thread of its own: the agents go on meanwhile, as those of a fleet do.
    let restarted = tokio::task::spawn_blocking(move || {
        server.stop()?;
        server.spawn()?;
        Ok::<_, anyhow::Error>(server)
    });
    let mut server = restarted.await??;
    let resumed = all_open(&mut events, plan.agents).await?;
    add(
        report,
        "back_after_restart",
        "s",
        from.elapsed().as_secs_f64(),
    );
    report.add(
        Subject::Plastron,
        "agents_resumed_after_restart",
        "agents",
        Better::More,
        resumed,
    );
    memory(&mut server, "memory_after_restart", report)
}

fn add(report: &mut Report, name: &str, unit: &'static str, value: f64) {
    let name = format!("agents_{name}");
    report.add(Subject::Plastron, &name, unit, Better::Less, value);
}

fn memory(server: &mut Server, name: &str, report: &mut Report) -> Result<()> {
    let bytes = server.process()?.resident()?;
    add(report, name, "MB", megabytes(bytes));
    Ok(())
}

/// What the server holds and does while nothing happens.
async fn idle(server: &mut Server, report: &mut Report) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(5)).await;
    memory(server, "memory", report)?;
    let used = server.process()?.processor_seconds()?;
    let from = Instant::now();
    tokio::time::sleep(IDLE).await;
    let share = (server.process()?.processor_seconds()? - used) / from.elapsed().as_secs_f64();
    add(report, "idle_processor", "% of a core", share * 100.0);
    Ok(())
}

/// From the call that creates an entry for one agent to the event at that agent.
async fn change_for_one(
    admin: &Channel,
    paths: &[String],
    events: &mut mpsc::Receiver<Seen>,
    report: &mut Report,
) -> Result<()> {
    let mut times = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let number = change * 7_919 % paths.len();
        let parent = paths.get(number).context("an agent")?;
        let from = Instant::now();
        entries::create(admin, vec![entries::numbered(parent, change)]).await?;
        match events.recv().await {
            Some(Seen::Entry { number: agent, at }) if agent == number => times.push(at - from),
            _ => bail!("another agent heard of the change, or a stream ended"),
        }
    }
    times.sort_unstable();
    add(
        report,
        "change_for_one_p50",
        "ms",
        milliseconds(&times, 0.5),
    );
    add(
        report,
        "change_for_one_p99",
        "ms",
        milliseconds(&times, 0.99),
    );
    Ok(())
}

/// From the call that creates an entry for every agent to the event at the last of them.
async fn change_for_all(
    admin: &Channel,
    count: usize,
    events: &mut mpsc::Receiver<Seen>,
    report: &mut Report,
) -> Result<()> {
    let from = Instant::now();
    entries::create(admin, vec![entries::numbered(FLEET, ENTRIES_OF_FLEET)]).await?;
    let mut last = Duration::ZERO;
    for _ in 0..count {
        match events.recv().await {
            Some(Seen::Entry { at, .. }) => last = last.max(at - from),
            _ => bail!("a stream ended"),
        }
    }
    add(
        report,
        "change_for_all_last",
        "ms",
        last.as_secs_f64() * 1_000.0,
    );
    Ok(())
}

async fn attest_all(server: &Server, admin: &Channel, count: usize) -> Result<Vec<SimulatedAgent>> {
    let address = server.address();
    let joined = futures_util::stream::iter(0..count).map(|number| {
        let admin = admin.clone();
        async move {
            let request = CreateJoinTokenRequest {
                ttl: 600,
                agent_id: Some(Spiffeid {
                    trust_domain: TRUST_DOMAIN.to_owned(),
                    path: FLEET.to_owned(),
                }),
                ..CreateJoinTokenRequest::default()
            };
            let token = AgentClient::new(admin).create_join_token(request).await?;
            let token = token.into_inner().value;
            let channel = rpc::tls_from(Some(source(number)), address, None).await?;
            let credentials = rpc::attest_over(channel, &token).await?;
            Ok::<_, anyhow::Error>(SimulatedAgent {
                number,
                path: format!("/spire/agent/join_token/{token}"),
                credentials,
            })
        }
    });
    let mut agents = Vec::with_capacity(count);
    let mut joined = joined.buffer_unordered(AT_ONCE);
    while let Some(agent) = joined.next().await {
        agents.push(agent?);
    }
    agents.sort_unstable_by_key(|agent| agent.number);
    Ok(agents)
}

/// One of the addresses of the loopback network.
fn source(number: usize) -> Ipv4Addr {
    let [_, _, high, low] = u32::try_from(number % 60_000)
        .unwrap_or_default()
        .to_be_bytes();
    Ipv4Addr::new(127, 1, high, low.max(1))
}

impl SimulatedAgent {
    /// Watches, and comes back when the stream ends.
    async fn play(self, address: SocketAddr, seen: mpsc::Sender<Seen>, turns: Arc<Semaphore>) {
        let mut request = WatchRequest::default();
        while let Ok(turn) = turns.acquire().await {
            let opened = self.open(address, request.clone()).await;
            drop(turn);
            let ended = match opened {
                Ok((events, first)) => self.follow(events, first, &mut request, &seen).await,
                Err(error) => match error.downcast::<tonic::Status>() {
                    Ok(status) if status.code() == Code::PermissionDenied => {
                        seen.send(Seen::Refused(status)).await
                    }
                    // The server is away.
                    _ => Ok(()),
                },
            };
            if ended.is_err() {
                // The measurement is over.
                return;
            }
            let share = u32::try_from(self.number % 1_000).unwrap_or_default();
            tokio::time::sleep(RETRY + RETRY * share / 500).await;
        }
    }

    /// Opens a stream and reads the first list to its end.
    async fn open(
        &self,
        address: SocketAddr,
        request: WatchRequest,
    ) -> Result<(Streaming<WatchEvent>, WatchEvent)> {
        let source = Some(source(self.number));
        let channel = rpc::tls_from(source, address, Some(&self.credentials)).await?;
        let mut events = WatchClient::new(channel).watch(request).await?.into_inner();
        let first = events.message().await?.context("the stream ended")?;
        let mut more = first.more;
        while more {
            more = events.message().await?.context("the stream ended")?.more;
        }
        Ok((events, first))
    }

    /// Reads a stream until it ends, and keeps in `request` how the next one continues it.
    async fn follow(
        &self,
        mut events: Streaming<WatchEvent>,
        first: WatchEvent,
        request: &mut WatchRequest,
        seen: &mpsc::Sender<Seen>,
    ) -> Result<(), mpsc::error::SendError<Seen>> {
        let reset = first.reset;
        (request.cursor, request.epoch) = (first.revision, first.epoch);
        seen.send(Seen::Open { reset }).await?;
        while let Ok(Some(event)) = events.message().await {
            let at = Instant::now();
            (request.cursor, request.epoch) = (event.revision, event.epoch);
            for _ in event.entries {
                let number = self.number;
                seen.send(Seen::Entry { number, at }).await?;
            }
        }
        seen.send(Seen::Closed).await
    }
}

/// Waits until every agent has its first list; returns how many did not need the whole of it.
async fn all_open(events: &mut mpsc::Receiver<Seen>, count: usize) -> Result<f64> {
    let (mut open, mut resumed) = (0_usize, 0_u32);
    while open < count {
        let next = tokio::time::timeout(GIVE_UP, events.recv())
            .await
            .with_context(|| format!("{open} of {count} agents have a stream"))?;
        match next {
            Some(Seen::Open { reset }) => {
                open += 1;
                resumed += u32::from(!reset);
            }
            Some(Seen::Refused(status)) => bail!("an agent was refused for good: {status}"),
            Some(Seen::Closed | Seen::Entry { .. }) => {}
            None => bail!("the agents are gone"),
        }
    }
    ensure!(open == count, "{open} streams");
    Ok(f64::from(resumed))
}
