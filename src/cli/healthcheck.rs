//! `healthcheck` of both daemons, over gRPC health on their sockets.

use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::args::Args;
use super::context::{Context, Face};
use super::error::CliError;
use super::output::{self, Output};
use super::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[
    flag("shallow", "shallow", Kind::Switch, "A less strict check"),
    flag("verbose", "verbose", Kind::Switch, "Print each step"),
];

pub(crate) fn server_command() -> Command {
    Command {
        program: Program::Server,
        path: &["healthcheck"],
        about: "Check server health",
        flags: FLAGS,
        endpoint: Endpoint::ServerAdmin,
        formats: false,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

pub(crate) fn agent_command() -> Command {
    Command {
        program: Program::Agent,
        about: "Check agent health",
        endpoint: Endpoint::Workload,
        ..server_command()
    }
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let who = context.program.word();
    let verbose = args.switch("verbose");
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
            if context.face == Face::Native {
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
    CliError::Check(match context.program {
        Program::Server => format!("server is unhealthy: {why}"),
        Program::Agent | Program::Plastron => format!("Agent is unhealthy: {why}"),
    })
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
