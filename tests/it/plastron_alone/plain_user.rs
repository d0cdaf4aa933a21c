//! Daemons and clients of a user who is not root: where they meet without a flag, and what such an agent may not see.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use harness::process::{self, Process, Ran};
use harness::server::temporary_directory;
use harness::subject::plastron;
use harness::{TRUST_DOMAIN, wait};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);
/// Users whom no machine has.
const USER: u32 = 54_321;
const OTHER: u32 = 54_322;
/// The variables that name sockets or directories.
const VARIABLES: [&str; 6] = [
    "SPIFFE_ENDPOINT_SOCKET",
    "SPIRE_SERVER_PRIVATE_SOCKET",
    "SPIRE_AGENT_PUBLIC_SOCKET",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
];

/// A home of [`USER`], and the program where every user can run it.
struct Home {
    dir: TempDir,
    program: PathBuf,
}

impl Home {
    fn new() -> Result<Self> {
        let dir = temporary_directory("plain")?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let program = dir.path().join("program");
        std::fs::copy(plastron()?, &program)?;
        let home = Self { dir, program };
        for name in ["run", "state"] {
            std::fs::create_dir(home.path(name))?;
            chown(home.path(name), Some(USER), Some(USER))?;
            std::fs::set_permissions(home.path(name), std::fs::Permissions::from_mode(0o711))?;
        }
        Ok(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, user: u32, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split(' ')).current_dir("/");
        for name in VARIABLES {
            command.env_remove(name);
        }
        if user == USER {
            command
                .env("XDG_RUNTIME_DIR", self.path("run"))
                .env("HOME", self.path("state"));
        }
        command.uid(user).gid(user);
        command
    }

    fn run(&self, user: u32, line: &str) -> Result<Ran> {
        process::run(&mut self.command(user, line), LIMIT)
    }

    fn start(&self, name: &str, line: &str) -> Result<Process> {
        Process::start(&mut self.command(USER, line), &self.path(name))
    }

    fn server(&self) -> Result<Process> {
        let data = self.path("state/server");
        let server = self.start(
            "server.log",
            &format!(
                "server run --trust-domain {TRUST_DOMAIN} --bind-address 127.0.0.1 --server-port 0 --data-dir {}",
                data.display()
            ),
        )?;
        self.until_healthy(&server, "server healthcheck")?;
        Ok(server)
    }

    /// An agent of [`USER`], attested to the server, with these further flags.
    fn agent(&self, server: &Process, flags: &str) -> Result<Process> {
        let log = server.log();
        let port = log
            .lines()
            .find(|line| line.contains("serving agents"))
            .and_then(|line| line.rsplit_once("127.0.0.1:"))
            .map(|(_, port)| {
                port.chars()
                    .take_while(char::is_ascii_digit)
                    .collect::<String>()
            })
            .context("the server names no port")?;
        let bundle = self.run(USER, "server bundle show")?.ok()?;
        std::fs::write(self.path("bundle.pem"), bundle)?;
        let token = self.run(USER, "server token generate -o json")?.json()?;
        let token = token
            .get("value")
            .and_then(serde_json::Value::as_str)
            .context("no token")?;
        let agent = self.start(
            "agent.log",
            &format!(
                "agent run --trust-domain {TRUST_DOMAIN} --server-address 127.0.0.1 --server-port {port} --trust-bundle {} \
                 --join-token {token} --data-dir {}{flags}",
                self.path("bundle.pem").display(),
                self.path("state/agent").display(),
            ),
        )?;
        self.until_healthy(&agent, "agent healthcheck")?;
        Ok(agent)
    }

    fn until_healthy(&self, daemon: &Process, line: &str) -> Result<()> {
        wait::until(line, LIMIT, || self.run(USER, line)?.ok().map(|_| Some(())))
            .with_context(|| daemon.tail())
    }
}

/// The owner and the permissions of a file.
fn owned(path: &Path) -> Result<(u32, u32)> {
    let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok((metadata.uid(), metadata.mode() & 0o777))
}

#[test]
#[ignore = "becomes other users: needs root, as tests/run has in the gate"]
fn daemons_and_clients_of_a_plain_user_meet_below_its_run_time_directory() -> Result<()> {
    let home = Home::new()?;
    let server = home.server()?;
    let agent = home.agent(&server, "")?;
    let below = home.path("run/plastron");
    for (socket, mode) in [("server/api.sock", 0o770), ("agent/public/api.sock", 0o777)] {
        let found = owned(&below.join(socket))?;
        ensure!(found == (USER, mode), "{socket}: {found:?}");
    }
    let (owner, mode) = owned(&below.join("server"))?;
    ensure!(
        owner == USER && mode & 0o007 == 0,
        "others may enter the directory of the admin socket: {mode:o}"
    );
    home.run(
        USER,
        &format!("server entry create --spiffe-id web --selector unix:uid:{USER}"),
    )?
    .ok()?;
    let fetched = wait::until("the SVID", LIMIT, || {
        home.run(USER, "agent api fetch x509")?.ok().map(Some)
    })
    .with_context(|| agent.tail())?;
    ensure!(fetched.contains("spiffe://example.org/web"), "{fetched}");

    // Another user may ask the agent, which cannot read that user's programs and gives nothing, and does not reach the server at all.
    let workload = below.join("agent/public/api.sock").display().to_string();
    let denied = home.run(
        OTHER,
        &format!("agent api fetch x509 --socket-path {workload}"),
    )?;
    ensure!(
        denied.code == 4 && denied.stderr.contains("PLA-2107") && denied.stdout.is_empty(),
        "{denied:?}"
    );
    let admin = below.join("server/api.sock").display().to_string();
    let closed = home.run(OTHER, &format!("server entry show --socket-path {admin}"))?;
    ensure!(closed.code != 0 && closed.stdout.is_empty(), "{closed:?}");
    // Without a flag it never comes to a socket of a user whom it has no reason to trust.
    let unled = home.run(OTHER, "server entry show")?;
    ensure!(!unled.text().contains(&admin), "{unled:?}");
    Ok(())
}

#[test]
#[ignore = "becomes other users: needs root, as tests/run has in the gate"]
fn a_workload_that_a_plain_users_agent_cannot_examine_is_told_so() -> Result<()> {
    let home = Home::new()?;
    let server = home.server()?;
    let config = home.path("agent.conf");
    std::fs::write(
        &config,
        "agent {}\nplugins {\n  NodeAttestor \"join_token\" { plugin_data {} }\n  KeyManager \"memory\" { plugin_data {} }\n  \
         WorkloadAttestor \"unix\" { plugin_data { discover_workload_path = true } }\n}\n",
    )?;
    let agent = home.agent(&server, &format!(" --config {}", config.display()))?;
    for user in [USER, OTHER] {
        home.run(
            USER,
            &format!("server entry create --spiffe-id u{user} --selector unix:uid:{user}"),
        )?
        .ok()?;
    }
    // Its own processes it may look at.
    wait::until("the SVID", LIMIT, || {
        home.run(USER, "agent api fetch x509")?.ok().map(Some)
    })
    .with_context(|| agent.tail())?;
    let socket = home.path("run/plastron/agent/public/api.sock");
    let ran = home.run(
        OTHER,
        &format!("agent api fetch x509 --socket-path {}", socket.display()),
    )?;
    ensure!(
        ran.stderr.starts_with("error[PLA-2107]: ")
            && ran.stderr.contains("CAP_SYS_PTRACE")
            && ran.stdout.is_empty(),
        "{ran:?}\n{}",
        agent.tail()
    );
    Ok(())
}
