//! `bundle show`, `bundle list` and `bundle count`: the trust domain's own bundle and the federated ones.

use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    CountBundlesRequest, GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
};

use super::bundle::{FORMAT, ID, format, text};
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;

pub(crate) const SHOW_COMMAND: Command = Command::of_server(
    &["bundle", "show"],
    "Print the trust domain's own bundle",
    |context, args| Box::pin(show(context, args)),
)
.flags(&[FORMAT.spec])
.object(Object::Bundle)
.aliases(&["get"]);

pub(crate) const LIST_COMMAND: Command = Command::of_server(
    &["bundle", "list"],
    "Print the federated bundles",
    |context, args| Box::pin(list(context, args)),
)
.flags(&[ID.spec, FORMAT.spec])
.object(Object::Bundle);

pub(crate) const COUNT_COMMAND: Command = Command::of_server(
    &["bundle", "count"],
    "Count the bundles, including this trust domain's own",
    |context, args| Box::pin(count(context, args)),
)
.object(Object::Bundle);

async fn show(context: Context, args: Args) -> Result<Output, CliError> {
    let reply = BundleClient::new(context.channel().await?)
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let text = if context.prints_data() {
        String::new()
    } else {
        text(&reply, format(args.get(FORMAT))?, false)?
    };
    Output::text(text).reply("spire.api.types.Bundle", &reply)
}

async fn list(context: Context, args: Args) -> Result<Output, CliError> {
    let mut client = BundleClient::new(context.channel().await?);
    let pretty = !context.prints_data();
    if let Some(id) = args.optional(ID) {
        let request = GetFederatedBundleRequest {
            trust_domain: id.to_owned(),
            output_mask: None,
        };
        let reply = client
            .get_federated_bundle(request)
            .await
            .map_err(|status| CliError::status("", status))?
            .into_inner();
        let text = if pretty {
            text(&reply, format(args.get(FORMAT))?, false)?
        } else {
            String::new()
        };
        return Output::text(text).reply("spire.api.types.Bundle", &reply);
    }
    let reply = client
        .list_federated_bundles(ListFederatedBundlesRequest::default())
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let mut parts = Vec::new();
    if pretty {
        // (SPIRE: a format that does not exist is found when there is something to print.)
        for bundle in &reply.bundles {
            parts.push(text(bundle, format(args.get(FORMAT))?, true)?);
        }
    }
    let output = Output::text(parts.join("\n")).reply(
        "spire.api.server.bundle.v1.ListFederatedBundlesResponse",
        &reply,
    )?;
    Ok(match reply.bundles.is_empty() {
        true => output.note("no bundle of another trust domain; bring one in with: plastron server bundle set --id TRUST-DOMAIN --path FILE"),
        false => output,
    })
}

async fn count(context: Context, _args: Args) -> Result<Output, CliError> {
    let reply = BundleClient::new(context.channel().await?)
        .count_bundles(CountBundlesRequest {})
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let noun = if reply.count == 1 {
        "bundle"
    } else {
        "bundles"
    };
    Output::text(format!("{} {noun}", reply.count))
        .reply("spire.api.server.bundle.v1.CountBundlesResponse", &reply)
}
