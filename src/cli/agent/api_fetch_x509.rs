//! `api fetch x509` and `api watch`: X509-SVIDs as the calling process would get them.

use std::path::Path;
use std::time::{Duration, SystemTime};

use proto::workload::{X509svidRequest, X509svidResponse};

use super::workload::{TIMEOUT, Update, client, in_time, read, request, text};
use crate::cli::args::Args;
use crate::cli::context::{Context, Format};
use crate::cli::error::CliError;
use crate::cli::output::{self, Output};
use crate::cli::pem;
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[
    TIMEOUT,
    flag("silent", "silent", Kind::Switch, "Print nothing"),
    flag(
        "write",
        "write",
        Kind::Text,
        "Directory for svid.N.pem, svid.N.key and bundle.N.pem",
    ),
];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Agent,
        path: &["api", "fetch", "x509"],
        about: "Fetch X509-SVIDs from the Workload API",
        flags: FLAGS,
        endpoint: Endpoint::Workload,
        formats: true,
        surface: Surface::Both,
        run: |context, args| Box::pin(run(context, args)),
    }
}

pub(crate) fn watch_command() -> Command {
    Command {
        path: &["api", "watch"],
        about: "Print each X.509 update of the Workload API until interrupted",
        flags: &[],
        formats: false,
        run: |context, args| Box::pin(watch(context, args)),
        ..command()
    }
}

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let start = context.clock.now();
    let response = fetch(&context, &args).await?;
    let after = since(&context, start);
    let output = Output::default().reply("X509SVIDResponse", &response)?;
    if matches!(context.format, Format::Json | Format::Yaml) {
        return Ok(output);
    }
    let update = read(&context, &response)?;
    let mut shown = if args.switch("silent") {
        String::new()
    } else {
        text(&update, after)
    };
    if let Some(directory) = args.optional("write") {
        shown.push_str(&write(&update, Path::new(directory))?);
    }
    Ok(Output {
        text: shown,
        ..output
    })
}

async fn fetch(context: &Context, args: &Args) -> Result<X509svidResponse, CliError> {
    let mut client = client(context).await?;
    in_time(args, async {
        let mut stream = client
            .fetch_x509svid(request(X509svidRequest {}, Duration::ZERO))
            .await?
            .into_inner();
        stream
            .message()
            .await?
            .ok_or_else(|| tonic::Status::unavailable("the stream ended without an answer"))
    })
    .await
}

fn since(context: &Context, start: SystemTime) -> Duration {
    context
        .clock
        .now()
        .duration_since(start)
        .unwrap_or_default()
}

/// Writes the files of an update and says which; keys are for their owner alone.
fn write(update: &Update, directory: &Path) -> Result<String, CliError> {
    let mut said = String::new();
    for (i, identity) in update.identities.iter().enumerate() {
        let (svid, key, bundle) = (
            directory.join(format!("svid.{i}.pem")),
            directory.join(format!("svid.{i}.key")),
            directory.join(format!("bundle.{i}.pem")),
        );
        let certificates = |list: &[spiffe::Certificate]| {
            pem::certificates(list.iter().map(|certificate| certificate.der()))
        };
        said.push_str(&format!("Writing SVID #{i} to file {}.\n", svid.display()));
        pem::write_file(&svid, &certificates(&identity.chain), false)?;
        said.push_str(&format!("Writing key #{i} to file {}.\n", key.display()));
        pem::write_file(&key, &pem::block("PRIVATE KEY", &identity.key_der), true)?;
        said.push_str(&format!(
            "Writing bundle #{i} to file {}.\n",
            bundle.display()
        ));
        pem::write_file(&bundle, &certificates(&identity.bundle), false)?;
        for (j, (domain, federated)) in update.federated.iter().enumerate() {
            let path = directory.join(format!("federated_bundle.{i}.{j}.pem"));
            said.push_str(&format!(
                "Writing federated bundle #{j} for trust domain {domain} to file {}.\n",
                path.display()
            ));
            pem::write_file(&path, &certificates(federated), false)?;
        }
    }
    Ok(said)
}

/// Watches until Ctrl-C. A broken stream is dialled again with a growing pause, as SDKs do; a call that can never
/// succeed (no header, not implemented) ends it.
async fn watch(context: Context, _args: Args) -> Result<Output, CliError> {
    let watching = async {
        let mut pause = Duration::from_secs(1);
        loop {
            let Err(error) = follow(&context, &mut pause).await else {
                continue;
            };
            if let CliError::Status { status, .. } = &error
                && matches!(
                    status.code(),
                    tonic::Code::InvalidArgument | tonic::Code::Unimplemented
                )
            {
                return Err(error);
            }
            output::say(&error.to_string());
            tokio::time::sleep(pause).await;
            pause = (pause + Duration::from_secs(1)).min(Duration::from_secs(30));
        }
    };
    tokio::select! {
        ended = watching => ended,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| CliError::failed(format!("cannot listen for Ctrl-C: {error}")))?;
            Ok(Output::default())
        }
    }
}

async fn follow(context: &Context, pause: &mut Duration) -> Result<(), CliError> {
    let mut last = context.clock.now();
    let mut stream = client(context)
        .await?
        .fetch_x509svid(request(X509svidRequest {}, Duration::ZERO))
        .await
        .map_err(|status| CliError::status("", status))?
        .into_inner();
    while let Some(response) = stream
        .message()
        .await
        .map_err(|status| CliError::status("", status))?
    {
        *pause = Duration::from_secs(1);
        let update = read(context, &response)?;
        output::write_out(&text(&update, since(context, last)))?;
        last = context.clock.now();
    }
    Ok(())
}
