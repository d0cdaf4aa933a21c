//! What the Workload API commands share: the client with its header and time limit, and an X.509 update made readable.

use std::sync::Arc;
use std::time::Duration;

use proto::workload::X509svidResponse;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::{BundleSource, Certificate, KeyPair, SpiffeId, TrustDomain, X509Bundle};
use tonic::transport::Channel;

use crate::cli::args::Args;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::Flag;
use crate::cli::{duration, timefmt};

pub(super) const TIMEOUT: Flag<Duration> =
    Flag::timeout("timeout", "timeout", "How long to wait for an answer").or("5s");

pub(super) type Client = SpiffeWorkloadApiClient<Channel>;

/// A request with the header that the Workload Endpoint standard asks for (§3) and the command's time limit.
pub(super) fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(
        "workload.spiffe.io",
        tonic::metadata::MetadataValue::from_static("true"),
    );
    if !timeout.is_zero() {
        request.set_timeout(timeout);
    }
    request
}

pub(super) async fn client(context: &Context) -> Result<Client, CliError> {
    Ok(SpiffeWorkloadApiClient::new(context.channel().await?)
        .max_decoding_message_size(64 * 1024 * 1024))
}

/// Awaits an answer no longer than `-timeout` says.
pub(super) async fn in_time<T>(
    args: &Args,
    answer: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, CliError> {
    let limit = args.get(TIMEOUT);
    let late = || tonic::Status::deadline_exceeded("context deadline exceeded");
    let result = if limit.is_zero() {
        answer.await
    } else {
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_late| Err(late()))
    };
    result.map_err(|status| CliError::status("", status))
}

/// One X509-SVID of an update, parsed and checked against its own bundle.
pub(super) struct Identity {
    pub(super) id: String,
    pub(super) hint: String,
    pub(super) chain: Vec<Certificate>,
    pub(super) key_der: Vec<u8>,
    pub(super) bundle: Vec<Certificate>,
}

/// An X.509 update, checked: what a command prints has been verified first.
pub(super) struct Update {
    pub(super) identities: Vec<Identity>,
    /// By trust domain ID, sorted.
    pub(super) federated: Vec<(String, Vec<Certificate>)>,
}

pub(super) fn read(context: &Context, response: &X509svidResponse) -> Result<Update, CliError> {
    if response.svids.is_empty() {
        return Err(CliError::failed("workload response contains no svids"));
    }
    let mut federated = Vec::new();
    for (domain, der) in &response.federated_bundles {
        let certificates = Certificate::parse_concatenated(der).map_err(|error| {
            CliError::failed(format!(
                "failed to parse bundle for federated domain {domain:?}: {error}"
            ))
        })?;
        federated.push((domain.clone(), certificates));
    }
    federated.sort_by(|a, b| a.0.cmp(&b.0));
    let mut identities = Vec::new();
    for (index, svid) in response.svids.iter().enumerate() {
        let identity = identity(context, svid).map_err(|error| {
            CliError::failed(format!(
                "failed to parse svid entry {index} for spiffe id {:?}: {error}",
                svid.spiffe_id
            ))
        })?;
        identities.push(identity);
    }
    Ok(Update {
        identities,
        federated,
    })
}

fn identity(context: &Context, svid: &proto::workload::X509svid) -> Result<Identity, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::failed(error.to_string());
    let id = SpiffeId::parse(&svid.spiffe_id).map_err(|error| failed(&error))?;
    let chain = Certificate::parse_concatenated(&svid.x509_svid).map_err(|error| failed(&error))?;
    let key = KeyPair::from_pkcs8_der(&svid.x509_svid_key)
        .map_err(|error| CliError::failed(format!("failed to parse private key: {error}")))?;
    let bundle = Certificate::parse_concatenated(&svid.bundle)
        .map_err(|error| CliError::failed(format!("failed to parse trust bundle: {error}")))?;
    if bundle.is_empty() {
        return Err(CliError::failed("no certificates in trust bundle"));
    }
    let ders: Vec<&[u8]> = chain.iter().map(Certificate::der).collect();
    let source = OwnBundle::new(&id.trust_domain(), &bundle);
    let verified = spiffe::verify_svid(&ders, &source, context.clock.now()).map_err(|error| {
        CliError::failed(format!(
            "{:?} SVID failed verification against bundle: {error}",
            svid.spiffe_id
        ))
    })?;
    if *verified.id() != id || verified.leaf().public_key() != key.public_key() {
        return Err(CliError::failed(
            "the certificate is not for this SPIFFE ID and key",
        ));
    }
    Ok(Identity {
        id: svid.spiffe_id.clone(),
        hint: svid.hint.clone(),
        chain,
        key_der: svid.x509_svid_key.clone(),
        bundle,
    })
}

/// The bundle that came with an identity, for its own trust domain alone.
#[derive(Debug)]
struct OwnBundle(Arc<X509Bundle>);

impl OwnBundle {
    fn new(domain: &TrustDomain, certificates: &[Certificate]) -> Self {
        let mut bundle = X509Bundle::new(domain.clone());
        certificates
            .iter()
            .cloned()
            .for_each(|certificate| bundle.add(certificate));
        Self(Arc::new(bundle))
    }
}

impl BundleSource for OwnBundle {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        (self.0.trust_domain() == trust_domain).then(|| Arc::clone(&self.0))
    }
}

/// SPIRE's text of an update.
pub(super) fn text(update: &Update, after: Duration) -> String {
    let count = update.identities.len();
    let mut text = format!(
        "Received {count} svid{} after {}\n",
        if count == 1 { "" } else { "s" },
        duration::go_text(after)
    );
    let life = |certificate: &Certificate| {
        let moment = |at| timefmt::go_text(spiffe::clock::unix_seconds(at));
        (
            moment(certificate.not_before()),
            moment(certificate.not_after()),
        )
    };
    for identity in &update.identities {
        text.push_str(&format!("\nSPIFFE ID:\t\t{}\n", identity.id));
        if !identity.hint.is_empty() {
            text.push_str(&format!("Hint:\t\t\t{}\n", identity.hint));
        }
        for (index, certificate) in identity.chain.iter().enumerate() {
            let (from, until) = life(certificate);
            match index {
                0 => text.push_str(&format!("SVID Valid After:\t{from}\nSVID Valid Until:\t{until}\n")),
                n => text.push_str(&format!("Intermediate #{n} Valid After:\t{from}\nIntermediate #{n} Valid Until:\t{until}\n")),
            }
        }
        let own = std::iter::once((String::new(), &identity.bundle));
        for (label, bundle) in own.chain(
            update
                .federated
                .iter()
                .map(|(domain, bundle)| (format!("[{domain}] "), bundle)),
        ) {
            for (index, certificate) in bundle.iter().enumerate() {
                let (from, until) = life(certificate);
                let n = index + 1;
                text.push_str(&format!(
                    "{label}CA #{n} Valid After:\t{from}\n{label}CA #{n} Valid Until:\t{until}\n"
                ));
            }
        }
    }
    text.push('\n');
    text
}
