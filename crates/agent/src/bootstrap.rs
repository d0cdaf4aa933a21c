//! Where a node that was never attested learns whom to trust: a file, a URL, another agent, or nothing at all.

use std::path::Path;
use std::time::Duration;

use config::fault::{Code, Fault};
use proto::workload::X509BundlesRequest;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::bundle::Bundle;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Certificate;

use crate::config::{BundleFormat, NodeConfig, TrustSource};
use crate::timefmt::rfc3339;

const TIMEOUT: Duration = Duration::from_secs(10);
/// SPIRE: spiffeWorkloadAPIFetchTimeout.
const WORKLOAD_API_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_BYTES: usize = 4 << 20;

/// What the node knows its server by.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// The server's certificate has to come from one of these authorities.
    Bundle(Bundle),
    /// The first server that says it is ours is believed.
    Insecure,
}

/// Why there is no bundle.
#[derive(Debug)]
pub(crate) enum BootstrapError {
    /// Nothing will change by itself.
    Permanent(Fault),
    /// It may work later.
    Transient(Fault),
}

/// Gets the bundle that the configuration names. `attempt` counts from 1 and, with the time of the first attempt, is
/// sent to a local web server that is asked over a Unix socket (SPIRE: spire-connection-attempts).
pub(crate) async fn trust(
    config: &NodeConfig,
    attempt: u32,
    started: std::time::SystemTime,
) -> Result<Trust, BootstrapError> {
    let bundle = match &config.bootstrap.source {
        TrustSource::Insecure => {
            tracing::warn!(
                "insecure_bootstrap is set: the first server that says it is ours will be believed"
            );
            return Ok(Trust::Insecure);
        }
        TrustSource::Path(path) => {
            let bytes = read_file(path).await.map_err(|error| {
                BootstrapError::Permanent(unreadable(path, &error).hint(
                    "plastron server bundle show on the server prints it; see trust_bundle_path",
                ))
            })?;
            parse(config, &bytes).map_err(|because| {
                BootstrapError::Permanent(invalid(&path.display().to_string(), &because))
            })?
        }
        TrustSource::Url { url, unix_socket } => {
            let bytes = download(config, url, unix_socket.as_deref(), attempt, started)
                .await
                .map_err(BootstrapError::Transient)?;
            parse(config, &bytes)
                .map_err(|because| BootstrapError::Permanent(invalid(url, &because)))?
        }
        TrustSource::WorkloadApi(socket) => from_workload_api(socket, &config.trust_domain)
            .await
            .map_err(BootstrapError::Transient)?,
    };
    if bundle.x509_authorities.is_empty() {
        return Err(BootstrapError::Permanent(invalid(
            "the bootstrap bundle",
            "it has no certificate",
        )));
    }
    Ok(Trust::Bundle(bundle))
}

/// At most one byte more than is taken, so that [`parse`] sees that there is too much.
async fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .await?;
    Ok(bytes)
}

fn parse(config: &NodeConfig, bytes: &[u8]) -> Result<Bundle, String> {
    if bytes.len() > MAX_BYTES {
        return Err("it is larger than 4 MiB".to_owned());
    }
    match config.bootstrap.format {
        BundleFormat::Pem => {
            let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
            Bundle::from_pem(config.trust_domain.clone(), text).map_err(|error| error.to_string())
        }
        BundleFormat::Spiffe => Bundle::from_spiffe_json(config.trust_domain.clone(), bytes)
            .map_err(|error| error.to_string()),
    }
}

async fn download(
    config: &NodeConfig,
    url: &str,
    unix_socket: Option<&Path>,
    attempt: u32,
    started: std::time::SystemTime,
) -> Result<Vec<u8>, Fault> {
    let failed = |because: &dyn std::fmt::Display| {
        Fault::new(
            Code::BootstrapUrlFailed,
            format!("the trust bundle at {url} cannot be fetched"),
        )
        .because(because)
    };
    let mut target = reqwest::Url::parse(url).map_err(|error| failed(&error))?;
    let mut client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(5));
    match unix_socket {
        Some(path) => {
            client = client.unix_socket(path);
            target
                .query_pairs_mut()
                .append_pair("spire-attest-mode", "bootstrap")
                .append_pair("spire-connection-attempts", &attempt.to_string())
                .append_pair("spire-attest-start-time", &rfc3339(started))
                .append_pair("spire-server-address", &config.server.address)
                .append_pair("spire-server-port", &config.server.port.to_string())
                .append_pair("spiffe-trust-domain", config.trust_domain.as_str());
        }
        None => client = client.https_only(true),
    }
    let client = client.build().map_err(|error| failed(&error))?;
    let mut response = client
        .get(target)
        .send()
        .await
        .map_err(|error| failed(&innermost(&error)))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(failed(&format!(
            "the server answered {}",
            response.status()
        )));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_BYTES {
            return Err(failed(&"it is larger than 4 MiB"));
        }
    }
    Ok(bytes)
}

/// A nested agent asks the agent above it.
async fn from_workload_api(socket: &Path, trust_domain: &TrustDomain) -> Result<Bundle, Fault> {
    let failed = |because: &dyn std::fmt::Display| {
        Fault::new(
            Code::BootstrapUrlFailed,
            format!(
                "the Workload API at {} gives no trust bundle of {trust_domain}",
                socket.display()
            ),
        )
        .because(because)
    };
    let fetch = async {
        let channel = proto::channel::connect_uds(socket)
            .await
            .map_err(|error| failed(&error))?;
        let mut request = tonic::Request::new(X509BundlesRequest {});
        request.metadata_mut().insert(
            "workload.spiffe.io",
            tonic::metadata::MetadataValue::from_static("true"),
        );
        let mut client = SpiffeWorkloadApiClient::new(channel);
        let answer = client
            .fetch_x509_bundles(request)
            .await
            .map_err(|status| failed(&status.message()))?
            .into_inner()
            .message()
            .await;
        let bundles = answer
            .map_err(|status| failed(&status.message()))?
            .ok_or_else(|| failed(&"it sent nothing"))?
            .bundles;
        let der = bundles
            .get(&trust_domain.id_string())
            .ok_or_else(|| failed(&"it knows other trust domains only"))?;
        let mut bundle = Bundle::new(trust_domain.clone());
        for certificate in Certificate::parse_concatenated(der).map_err(|error| failed(&error))? {
            bundle.add_x509_authority(certificate);
        }
        Ok(bundle)
    };
    tokio::time::timeout(WORKLOAD_API_TIMEOUT, fetch)
        .await
        .map_err(|_elapsed| failed(&"it does not answer"))?
}

fn unreadable(path: &Path, because: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        Code::BootstrapBundleInvalid,
        format!("the trust bundle {} cannot be read", path.display()),
    )
    .because(because)
}

fn invalid(name: &str, because: &str) -> Fault {
    Fault::new(
        Code::BootstrapBundleInvalid,
        format!("the trust bundle {name} cannot be used"),
    )
    .because(because)
    .hint("check trust_bundle_format: pem (certificates) or spiffe (JSON)")
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
