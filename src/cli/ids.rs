//! SPIFFE IDs between the words of the command line and the wire; natively a short form (`web`) is completed with the
//! server's trust domain.

use config::fault::Code;
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::types::{BundleMask, Spiffeid};
use spiffe::{SpiffeId, TrustDomain};
use tonic::transport::Channel;

use super::context::{Context, Frontend};
use super::error::CliError;

/// The wire form of a parsed ID.
pub(crate) fn to_wire(id: &SpiffeId) -> Spiffeid {
    Spiffeid {
        trust_domain: id.trust_domain().as_str().to_owned(),
        path: id.path().to_owned(),
    }
}

/// The text of a wire ID; empty when absent.
pub(crate) fn text(id: Option<&Spiffeid>) -> String {
    id.map_or_else(String::new, |id| {
        format!("spiffe://{}{}", id.trust_domain, id.path)
    })
}

/// Parses a full SPIFFE ID.
pub(crate) fn parse(text: &str) -> Result<Spiffeid, CliError> {
    SpiffeId::parse(text)
        .map(|id| to_wire(&id))
        .map_err(|error| CliError::wrong(Code::InvalidSpiffeId, text, error.to_string()))
}

/// Parses a full SPIFFE ID or, natively, a short one.
pub(crate) async fn expand(
    context: &Context,
    channel: &Channel,
    text: &str,
) -> Result<Spiffeid, CliError> {
    if context.frontend == Frontend::Spire || text.contains("://") {
        return parse(text);
    }
    let domain = trust_domain(channel).await?;
    let path = format!("/{}", text.strip_prefix('/').unwrap_or(text));
    SpiffeId::from_path(&domain, &path)
        .map(|id| to_wire(&id))
        .map_err(|error| CliError::wrong(Code::InvalidSpiffeId, text, error.to_string()))
}

/// The trust domain of the server on the channel.
pub(crate) async fn trust_domain(channel: &Channel) -> Result<TrustDomain, CliError> {
    let request = GetBundleRequest {
        output_mask: Some(BundleMask::default()),
    };
    let bundle = BundleClient::new(channel.clone())
        .get_bundle(request)
        .await
        .map_err(|status| CliError::status("cannot ask the server for its trust domain", status))?
        .into_inner();
    TrustDomain::parse(&bundle.trust_domain).map_err(|error| {
        CliError::failed(format!(
            "the server names the trust domain {:?}: {error}",
            bundle.trust_domain
        ))
    })
}
