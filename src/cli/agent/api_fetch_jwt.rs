//! `api fetch jwt` and `api validate jwt`: JWT-SVIDs as the calling process would get and check them.

use config::fault::Code;
use proto::workload::{JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest};

use super::workload::{TIMEOUT, client, in_time, request};
use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{Output, proto_json};

const AUDIENCE: Flag<Vec<String>> = Flag::comma_list(
    "audience",
    "audience",
    "Who the JWT-SVID is for; several are separated by commas",
)
.value("AUDIENCE");
const SPIFFE_ID: Flag<String> = Flag::text(
    "spiffeID",
    "spiffe-id",
    "Only this one of the process's identities",
)
.value("SPIFFE-ID");
const FORMAT: Flag<String> = Flag::text("format", "", "Deprecated; use -output");
const TOKEN_AUDIENCE: Flag<String> = Flag::text(
    "audience",
    "audience",
    "The audience that has to be among the token's",
)
.value("AUDIENCE");
const SVID: Flag<String> = Flag::text("svid", "svid", "The JWT-SVID").value("TOKEN");

const FETCH: &[FlagSpec] = &[AUDIENCE.spec, SPIFFE_ID.spec, TIMEOUT.spec, FORMAT.spec];

const VALIDATE: &[FlagSpec] = &[TOKEN_AUDIENCE.spec, SVID.spec, TIMEOUT.spec];

pub(crate) const FETCH_COMMAND: Command = Command::of_workload(
    &["api", "fetch", "jwt"],
    "Fetch a JWT-SVID from the Workload API",
    |context, args| Box::pin(fetch(context, args)),
)
.flags(FETCH)
.examples("  plastron agent api fetch jwt --audience db");

pub(crate) const VALIDATE_COMMAND: Command = Command::of_workload(
    &["api", "validate", "jwt"],
    "Validate a JWT-SVID through the Workload API",
    |context, args| Box::pin(validate(context, args)),
)
.flags(VALIDATE);

async fn fetch(context: Context, args: Args) -> Result<Output, CliError> {
    let audience: Vec<String> = args
        .get(AUDIENCE)
        .iter()
        .filter(|name| !name.is_empty())
        .cloned()
        .collect();
    if audience.is_empty() {
        return Err(CliError::wrong(
            Code::NoAudience,
            "",
            "audience must be specified",
        ));
    }
    let mut client = client(&context).await?;
    let bundles = in_time(&args, async {
        let mut stream = client
            .fetch_jwt_bundles(request(JwtBundlesRequest {}, std::time::Duration::ZERO))
            .await?
            .into_inner();
        stream
            .message()
            .await?
            .ok_or_else(|| tonic::Status::unavailable("the stream ended without an answer"))
    })
    .await
    .map_err(|error| match error {
        // (SPIRE: the words stand before a connection that failed, not before a refusal.)
        CliError::Status { status, .. } if status.code() == tonic::Code::Unavailable => {
            CliError::status("failed to receive JWT bundles", *status)
        }
        other => other,
    })?;
    let ask = JwtsvidRequest {
        audience,
        spiffe_id: args.get(SPIFFE_ID).to_owned(),
    };
    let reply = in_time(&args, client.fetch_jwtsvid(request(ask, args.get(TIMEOUT))))
        .await?
        .into_inner();
    let mut text = String::new();
    for svid in &reply.svids {
        text.push_str(&format!("token({}):\n\t{}\n", svid.spiffe_id, svid.svid));
        if !svid.hint.is_empty() {
            text.push_str(&format!("hint({}):\n\t{}\n", svid.spiffe_id, svid.hint));
        }
    }
    let mut sorted: Vec<_> = bundles.bundles.iter().collect();
    sorted.sort();
    for (domain, jwks) in sorted {
        text.push_str(&format!(
            "bundle({domain}):\n\t{}\n",
            String::from_utf8_lossy(jwks)
        ));
    }
    Output::text(text)
        .reply("JWTSVIDResponse", &reply)?
        .reply("JWTBundlesResponse", &bundles)
}

async fn validate(context: Context, args: Args) -> Result<Output, CliError> {
    let (audience, svid) = (args.get(TOKEN_AUDIENCE), args.get(SVID));
    if audience.is_empty() {
        return Err(CliError::wrong(
            Code::NoAudience,
            "",
            "audience must be specified",
        ));
    }
    if svid.is_empty() {
        return Err(CliError::usage("svid must be specified"));
    }
    let ask = ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    };
    let mut client = client(&context).await?;
    let reply = in_time(
        &args,
        client.validate_jwtsvid(request(ask, args.get(TIMEOUT))),
    )
    .await
    .map_err(|error| match error {
        CliError::Status { status, .. } if status.code() == tonic::Code::InvalidArgument => {
            CliError::Check {
                code: Code::InvalidJwtSvid,
                text: format!("SVID is not valid: {}", status.message()),
            }
        }
        CliError::Status { status, .. } => CliError::Status {
            context: "unable to validate JWT SVID".to_owned(),
            status,
        },
        other => other,
    })?;
    let reply = reply.into_inner();
    let claims = match &reply.claims {
        Some(claims) => proto_json("google.protobuf.Struct", claims)?,
        None => serde_json::Value::Null,
    };
    let text = format!(
        "SVID is valid.\nSPIFFE ID : {}\nClaims    : {claims}\n",
        reply.spiffe_id
    );
    Output::text(text).reply("ValidateJWTSVIDResponse", &reply)
}
