//! A server with many entries: filling, listing, memory, idling, starting.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::rpc;
use harness::{Server, Subject};
use tonic::transport::Channel;

use crate::entries;
use crate::report::{Better, Report};
use crate::server_side::megabytes;
use crate::{Plan, deployment};

const BATCH: usize = 50;
const CALLERS: usize = 4;
/// How long an idle server is watched.
const IDLE: Duration = Duration::from_secs(15);

pub(crate) async fn measure(subject: Subject, plan: &Plan, report: &mut Report) -> Result<()> {
    let mut server = Server::start(deployment::options(subject))?;
    let admin = rpc::unix(&server.socket()).await?;

    let from = Instant::now();
    fill(&admin, plan.entries).await?;
    let count = f64::from(u32::try_from(plan.entries)?);
    report.add(
        subject,
        "scale_entries_created",
        "entries/s",
        Better::More,
        count / from.elapsed().as_secs_f64(),
    );

    let from = Instant::now();
    let listed = entries::list(&admin).await?;
    ensure!(listed >= plan.entries, "listed {listed}");
    report.add(
        subject,
        "scale_entries_listed",
        "entries/s",
        Better::More,
        count / from.elapsed().as_secs_f64(),
    );

    let used = server.process()?.processor_seconds()?;
    let from = Instant::now();
    tokio::time::sleep(IDLE).await;
    let share =
        (server.process()?.processor_seconds()? - used) / from.elapsed().as_secs_f64() * 100.0;
    report.add(
        subject,
        "scale_idle_processor",
        "% of a core",
        Better::Less,
        share,
    );
    report.add(
        subject,
        "scale_memory",
        "MB",
        Better::Less,
        megabytes(server.process()?.resident()?),
    );

    drop(admin);
    server.stop()?;
    let from = Instant::now();
    server.spawn()?;
    let started = serving(&server, plan.entries).await?;
    report.add(
        subject,
        "scale_start",
        "s",
        Better::Less,
        (started - from).as_secs_f64(),
    );
    report.add(
        subject,
        "scale_memory_after_start",
        "MB",
        Better::Less,
        megabytes(server.process()?.resident()?),
    );
    Ok(())
}

async fn fill(admin: &Channel, total: usize) -> Result<()> {
    let callers = (0..CALLERS).map(async |caller| {
        let mut batch = caller;
        while batch * BATCH < total {
            let parent = format!("/node-{}", batch % 1000);
            let numbers = batch * BATCH..((batch + 1) * BATCH).min(total);
            entries::create(
                admin,
                numbers
                    .map(|number| entries::numbered(&parent, number))
                    .collect(),
            )
            .await?;
            batch += CALLERS;
        }
        Ok::<_, anyhow::Error>(())
    });
    for outcome in futures_util::future::join_all(callers).await {
        outcome?;
    }
    Ok(())
}

/// When the server first answered that it has the entries.
async fn serving(server: &Server, total: usize) -> Result<Instant> {
    let from = Instant::now();
    loop {
        if let Ok(admin) = rpc::unix(&server.socket()).await
            && let Ok(count) = entries::count(&admin).await
        {
            ensure!(count >= total, "{count} entries after the start");
            return Ok(Instant::now());
        }
        ensure!(
            from.elapsed() < Duration::from_secs(120),
            "the server does not serve"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
