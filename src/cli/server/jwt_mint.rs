//! `jwt mint`: a JWT-SVID for any ID of the trust domain.

use std::path::Path;
use std::time::Duration;

use config::fault::Code;
use proto::spire::api::server::svid::v1::MintJwtsvidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use serde_json::json;

use super::x509_mint::{is_capped, ttl_seconds};
use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{self, Output};
use crate::cli::{ids, pem, timefmt};

const SPIFFE_ID: Flag<String> =
    Flag::text("spiffeID", "spiffe-id", "SPIFFE ID of the JWT-SVID").value("SPIFFE-ID");
const AUDIENCE: Flag<Vec<String>> = Flag::list(
    "audience",
    "audience",
    "Audience of the JWT-SVID (repeatable; prefer one)",
)
.value("AUDIENCE");
const TTL: Flag<Duration> = Flag::duration(
    "ttl",
    "ttl",
    "Its lifetime; the server's default when absent",
);
const WRITE: Flag<String> = Flag::text(
    "write",
    "write",
    "File for the token, in place of standard output",
)
.value("DIRECTORY");

const FLAGS: &[FlagSpec] = &[SPIFFE_ID.spec, AUDIENCE.spec, TTL.spec, WRITE.spec];

pub(crate) const COMMAND: Command =
    Command::of_server(&["jwt", "mint"], "Mint a JWT-SVID", |context, args| {
        Box::pin(run(context, args))
    })
    .flags(FLAGS)
    .examples("  plastron server jwt mint --spiffe-id web --audience db --ttl 5m");

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    if args.optional(SPIFFE_ID).is_none() {
        return Err(CliError::usage_of(
            "spiffeID must be specified",
            "--spiffe-id must be specified",
        ));
    }
    let audience = args.get(AUDIENCE);
    if audience.is_empty() {
        return Err(CliError::wrong(
            Code::NoAudience,
            "",
            "at least one audience must be specified",
        ));
    }
    let ttl = ttl_seconds(&args)?;
    let channel = context.channel().await?;
    let id = ids::expand(&context, &channel, args.get(SPIFFE_ID)).await?;
    let reply = SvidClient::new(channel)
        .mint_jwtsvid(MintJwtsvidRequest {
            id: Some(id),
            audience: audience.to_vec(),
            ttl,
        })
        .await
        .map_err(|status| CliError::status("unable to mint SVID", status))?
        .into_inner();
    let svid = reply
        .svid
        .as_ref()
        .filter(|svid| !svid.token.is_empty())
        .ok_or_else(|| CliError::failed("server response missing token"))?;
    if is_capped(&context, svid.expires_at, &args) {
        output::say(&format!(
            "JWT-SVID lifetime was capped shorter than specified ttl; expires {:?}",
            timefmt::rfc3339(svid.expires_at)
        ));
    }
    match args.optional(WRITE) {
        Some(path) => {
            pem::write_file(Path::new(path), &svid.token, true)
                .map_err(|error| error.within("unable to write token"))?;
            Ok(Output {
                replies: vec![json!({ "token": path })],
                ..Output::text(format!("JWT-SVID written to {path}"))
            })
        }
        None => Output::text(svid.token.clone())
            .reply("spire.api.server.svid.v1.MintJWTSVIDResponse", &reply),
    }
}
