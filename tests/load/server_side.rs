//! What agents and administrators ask of a server, eight callers at once.

use anyhow::{Context, Result, ensure};
use harness::rpc::certificate_request;
use harness::{Subject, id};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{
    GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest,
};
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, MintX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};

use crate::deployment::LoadDeployment;
use crate::rate::hammer;
use crate::report::{Better, Report};
use crate::{Plan, entries};

const CALLERS: usize = 8;
const BATCH: usize = 50;

pub(crate) async fn measure(subject: Subject, plan: &Plan, report: &mut Report) -> Result<()> {
    let mut deployment = LoadDeployment::start(subject).await?;
    tokio::time::sleep(plan.time).await;
    let idle = deployment.server.process()?.resident()?;
    report.add(
        subject,
        "server_memory_idle",
        "MB",
        Better::Less,
        megabytes(idle),
    );

    x509(&deployment, subject, plan, report).await?;
    jwt(&deployment, subject, plan, report).await?;
    mint(&deployment, subject, plan, report).await?;
    authorized(&deployment, subject, plan, report).await?;
    sync(&deployment, subject, plan, report).await?;
    create(&deployment, subject, plan, report).await
}

async fn x509(
    deployment: &LoadDeployment,
    subject: Subject,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let requests = (0..BATCH)
        .map(|_| Ok(certificate_request(None)?.0))
        .collect::<Result<Vec<_>>>()?;
    for (name, size) in [
        ("x509_svid_one_per_call", 1),
        ("x509_svid_fifty_per_call", BATCH),
    ] {
        let rate = hammer(CALLERS, plan.time, async |caller, number| {
            let (channel, ids) = deployment.caller(caller).context("a caller")?;
            let params = (0..size)
                .map(|at| {
                    let at = at + number;
                    Some(NewX509svidParams {
                        entry_id: ids.get(at % ids.len())?.clone(),
                        csr: requests.get(at % requests.len())?.clone(),
                    })
                })
                .collect::<Option<Vec<_>>>()
                .context("parameters")?;
            let answer = SvidClient::new(channel)
                .batch_new_x509svid(BatchNewX509svidRequest { params })
                .await?;
            let results = answer.into_inner().results;
            ensure!(
                results.len() == size && results.iter().all(|result| result.svid.is_some()),
                "an SVID is missing"
            );
            Ok(())
        })
        .await?;
        let size = f64::from(u32::try_from(size)?);
        report.add(
            subject,
            name,
            "SVIDs/s",
            Better::More,
            rate.calls_per_second * size,
        );
        report.add(
            subject,
            &format!("{name}_p50"),
            "ms",
            Better::Less,
            rate.median,
        );
        report.add(
            subject,
            &format!("{name}_p99"),
            "ms",
            Better::Less,
            rate.p99,
        );
    }
    Ok(())
}

async fn jwt(
    deployment: &LoadDeployment,
    subject: Subject,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let rate = hammer(CALLERS, plan.time, async |caller, number| {
        let (channel, ids) = deployment.caller(caller).context("a caller")?;
        let entry_id = ids.get(number % ids.len()).context("an entry")?.clone();
        let request = NewJwtsvidRequest {
            entry_id,
            audience: vec!["audience".to_owned()],
        };
        let answer = SvidClient::new(channel)
            .new_jwtsvid(request)
            .await?
            .into_inner();
        ensure!(
            answer.svid.is_some_and(|svid| !svid.token.is_empty()),
            "a token is missing"
        );
        Ok(())
    })
    .await?;
    report.add(
        subject,
        "jwt_svid",
        "SVIDs/s",
        Better::More,
        rate.calls_per_second,
    );
    report.add(subject, "jwt_svid_p50", "ms", Better::Less, rate.median);
    Ok(())
}

async fn mint(
    deployment: &LoadDeployment,
    subject: Subject,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let (csr, _) = certificate_request(Some(&id("/minted")))?;
    let rate = hammer(CALLERS, plan.time, async |_, _| {
        let request = MintX509svidRequest {
            csr: csr.clone(),
            ttl: 0,
        };
        let answer = SvidClient::new(deployment.admin.clone())
            .mint_x509svid(request)
            .await?
            .into_inner();
        ensure!(answer.svid.is_some(), "an SVID is missing");
        Ok(())
    })
    .await?;
    report.add(
        subject,
        "x509_svid_minted",
        "SVIDs/s",
        Better::More,
        rate.calls_per_second,
    );
    Ok(())
}

async fn authorized(
    deployment: &LoadDeployment,
    subject: Subject,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let rate = hammer(CALLERS, plan.time, async |caller, _| {
        let (channel, ids) = deployment.caller(caller).context("a caller")?;
        let request = GetAuthorizedEntriesRequest::default();
        let answer = EntryClient::new(channel)
            .get_authorized_entries(request)
            .await?
            .into_inner();
        ensure!(
            answer.entries.len() >= ids.len(),
            "{} entries",
            answer.entries.len()
        );
        Ok(())
    })
    .await?;
    report.add(
        subject,
        "authorized_entries_of_fifty",
        "calls/s",
        Better::More,
        rate.calls_per_second,
    );
    Ok(())
}

/// The sync of an agent for which nothing has changed: the first answer lists revisions, and nothing more is asked.
async fn sync(
    deployment: &LoadDeployment,
    subject: Subject,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    let rate = hammer(CALLERS, plan.time, async |caller, _| {
        let (channel, ids) = deployment.caller(caller).context("a caller")?;
        let request = SyncAuthorizedEntriesRequest::default();
        let answers = EntryClient::new(channel)
            .sync_authorized_entries(tokio_stream::once(request))
            .await?;
        let answer = answers.into_inner().message().await?.context("no answer")?;
        let have = answer.entry_revisions.len() + answer.entries.len();
        ensure!(have >= ids.len(), "{have} entries");
        Ok(())
    })
    .await?;
    report.add(
        subject,
        "unchanged_sync_of_fifty",
        "calls/s",
        Better::More,
        rate.calls_per_second,
    );
    Ok(())
}

async fn create(
    deployment: &LoadDeployment,
    subject: Subject,
    plan: &Plan,
    report: &mut Report,
) -> Result<()> {
    for callers in [1, 4] {
        let rate = hammer(callers, plan.time, async |caller, number| {
            let parent = format!("/created-{callers}-{caller}");
            let batch = (0..BATCH)
                .map(|at| entries::numbered(&parent, number * BATCH + at))
                .collect();
            entries::create(&deployment.admin, batch).await?;
            Ok(())
        })
        .await?;
        let each = f64::from(u32::try_from(BATCH)?);
        let name = format!("entries_created_by_{callers}");
        report.add(
            subject,
            &name,
            "entries/s",
            Better::More,
            rate.calls_per_second * each,
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_000_000.0
}
