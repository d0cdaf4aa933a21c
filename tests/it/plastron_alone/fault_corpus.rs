//! Twenty faults that operators make, each produced for real: the answer has the right code, and a hint with the word
//! that leads on.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use harness::process;
use harness::server::{free_address, temporary_directory};
use harness::subject::plastron;
use harness::{Deployment, Process, Server, ServerOptions, wait};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

/// What an operator reads.
type Report = Result<String>;
/// The fault, how it is made, its code, and a word of its hint. (An agent that cannot reach
/// its server, or whose clock is wrong, keeps trying, so it logs.)
type Fault = (
    &'static str,
    fn(&Site) -> Report,
    &'static str,
    &'static str,
);

const CORPUS: [Fault; 20] = [
    ("a wrong token", wrong_token, "PLA-1110", "token generate"),
    ("a used token", used_token, "PLA-1110", "token generate"),
    (
        "an expired token",
        expired_token,
        "PLA-1110",
        "token generate",
    ),
    (
        "a bundle of another server",
        wrong_bundle,
        "PLA-1102",
        "bundle",
    ),
    (
        "another trust domain",
        wrong_trust_domain,
        "PLA-1104",
        "trust_domain",
    ),
    ("a server that is away", server_away, "PLA-1101", "server"),
    (
        "a clock that is two hours ahead",
        clock_skew,
        "clocks of this node",
        "ahead of the server's",
    ),
    ("a port in use", port_in_use, "PLA-1301", "ss -ltnp"),
    ("a socket in use", socket_in_use, "PLA-1303", "ss -xlp"),
    (
        "a data directory that is none",
        data_directory,
        "PLA-1305",
        "install -d",
    ),
    ("a damaged key file", key_file, "PLA-1321", "backup"),
    ("a syntax error", syntax, "PLA-1202", "quote"),
    ("an unknown key", unknown_key, "PLA-1203", "log_level"),
    ("an unknown plugin", unknown_plugin, "PLA-1210", "sql"),
    (
        "a database that is away",
        database_away,
        "PLA-1310",
        "connection_string",
    ),
    ("a wrong parent", wrong_parent, "PLA-2007", "did you mean"),
    (
        "a misspelt selector",
        selector_typo,
        "PLA-2003",
        "unix:uid:1",
    ),
    (
        "an entry that has expired",
        expired_entry,
        "PLA-2004",
        "--expires-at",
    ),
    (
        "a workload without an entry",
        no_entry,
        "PLA-2101",
        "entry create",
    ),
    (
        "an agent without its admin socket",
        no_admin_socket,
        "PLA-1001",
        "admin_socket_path",
    ),
];

#[test]
fn faults_of_operators_are_named_right() -> Result<()> {
    let site = Site::start()?;
    let mut wrong = Vec::new();
    for (name, make, code, hint) in CORPUS {
        match make(&site) {
            Ok(report) if report.contains(code) && report.contains(hint) => {}
            Ok(report) => wrong.push(format!("{name}: no {code} with {hint:?} in {report:?}")),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    let right = CORPUS.len() - wrong.len();
    ensure!(wrong.is_empty(), "{right} of {}: {wrong:#?}", CORPUS.len());
    Ok(())
}

/// A deployment that works, in which the faults are made.
struct Site {
    deployment: Deployment,
    home: tempfile::TempDir,
    bundle: String,
}

impl Site {
    fn start() -> Result<Self> {
        let deployment = Deployment::start()?;
        let home = temporary_directory("corpus")?;
        let bundle = home.path().join("bundle.pem");
        std::fs::write(&bundle, deployment.server.bundle()?)?;
        Ok(Self {
            deployment,
            bundle: bundle.display().to_string(),
            home,
        })
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(plastron()?);
        command.args(args).current_dir(self.home.path());
        command.env_remove("SPIFFE_ENDPOINT_SOCKET");
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Report {
        let ran = process::run(&mut self.command(args)?, LIMIT)?;
        ensure!(ran.code != 0, "it succeeded: {ran:?}");
        Ok(ran.stderr)
    }

    /// An administrator's command on the server that works.
    fn admin(&self, args: &[&str]) -> Report {
        let socket = self.deployment.server.socket().display().to_string();
        self.run(&[&["server"], args, &["--socket-path", &socket]].concat())
    }

    /// A new node with these flags in place of the right ones.
    fn agent(&self, other: &[(&str, &str)]) -> Result<Command> {
        let data = temporary_directory("node")?.keep().display().to_string();
        let (ip, port) = (
            self.deployment.server.address().ip().to_string(),
            self.deployment.server.address().port().to_string(),
        );
        let socket = format!("{data}/agent.sock");
        let mut flags = vec![
            ("--trust-domain", harness::TRUST_DOMAIN),
            ("--data-dir", data.as_str()),
            ("--server-address", &ip),
            ("--server-port", &port),
            ("--trust-bundle", &self.bundle),
            ("--join-token", "11111111-2222-3333-4444-555555555555"),
            ("--socket-path", &socket),
        ];
        for (name, value) in other {
            flags.retain(|(flag, _)| flag != name);
            flags.push((name, value));
        }
        let words: Vec<&str> = flags
            .iter()
            .flat_map(|(name, value)| [*name, *value])
            .collect();
        self.command(&[&["agent", "run"], words.as_slice()].concat())
    }

    /// What such a node says when it ends by itself.
    fn refused(&self, other: &[(&str, &str)]) -> Report {
        let ran = process::run(&mut self.agent(other)?, LIMIT)?;
        ensure!(ran.code != 0, "it succeeded: {ran:?}");
        Ok(ran.stderr)
    }
}

fn wrong_token(site: &Site) -> Report {
    site.refused(&[])
}

fn used_token(site: &Site) -> Report {
    let token = site.deployment.server.token(&harness::id("/used"))?;
    let mut agent = Process::start(
        &mut site.agent(&[("--join-token", &token)])?,
        &site.home.path().join("first.log"),
    )?;
    wait::until("the first to join", LIMIT, || {
        let list = site.deployment.server.json(&["agent", "list"])?;
        Ok(list.to_string().contains(&token).then_some(()))
    })?;
    agent.kill()?;
    site.refused(&[("--join-token", &token)])
}

#[expect(
    clippy::disallowed_methods,
    reason = "the token expires by the machine's clock"
)]
fn expired_token(site: &Site) -> Report {
    let token = site
        .deployment
        .server
        .json(&["token", "generate", "-ttl", "1"])?;
    let value = token
        .get("value")
        .and_then(Value::as_str)
        .context("no token")?;
    let end = token
        .get("expires_at")
        .and_then(|end| end.as_u64().or_else(|| end.as_str()?.parse().ok()))
        .context("no expiry")?;
    wait::until("the token to expire", LIMIT, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok((now > end).then_some(()))
    })?;
    site.refused(&[("--join-token", value)])
}

fn wrong_bundle(site: &Site) -> Report {
    let other = Server::start(ServerOptions::default())?;
    let path = site.home.path().join("other.pem");
    std::fs::write(&path, other.bundle()?)?;
    site.refused(&[("--trust-bundle", &path.display().to_string())])
}

fn wrong_trust_domain(site: &Site) -> Report {
    site.refused(&[("--trust-domain", "elsewhere.org")])
}

/// It keeps trying: what it logs meanwhile.
fn logged(site: &Site, command: &mut Command, name: &str, text: &str) -> Report {
    let log = site.home.path().join(format!("{name}.log"));
    let mut agent = Process::start(command, &log)?;
    wait::until(text, LIMIT, || {
        let ended = agent.ended()?.is_some();
        Ok((ended || agent.log().contains(text)).then_some(()))
    })?;
    Ok(agent.log())
}

fn server_away(site: &Site) -> Report {
    let port = free_address()?.port().to_string();
    logged(
        site,
        &mut site.agent(&[("--server-port", &port)])?,
        "away",
        "PLA-1101",
    )
}

/// A clock of another hour, put before the system's. Nothing else may be changed by it.
fn clock_skew(site: &Site) -> Report {
    let source = site.home.path().join("clock.c");
    std::fs::write(
        &source,
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t id, struct timespec *t) {\n\
           int r = syscall(SYS_clock_gettime, id, t);\n\
           if (id == CLOCK_REALTIME) t->tv_sec += 7200;\n\
           return r;\n}\n",
    )?;
    let library = site.home.path().join("clock.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .context("run cc")?;
    ensure!(built.success(), "cc failed");
    let token = site.deployment.server.token(&harness::id("/skewed"))?;
    let mut command = site.agent(&[("--join-token", &token)])?;
    command.env("LD_PRELOAD", &library);
    logged(site, &mut command, "skew", "clocks of this node")
}

/// Runs a server on files that were made for it and then spoilt.
fn server_run(site: &Site, server: &Server) -> Report {
    let config = server.config_path().display().to_string();
    site.run(&["server", "run", "--config", &config])
}

fn prepared() -> Result<Server> {
    Server::prepare(ServerOptions::default())
}

fn port_in_use(site: &Site) -> Report {
    let server = prepared()?;
    let _holder = TcpListener::bind(server.address())?;
    server_run(site, &server)
}

fn socket_in_use(site: &Site) -> Report {
    let server = prepared()?;
    let _holder = UnixListener::bind(server.socket())?;
    server_run(site, &server)
}

fn data_directory(site: &Site) -> Report {
    let server = prepared()?;
    std::fs::remove_dir(server.data_dir())?;
    std::fs::write(server.data_dir(), "")?;
    server_run(site, &server)
}

fn key_file(site: &Site) -> Report {
    let server = prepared()?;
    std::fs::write(
        server.data_dir().join("keys.json"),
        "{\"keys\": {\"a\": \"AAAA\"}}",
    )?;
    server_run(site, &server)
}

/// A server whose configuration has this in place of that.
fn configured(site: &Site, this: &str, that: &str) -> Report {
    let server = prepared()?;
    let text = std::fs::read_to_string(server.config_path())?;
    ensure!(text.contains(this), "no {this} in {text}");
    std::fs::write(server.config_path(), text.replacen(this, that, 1))?;
    server_run(site, &server)
}

fn syntax(site: &Site) -> Report {
    configured(site, "\"DEBUG\"", "DEBUG")
}

fn unknown_key(site: &Site) -> Report {
    configured(site, "log_level", "loglevel")
}

fn unknown_plugin(site: &Site) -> Report {
    configured(site, "DataStore \"sql\"", "DataStore \"sqll\"")
}

fn database_away(site: &Site) -> Report {
    let url = format!("postgres://nobody@{}/none?sslmode=disable", free_address()?);
    let server = Server::prepare(ServerOptions {
        database: harness::Database::Postgres(url),
        ..ServerOptions::default()
    })?;
    server_run(site, &server)
}

fn create(site: &Site, other: &[&str]) -> Report {
    let words = ["entry", "create", "--spiffe-id", "slip"];
    site.admin(&[&words, other].concat())
}

fn wrong_parent(site: &Site) -> Report {
    create(site, &["--parent-id", "nod", "--selector", "unix:uid:1"])
}

fn selector_typo(site: &Site) -> Report {
    create(site, &["--parent-id", "node", "--selector", "unxi:uid:1"])
}

fn expired_entry(site: &Site) -> Report {
    let past = ["--expires-at", "2020-01-01T00:00:00Z"];
    create(
        site,
        &[
            &["--parent-id", "node", "--selector", "unix:uid:1"],
            &past[..],
        ]
        .concat(),
    )
}

fn no_entry(site: &Site) -> Report {
    let socket = site.deployment.agent.socket().display().to_string();
    site.run(&["agent", "api", "fetch", "x509", "--socket-path", &socket])
}

fn no_admin_socket(site: &Site) -> Report {
    let missing = Path::new("admin.sock").display().to_string();
    site.run(&["agent", "logger", "get", "--socket-path", &missing])
}
