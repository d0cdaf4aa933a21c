//! `token generate`: a join token, with which one node attests once.

use proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;

use crate::cli::args::Args;
use crate::cli::context::{Context, Face};
use crate::cli::error::CliError;
use crate::cli::output::{Output, Table};
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};
use crate::cli::{ids, timefmt};

const FLAGS: &[Flag] = &[
    flag(
        "ttl",
        "ttl",
        Kind::Seconds,
        "How long the token can be used",
    )
    .or("10m")
    .or_on_shim("600"),
    flag(
        "spiffeID",
        "spiffe-id",
        Kind::Text,
        "Alias SPIFFE ID for the node, which entries can use as their parent ID",
    ),
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Server,
        path: &["token", "generate"],
        about: "Generate a join token",
        flags: FLAGS,
        endpoint: Endpoint::ServerAdmin,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let ttl = args.seconds("ttl")?;
    let channel = context.channel().await?;
    let agent_id = match args.optional("spiffeID") {
        Some(id) => Some(ids::expand(&context, &channel, id).await?),
        None => None,
    };
    let unnamed = agent_id.is_none();
    let domain = match context.face {
        Face::Native => Some(ids::trust_domain(&channel).await?),
        Face::Shim => None,
    };
    let token = AgentClient::new(channel)
        .create_join_token(CreateJoinTokenRequest {
            ttl,
            token: String::new(),
            agent_id,
        })
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    let mut text = format!("Token: {}\n", token.value);
    if unnamed {
        text.push_str("Warning: Missing SPIFFE ID.\n");
    }
    let mut output = Output::text(text).reply("spire.api.types.JoinToken", &token)?;
    output.table = Some(Table {
        headings: vec!["TOKEN", "EXPIRES"],
        rows: vec![vec![
            token.value.clone(),
            timefmt::rfc3339(token.expires_at),
        ]],
    });
    if let Some(domain) = domain {
        output = output.note(format!(
            "The token works once. Put it into a file on the node and start the agent there:\n  \
             plastron agent run --join-token-file FILE\n\
             Without a configuration file:\n  \
             plastron agent run --trust-domain {domain} --data-dir DIR --server-address HOST --trust-bundle FILE --join-token-file FILE",
            domain = domain.as_str()
        ));
    }
    Ok(output)
}
