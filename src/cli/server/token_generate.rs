//! `token generate`: a join token, with which one node attests once.

use proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use proto::spire::api::server::agent::v1::agent_client::AgentClient;

use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::context::{Context, Frontend};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{Output, Table};
use crate::cli::{ids, timefmt};

const TTL: Flag<i64> = Flag::lifetime("ttl", "ttl", "How long the token can be used").or("10m");
const SPIFFE_ID: Flag<String> = Flag::text(
    "spiffeID",
    "spiffe-id",
    "Alias SPIFFE ID for the node, which entries can use as their parent ID",
)
.value("SPIFFE-ID");

const FLAGS: &[FlagSpec] = &[TTL.or_on_spire("600").spec, SPIFFE_ID.spec];

pub(crate) const COMMAND: Command = Command::of_server(
    &["token", "generate"],
    "Generate a join token",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples(
    "\
  plastron server token generate --ttl 10m
  plastron server token generate --spiffe-id nodes/web",
);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let ttl = args.seconds(TTL)?;
    let channel = context.channel().await?;
    let agent_id = match args.optional(SPIFFE_ID) {
        Some(id) => Some(ids::expand(&context, &channel, id).await?),
        None => None,
    };
    let unnamed = agent_id.is_none();
    let domain = match context.frontend {
        Frontend::Native => Some(ids::trust_domain(&channel).await?),
        Frontend::Spire => None,
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
    let table = Table {
        headings: vec!["TOKEN", "EXPIRES"],
        rows: vec![vec![
            token.value.clone(),
            timefmt::rfc3339(token.expires_at),
        ]],
    };
    let mut output =
        Output::text_and_table(text, table).reply("spire.api.types.JoinToken", &token)?;
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
