//! What workloads ask of an agent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Agent, AgentOptions, Deployment, Server, Subject, id, rpc};
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{JwtsvidRequest, X509svidRequest, X509svidResponse};
use tokio::task::JoinSet;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::rate::{hammer, milliseconds};
use crate::report::{Better, Report};
use crate::server_side::megabytes;
use crate::{Plan, deployment, entries};

const CALLERS: usize = 8;
const STREAMS: u32 = 1000;
/// How many new entries are waited for.
const ARRIVALS: usize = 20;
const BASE: &str = "/base";

pub(crate) async fn measure(subject: Subject, plan: &Plan, report: &mut Report) -> Result<()> {
    let server = Server::start(deployment::options(subject))?;
    let admin = rpc::unix(&server.socket()).await?;
    entries::create(&admin, vec![entries::own("/node", BASE)?]).await?;
    let mut options = AgentOptions::attesting(&server, &server.token(&Deployment::node())?)?;
    options.subject = Some(subject);
    options.experimental = String::new();
    options.log_level = "INFO";
    options.discover_path = false;
    options.wrapper = deployment::pinned();
    let mut agent = Agent::start(options)?;
    agent.wait_for_ids(&[&id(BASE)], Duration::from_secs(30))?;
    tokio::time::sleep(plan.time).await;
    let idle = agent.process()?.resident()?;
    report.add(
        subject,
        "agent_memory_idle",
        "MB",
        Better::Less,
        megabytes(idle),
    );

    fetches(&agent, subject, plan, report).await?;
    tokens(&agent, subject, plan, report).await?;
    arrivals(&agent, &admin, subject, report).await?;
    // Last: SPIRE's agent does not recover from it.
    streams(&mut agent, subject, report).await
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

async fn open(channel: Channel) -> Result<Streaming<X509svidResponse>> {
    let mut client = SpiffeWorkloadApiClient::new(channel);
    Ok(client
        .fetch_x509svid(request(X509svidRequest {}))
        .await?
        .into_inner())
}

async fn first(socket: &Path) -> Result<Streaming<X509svidResponse>> {
    let mut stream = open(rpc::unix(socket).await?).await?;
    let update = stream.message().await?.context("the stream ended")?;
    ensure!(!update.svids.is_empty(), "no SVID");
    Ok(stream)
}

async fn fetches(agent: &Agent, subject: Subject, plan: &Plan, report: &mut Report) -> Result<()> {
    let socket = agent.socket();
    let rate = hammer(CALLERS, plan.time, async |_, _| {
        first(&socket).await.map(drop)
    })
    .await?;
    report.add(
        subject,
        "agent_connect_and_fetch",
        "fetches/s",
        Better::More,
        rate.calls_per_second,
    );
    report.add(
        subject,
        "agent_connect_and_fetch_p50",
        "ms",
        Better::Less,
        rate.median,
    );
    Ok(())
}

async fn tokens(agent: &Agent, subject: Subject, plan: &Plan, report: &mut Report) -> Result<()> {
    let mut channels = Vec::new();
    for _ in 0..CALLERS {
        channels.push(rpc::unix(&agent.socket()).await?);
    }
    for (name, fresh) in [("agent_jwt_cached", false), ("agent_jwt_not_cached", true)] {
        let rate = hammer(CALLERS, plan.time, async |caller, number| {
            let channel = channels.get(caller).context("a channel")?.clone();
            let audience = if fresh {
                format!("{caller}-{number}")
            } else {
                "always".to_owned()
            };
            let message = JwtsvidRequest {
                audience: vec![audience],
                spiffe_id: String::new(),
            };
            let answer = SpiffeWorkloadApiClient::new(channel)
                .fetch_jwtsvid(request(message))
                .await?;
            ensure!(!answer.into_inner().svids.is_empty(), "no token");
            Ok(())
        })
        .await?;
        report.add(
            subject,
            name,
            "tokens/s",
            Better::More,
            rate.calls_per_second,
        );
        report.add(
            subject,
            &format!("{name}_p50"),
            "ms",
            Better::Less,
            rate.median,
        );
    }
    Ok(())
}

/// A thousand connections of this process, each with a stream, at once.
async fn streams(agent: &mut Agent, subject: Subject, report: &mut Report) -> Result<()> {
    let socket = agent.socket();
    report.add(
        subject,
        "agent_memory_before_streams",
        "MB",
        Better::Less,
        megabytes(agent.process()?.resident()?),
    );
    let from = Instant::now();
    let mut opening = JoinSet::new();
    for _ in 0..STREAMS {
        let socket: PathBuf = socket.clone();
        opening.spawn(async move { first(&socket).await });
    }
    let mut open = Vec::new();
    let deadline = tokio::time::sleep(Duration::from_secs(10));
    tokio::pin!(deadline);
    let mut refusals = BTreeSet::new();
    loop {
        tokio::select! {
            joined = opening.join_next() => match joined {
                Some(Ok(Ok(stream))) => open.push(stream),
                Some(Ok(Err(error))) => drop(refusals.insert(format!("{error:#}"))),
                Some(Err(error)) => return Err(error.into()),
                None => break,
            },
            () = &mut deadline => break,
        }
    }
    opening.abort_all();
    if !refusals.is_empty() {
        crate::say(&format!("    refused: {refusals:?}"));
    }
    let opened = f64::from(u32::try_from(open.len())?);
    report.add(
        subject,
        "agent_streams_within_10_s",
        "of 1000",
        Better::More,
        opened,
    );
    report.add(
        subject,
        "agent_streams_time",
        "s",
        Better::Less,
        from.elapsed().as_secs_f64(),
    );
    report.add(
        subject,
        "agent_memory_with_streams",
        "MB",
        Better::Less,
        megabytes(agent.process()?.resident()?),
    );
    Ok(())
}

/// From the creation of an entry until a workload that waits has its SVID.
async fn arrivals(
    agent: &Agent,
    admin: &Channel,
    subject: Subject,
    report: &mut Report,
) -> Result<()> {
    let mut stream = first(&agent.socket()).await?;
    let mut times = Vec::new();
    for number in 0..ARRIVALS {
        let path = format!("/arrival-{number}");
        let wanted = id(&path);
        let from = Instant::now();
        entries::create(admin, vec![entries::own("/node", &path)?]).await?;
        loop {
            let update = tokio::time::timeout(Duration::from_secs(60), stream.message()).await??;
            let update = update.context("the stream ended")?;
            if update.svids.iter().any(|svid| svid.spiffe_id == wanted) {
                break;
            }
        }
        times.push(from.elapsed());
        crate::say(&format!(
            "    entry to SVID: {:.0} ms",
            from.elapsed().as_secs_f64() * 1000.0
        ));
    }
    times.sort_unstable();
    report.add(
        subject,
        "entry_to_svid_p50",
        "ms",
        Better::Less,
        milliseconds(&times, 0.5),
    );
    report.add(
        subject,
        "entry_to_svid_p99",
        "ms",
        Better::Less,
        milliseconds(&times, 0.99),
    );
    Ok(())
}
