//! `healthcheck` of both daemons, over gRPC health on their sockets.

use config::fault::Code;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::args::Args;
use super::command::{Command, Prints, Program};
use super::context::{Context, Frontend};
use super::error::CliError;
use super::flag::{Flag, FlagSpec};
use super::output::{self, Output};

const SHALLOW: Flag<bool> = Flag::switch("shallow", "shallow", "A less strict check");
const VERBOSE: Flag<bool> = Flag::switch("verbose", "verbose", "Print each step");

const FLAGS: &[FlagSpec] = &[SHALLOW.spec, VERBOSE.spec];

pub(crate) const SERVER_COMMAND: Command =
    Command::of_server(&["healthcheck"], "Check server health", |context, args| {
        Box::pin(run(context, args))
    })
    .flags(FLAGS)
    .prints(Prints::DataNatively);

pub(crate) const AGENT_COMMAND: Command =
    Command::of_workload(&["healthcheck"], "Check agent health", |context, args| {
        Box::pin(run(context, args))
    })
    .flags(FLAGS)
    .prints(Prints::DataNatively);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let who = context.program.word();
    let verbose = args.get(VERBOSE);
    if verbose && !context.prints_data() {
        output::write_out(&format!("Checking {who} health...\n"))?;
    }
    match check(&context).await {
        Ok(ServingStatus::Serving) => {
            let name = if context.program == Program::Server {
                "Server"
            } else {
                "Agent"
            };
            Ok(Output {
                replies: vec![json!({"healthy": true})],
                ..Output::text(format!("{name} is healthy."))
            })
        }
        Ok(status) => Err(unhealthy(
            &context,
            &format!("{who} returned status \"{}\"", status.as_str_name()),
        )),
        Err(error) => {
            let error = context.explained(error);
            if context.frontend == Frontend::Native {
                return Err(error);
            }
            if verbose {
                output::say(&format!("Failed to check health: {error}"));
            }
            Err(unhealthy(&context, "unable to determine health"))
        }
    }
}

fn unhealthy(context: &Context, why: &str) -> CliError {
    let text = match context.program {
        Program::Server => format!("server is unhealthy: {why}"),
        Program::Agent | Program::Plastron => format!("Agent is unhealthy: {why}"),
    };
    CliError::Check {
        code: Code::CheckFailed,
        text,
    }
}

async fn check(context: &Context) -> Result<ServingStatus, CliError> {
    let reply = HealthClient::new(context.channel().await?)
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .map_err(|status| CliError::status("", status))?;
    Ok(reply.into_inner().status())
}
