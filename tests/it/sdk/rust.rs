//! The published Rust SDK, inside this process.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Deployment, ServerOptions, TRUST_DOMAIN, id};
use spiffe_sdk::{TrustDomain, WorkloadApiClient};
use tokio_stream::StreamExt as _;

use super::{short_lived, workload};

#[tokio::test]
async fn fetches_and_validates() -> Result<()> {
    let deployment = Deployment::start_with(ServerOptions::default(), &[workload()], |_| {})?;
    let client = WorkloadApiClient::connect_to(deployment.agent.endpoint()).await?;
    let context = client.fetch_x509_context().await?;
    let svid = context.default_svid().context("no SVID")?;
    ensure!(svid.spiffe_id().to_string() == id("/web"), "{svid:?}");

    let jwt = client.fetch_jwt_svid(["aud"], None).await?;
    ensure!(jwt.spiffe_id().to_string() == id("/web"), "{jwt:?}");
    let valid = client.validate_jwt_token("aud", jwt.token()).await?;
    ensure!(valid.spiffe_id() == jwt.spiffe_id(), "{valid:?}");
    ensure!(
        client
            .validate_jwt_token("other", jwt.token())
            .await
            .is_err(),
        "another audience was accepted"
    );

    let own = TrustDomain::new(TRUST_DOMAIN)?;
    let bundles = client.fetch_jwt_bundles().await?;
    ensure!(
        bundles
            .get(&own)
            .is_some_and(|bundle| bundle.jwt_authorities().count() == 1)
    );
    Ok(())
}

#[tokio::test]
async fn follows_a_rotation() -> Result<()> {
    let deployment = short_lived()?;
    let client = WorkloadApiClient::connect_to(deployment.agent.endpoint()).await?;
    let mut updates = client.stream_x509_contexts().await?;
    let mut chains = Vec::new();
    while chains.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(30), updates.next()).await?;
        let context = next.context("the stream ended")??;
        let svid = context.default_svid().context("no SVID")?;
        chains.push(
            svid.cert_chain()
                .iter()
                .flat_map(|cert| cert.as_ref().to_vec())
                .collect::<Vec<u8>>(),
        );
    }
    chains.dedup();
    ensure!(chains.len() == 3, "an update repeated the old SVID");
    Ok(())
}
