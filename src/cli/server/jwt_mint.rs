//! `jwt mint`: a JWT-SVID for any ID of the trust domain.

use std::path::Path;

use config::fault::Code;
use proto::spire::api::server::svid::v1::MintJwtsvidRequest;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use serde_json::json;

use super::x509_mint::{is_capped, ttl_seconds};
use crate::cli::args::Args;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::{self, Output};
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};
use crate::cli::{ids, pem, timefmt};

const FLAGS: &[Flag] = &[
    flag(
        "spiffeID",
        "spiffe-id",
        Kind::Text,
        "SPIFFE ID of the JWT-SVID",
    ),
    flag(
        "audience",
        "audience",
        Kind::List,
        "Audience of the JWT-SVID (repeatable; prefer one)",
    ),
    flag(
        "ttl",
        "ttl",
        Kind::Duration,
        "Its lifetime; the server's default when absent",
    ),
    flag(
        "write",
        "write",
        Kind::Text,
        "File for the token, in place of standard output",
    ),
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Server,
        path: &["jwt", "mint"],
        about: "Mint a JWT-SVID",
        flags: FLAGS,
        endpoint: Endpoint::ServerAdmin,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    if args.optional("spiffeID").is_none() {
        return Err(CliError::usage("spiffeID must be specified"));
    }
    let audience = args.list("audience");
    if audience.is_empty() {
        return Err(CliError::wrong(
            Code::NoAudience,
            "",
            "at least one audience must be specified",
        ));
    }
    let ttl = ttl_seconds(&args)?;
    let channel = context.channel().await?;
    let id = ids::expand(&context, &channel, args.text("spiffeID")).await?;
    let reply = SvidClient::new(channel)
        .mint_jwtsvid(MintJwtsvidRequest {
            id: Some(id),
            audience,
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
    match args.optional("write") {
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
