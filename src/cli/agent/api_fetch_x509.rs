//! `api fetch x509` and `api watch`: X509-SVIDs as the calling process would get them.

use std::path::Path;
use std::time::{Duration, SystemTime};

use proto::workload::{X509svidRequest, X509svidResponse};

use super::workload::{TIMEOUT, Update, client, in_time, read, request, text};
use crate::cli::args::Args;
use crate::cli::command::{Command, Endpoint, Kind, Prints, Program};
use crate::cli::context::{Context, Frontend};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::native::{self, error_report};
use crate::cli::output::{self, Output};
use crate::cli::pem;

const SILENT: Flag<bool> = Flag::switch("silent", "silent", "Print nothing");
const WRITE: Flag<String> = Flag::text(
    "write",
    "write",
    "Directory for svid.N.pem, svid.N.key and bundle.N.pem",
)
.value("DIRECTORY");

const FLAGS: &[FlagSpec] = &[TIMEOUT.spec, SILENT.spec, WRITE.spec];

pub(crate) const COMMAND: Command = Command::of_workload(
    &["api", "fetch", "x509"],
    "Fetch X509-SVIDs from the Workload API",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples(
    "\
  plastron agent api fetch x509
  plastron agent api fetch x509 --silent --write /run/app",
);

pub(crate) const WATCH_COMMAND: Command = Command::new(
    Program::Agent,
    Kind::Watch(Endpoint::Workload),
    &["api", "watch"],
    "Print each X.509 update of the Workload API until interrupted",
    |context, args| Box::pin(watch(context, args)),
)
.prints(Prints::DataNatively);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let start = context.clock.now();
    let response = fetch(&context, &args).await?;
    let after = since(&context, start);
    if context.prints_data() {
        return Output::default().reply("X509SVIDResponse", &response);
    }
    let update = read(&context, &response)?;
    if !args.get(SILENT) {
        output::write_out(&text(&update, after))?;
    }
    if let Some(directory) = args.optional(WRITE) {
        write(&update, Path::new(directory))?;
    }
    Ok(Output::default())
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
fn write(update: &Update, directory: &Path) -> Result<(), CliError> {
    let say = |what: String, path: &Path| {
        output::write_out(&format!("Writing {what} to file {}.\n", path.display()))
    };
    for (i, identity) in update.identities.iter().enumerate() {
        let (svid, key, bundle) = (
            directory.join(format!("svid.{i}.pem")),
            directory.join(format!("svid.{i}.key")),
            directory.join(format!("bundle.{i}.pem")),
        );
        let certificates = |list: &[spiffe::Certificate]| {
            pem::certificates(list.iter().map(|certificate| certificate.der()))
        };
        say(format!("SVID #{i}"), &svid)?;
        pem::write_file(&svid, &certificates(&identity.chain), false)?;
        say(format!("key #{i}"), &key)?;
        pem::write_file(&key, &pem::block("PRIVATE KEY", &identity.key_der), true)?;
        say(format!("bundle #{i}"), &bundle)?;
        pem::write_file(&bundle, &certificates(&identity.bundle), false)?;
        for (j, (domain, federated)) in update.federated.iter().enumerate() {
            let path = directory.join(format!("federated_bundle.{i}.{j}.pem"));
            let what = format!("federated bundle #{j} for trust domain {domain}");
            say(what, &path)?;
            pem::write_file(&path, &certificates(federated), false)?;
        }
    }
    Ok(())
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
            let error = context.explained(error);
            if context.frontend == Frontend::Native {
                let (text, _) = error_report::report(&error, &WATCH_COMMAND, context.format);
                output::say(&text.unwrap_or_default());
            } else {
                output::say(&error.to_string());
            }
            tokio::time::sleep(pause).await;
            pause = (pause + Duration::from_secs(1)).min(Duration::from_secs(30));
        }
    };
    watching.await
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
        if context.prints_data() {
            let reply = Output::default().reply("X509SVIDResponse", &response)?;
            native::print::print(reply, context.format)?;
        } else {
            output::write_out(&text(&update, since(context, last)))?;
        }
        last = context.clock.now();
    }
    Ok(())
}
