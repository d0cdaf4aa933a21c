//! `run`: registers a command, waits until its identity is there, and becomes the command.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use config::fault::{Code, Fault};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::list_entries_request::Filter;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, BatchDeleteEntryRequest};
use proto::spire::api::types::{Entry, Selector, SelectorMatch, Spiffeid, selector_match};
use proto::workload::X509svidRequest;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use spiffe::Certificate;
use spiffe::clock::unix_seconds;
use tonic::transport::Channel;

use super::executable::Executable;
use super::sockets::DevDirectory;
use crate::cli::args::Args;
use crate::cli::command::{Command, Endpoint};
use crate::cli::context::{Context, Frontend, error_text};
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::{self, Output};
use crate::cli::server::entry_create::only_node;
use crate::cli::server::entry_list::{Part, matching};
use crate::cli::socket::Socket;
use crate::cli::{duration, ids, selectors, socket};

/// How long the SVID may take; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions to the agent.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The second entry, for this process to see the SVID with, ends by itself if it could not be deleted.
const OWN_ENTRY_SECONDS: i64 = 60;

const ID: Flag<String> = Flag::text(
    "id",
    "id",
    "The identity: a path such as web, or a whole SPIFFE ID",
)
.value("SPIFFE-ID");
const SELECTOR: Flag<Vec<String>> = Flag::list(
    "selector",
    "selector",
    "Selector to register in place of the command's user and path",
)
.value("TYPE:VALUE");
const DIR: Flag<String> =
    Flag::text("dir", "dir", "Directory of the development instance").value("DIRECTORY");
const SERVER_SOCKET: Flag<String> = Flag::text(
    "serverSocket",
    "server-socket",
    "Administration socket of another server",
)
.value("SOCKET");
const WORKLOAD_SOCKET: Flag<String> = Flag::text(
    "workloadSocket",
    "workload-socket",
    "Workload API socket of another agent",
)
.value("SOCKET");
const PARENT_ID: Flag<String> = Flag::text(
    "parentID",
    "parent-id",
    "The node, when several are attested",
)
.value("SPIFFE-ID");
const HINT: Flag<String> = Flag::text(
    "hint",
    "hint",
    "Hint of the identity, by which a program chooses among several",
);
pub(crate) const PROGRAM: Flag<Vec<OsString>> =
    Flag::rest("command", "CMD", "The command and its arguments");

const FLAGS: &[FlagSpec] = &[
    ID.spec,
    SELECTOR.spec,
    DIR.spec,
    SERVER_SOCKET.spec,
    WORKLOAD_SOCKET.spec,
    PARENT_ID.spec,
    HINT.spec,
    PROGRAM.spec,
];

pub(crate) const COMMAND: Command = Command::local(
    &["run"],
    "Give a command an identity and run it",
    |context, args| Box::pin(run(context, args)),
)
.flags(FLAGS)
.examples(
    "\
Registers the command by its user and its program, waits until its identity is there, sets
SPIFFE_ENDPOINT_SOCKET and becomes the command. Finds a running `plastron dev` by itself.

  plastron run --id web -- ./app --port 8080",
);

async fn run(context: Context, args: Args) -> Result<Output, CliError> {
    let Some(id) = args.optional(ID) else {
        return Err(CliError::usage(
            "--id is required: the identity to give, such as --id web",
        ));
    };
    let Some((name, rest)) = args.get(PROGRAM).split_first() else {
        return Err(CliError::usage(
            "no command given: plastron run --id web -- CMD",
        ));
    };
    let program = Executable::find(name)?;
    let (server, workload) = sockets(&args)?;
    let server = Context {
        endpoint: Some(Endpoint::ServerAdmin),
        socket: server,
        ..context.clone()
    };
    let channel = server.channel().await?;
    let id = ids::expand(&server, &channel, id).await?;
    let parent = match args.optional(PARENT_ID) {
        Some(parent) => ids::expand(&server, &channel, parent).await?,
        None => only_node(&channel).await?,
    };
    let given = selectors::parse_all(args.get(SELECTOR))?;
    let chosen = !given.is_empty();
    let wanted = if chosen {
        given
    } else {
        own_selectors(&program.attested)
    };
    let start = context.clock.now();
    let mut entries = entries(&context, &id, &parent, &wanted)?;
    if let Some(entry) = entries.first_mut() {
        args.get(HINT).clone_into(&mut entry.hint);
    }
    let registered = register(&channel, &entries).await?;
    let certificate = first_svid(&channel, &workload, &id, registered).await?;
    if !chosen && let Some(note) = program.note() {
        output::say(&note);
    }
    if let Some(note) = other_identities(&channel, &wanted, &parent, &id).await {
        output::say(&note);
    }
    // With selectors of the user's own choice it is theirs to know whether the command has them.
    let mark = if chosen || !program.is_certain {
        "registered"
    } else {
        "✔"
    };
    output::say(&format!(
        "{mark} {}",
        registration(&context, &id, &wanted, start, &certificate)
    ));
    let error = std::process::Command::new(&program.path)
        .arg0(name)
        .args(rest)
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{workload}"))
        .exec();
    Err(CliError::failed(format!(
        "cannot run {}: {}",
        program.path.display(),
        error_text(&error)
    )))
}

/// Waits for the SVID. The first entry is the command's and stays; that of this process has served.
async fn first_svid(
    channel: &Channel,
    workload: &str,
    id: &Spiffeid,
    registered: Vec<Option<String>>,
) -> Result<Certificate, CliError> {
    let fetched = tokio::time::timeout(PATIENCE, svid(workload, &ids::text(Some(id)))).await;
    match fetched.map_err(|_late| late(workload)) {
        Ok(Ok(certificate)) => {
            delete(channel, registered.into_iter().skip(1).flatten().collect()).await;
            Ok(certificate)
        }
        Ok(Err(error)) | Err(error) => {
            delete(channel, registered.into_iter().flatten().collect()).await;
            Err(error)
        }
    }
}

/// The identity, its selectors, how long it took and how long it lasts.
fn registration(
    context: &Context,
    id: &Spiffeid,
    wanted: &[Selector],
    start: SystemTime,
    certificate: &Certificate,
) -> String {
    let now = context.clock.now();
    let took = now.duration_since(start).unwrap_or_default();
    let life = certificate
        .not_after()
        .duration_since(now)
        .unwrap_or_default();
    let listed: Vec<String> = wanted
        .iter()
        .map(|s| format!("{}:{}", s.r#type, s.value))
        .collect();
    format!(
        "{}   selectors {}   SVID in {} ms, expires in {}",
        ids::text(Some(id)),
        listed.join(" "),
        took.as_millis(),
        duration::go_text(Duration::from_secs(life.as_secs()))
    )
}

/// The server's and the agent's socket: flags, then the development instance, then the defaults.
fn sockets(args: &Args) -> Result<(Socket, String), CliError> {
    let place = DevDirectory::new(args.optional(DIR));
    let live = place.is_live();
    if let Some(dir) = args.optional(DIR)
        && !live
    {
        return Err(Fault::new(
            Code::ServerUnreachable,
            "no development instance of this user runs here",
        )
        .at(dir)
        .hint(format!(
            "start it in another terminal: plastron dev --dir {dir}"
        ))
        .into());
    }
    if !live && args.optional(SERVER_SOCKET).is_none() {
        return Err(Fault::new(
            Code::ServerUnreachable,
            "no development instance of this user runs",
        )
        .at(place.directory.display().to_string())
        .hint("start `plastron dev` in another terminal, or name a server with --server-socket")
        .into());
    }
    let env = |name: &str| std::env::var(name).ok();
    let pick = |flag: Flag<String>, endpoint: Endpoint, dev: PathBuf| -> Result<Socket, CliError> {
        if let Some(path) = args.optional(flag) {
            return socket::address(path, "the command line", Frontend::Native);
        }
        if live {
            return Ok(Socket {
                path: dev.display().to_string(),
                from: socket::DEVELOPMENT,
            });
        }
        socket::resolve(Some(endpoint), &Args::default(), Frontend::Native, &env)
    };
    Ok((
        pick(SERVER_SOCKET, Endpoint::ServerAdmin, place.server_socket())?,
        pick(WORKLOAD_SOCKET, Endpoint::Workload, place.workload_socket())?.path,
    ))
}

fn own_selectors(path: &Path) -> Vec<Selector> {
    let selector = |value: String| Selector {
        r#type: "unix".to_owned(),
        value,
    };
    vec![
        selector(format!("uid:{}", nix::unistd::getuid())),
        selector(format!("path:{}", path.display())),
    ]
}

/// The command's entry, and beside it, to be made in the same write, one for this process: when this process gets the
/// SVID, the agent has the command's entry too.
fn entries(
    context: &Context,
    id: &Spiffeid,
    parent: &Spiffeid,
    wanted: &[Selector],
) -> Result<Vec<Entry>, CliError> {
    let own = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .map_err(|error| {
            CliError::failed(format!("cannot find this program's own path: {error}"))
        })?;
    let entry = |selectors: Vec<Selector>, expires_at: i64| Entry {
        spiffe_id: Some(id.clone()),
        parent_id: Some(parent.clone()),
        selectors,
        expires_at,
        ..Entry::default()
    };
    let mut entries = vec![entry(wanted.to_vec(), 0)];
    let own = own_selectors(&own);
    if own != wanted {
        entries.push(entry(
            own,
            unix_seconds(context.clock.now()) + OWN_ENTRY_SECONDS,
        ));
    }
    Ok(entries)
}

/// What to say when the command matches other entries too: which SVID a program uses is then its own choice, and most
/// take the first.
async fn other_identities(
    channel: &Channel,
    wanted: &[Selector],
    parent: &Spiffeid,
    id: &Spiffeid,
) -> Option<String> {
    let filter = Filter {
        by_parent_id: Some(parent.clone()),
        by_selectors: Some(SelectorMatch {
            selectors: wanted.to_vec(),
            r#match: selector_match::MatchBehavior::MatchSubset.into(),
        }),
        ..Filter::default()
    };
    let entries = matching(channel, filter, Part::SPIFFE_ID).await.ok()?;
    let mut others: Vec<(String, String)> = entries
        .into_iter()
        .filter(|entry| entry.spiffe_id.as_ref() != Some(id))
        .map(|entry| (ids::text(entry.spiffe_id.as_ref()), entry.id))
        .collect();
    others.sort();
    let (other, entry) = others.first()?;
    Some(format!(
        "note: the command is registered as {other} too, and a program that does not choose uses whichever SVID comes first. \
         Choose in the program by SPIFFE ID or by hint (--hint), or remove the other: plastron server entry delete --entry-id {entry}"
    ))
}

/// Makes the entries. Returns the ID of each that was made here; none for one that was there before.
async fn register(channel: &Channel, entries: &[Entry]) -> Result<Vec<Option<String>>, CliError> {
    let reply = EntryClient::new(channel.clone())
        .batch_create_entry(BatchCreateEntryRequest {
            entries: entries.to_vec(),
            output_mask: None,
        })
        .await
        .map_err(|status| CliError::status("cannot register the command", status))?
        .into_inner();
    let mut made = Vec::new();
    let mut refusal = None;
    for result in &reply.results {
        let status = result.status.clone().unwrap_or_default();
        let code = tonic::Code::from_i32(status.code);
        let id = result.entry.as_ref().map(|entry| entry.id.clone());
        made.push(id.filter(|_id| code == tonic::Code::Ok));
        if !matches!(code, tonic::Code::Ok | tonic::Code::AlreadyExists) {
            refusal = Some(tonic::Status::new(code, status.message));
        }
    }
    match refusal {
        None => Ok(made),
        Some(status) => {
            delete(channel, made.into_iter().flatten().collect()).await;
            Err(CliError::status("cannot register the command", status))
        }
    }
}

/// Takes entries away again; when the server is gone their own end has to do.
async fn delete(channel: &Channel, ids: Vec<String>) {
    if !ids.is_empty() {
        drop(
            EntryClient::new(channel.clone())
                .batch_delete_entry(BatchDeleteEntryRequest { ids })
                .await,
        );
    }
}

/// This process's SVID for `id`, as soon as the agent has it.
///
/// A refused call costs the agent a line in its log, so the calls get rarer.
async fn svid(socket: &str, id: &str) -> Result<Certificate, CliError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let channel = proto::channel::connect_uds(socket).await.map_err(|error| {
            CliError::from(
                Fault::new(Code::AgentUnreachable, "no agent answers on this host")
                    .at(socket)
                    .because(error),
            )
        })?;
        match stream(channel, id).await {
            Ok(Some(certificate)) => return Ok(certificate),
            Ok(None) => {}
            Err(status)
                if matches!(
                    status.code(),
                    tonic::Code::PermissionDenied | tonic::Code::Unavailable
                ) => {}
            Err(status) => return Err(CliError::status("cannot fetch the SVID", status)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn stream(channel: Channel, id: &str) -> Result<Option<Certificate>, tonic::Status> {
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert(
        "workload.spiffe.io",
        tonic::metadata::MetadataValue::from_static("true"),
    );
    let mut updates = SpiffeWorkloadApiClient::new(channel)
        .fetch_x509svid(request)
        .await?
        .into_inner();
    while let Some(update) = updates.message().await? {
        if let Some(svid) = update.svids.iter().find(|svid| svid.spiffe_id == id) {
            let chain = Certificate::parse_concatenated(&svid.x509_svid)
                .map_err(|error| tonic::Status::internal(error.to_string()))?;
            return Ok(chain.into_iter().next());
        }
    }
    Ok(None)
}

fn late(socket: &str) -> CliError {
    Fault::new(Code::TimedOut, format!("no SVID within {} s", PATIENCE.as_secs()))
        .at(socket)
        .hint("the agent's unix attestor needs discover_workload_path = true for the selector unix:path; or give --selector")
        .into()
}
