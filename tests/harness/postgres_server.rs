//! A PostgreSQL server of a test's own, which the test may stop, start again and freeze, and which may speak TLS.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{postgres, wait};

const PASSWORD: &str = "of-a-test";
const START: Duration = Duration::from_secs(30);

/// Stopped and removed with its value.
#[derive(Debug)]
pub struct PostgresServer {
    process: Option<Process>,
    programs: PathBuf,
    port: u16,
    /// The user it runs as: it refuses to be root's.
    user: Option<(u32, u32)>,
    dir: TempDir,
}

impl PostgresServer {
    pub fn start() -> Result<Self> {
        let mut server = Self::prepare()?;
        server.launch()?;
        Ok(server)
    }

    /// Makes its files and starts nothing.
    pub fn prepare() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("plastron-postgres-")
            .tempdir()?;
        let user = user()?;
        let server = Self {
            process: None,
            programs: programs()?,
            port: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port(),
            user,
            dir,
        };
        let password = server.write("password", PASSWORD.as_bytes())?;
        server.give(server.dir.path())?;
        let mut initdb = server.command("initdb");
        initdb
            .arg("-D")
            .arg(server.data())
            .args(["-U", "plastron", "-A", "scram-sha-256", "-N"])
            .arg("--pwfile")
            .arg(password);
        process::run(&mut initdb, START)?.ok().context("initdb")?;
        Ok(server)
    }

    /// A file that its user alone may read.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        self.give(&path)?;
        Ok(path)
    }

    /// Adds lines to its configuration, for the next start.
    pub fn configure(&self, lines: &str) -> Result<()> {
        let path = self.data().join("postgresql.conf");
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, format!("{text}\n{lines}\n"))?;
        Ok(())
    }

    /// Replaces the table of who may sign in, for the next start.
    pub fn admit(&self, lines: &str) -> Result<()> {
        Ok(std::fs::write(self.data().join("pg_hba.conf"), lines)?)
    }

    /// Starts it (again) and waits until it takes connections.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-k"])
            .arg(self.dir.path())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        self.process = Some(Process::start(&mut command, &self.dir.path().join("log"))?);
        wait::until("PostgreSQL to serve", START, || {
            self.execute("SELECT 1").map(Some)
        })
    }

    /// Runs statements in its database `postgres`.
    pub fn execute(&self, statements: &str) -> Result<()> {
        postgres::execute(&self.socket_string("postgres"), statements)
    }

    /// Stops it at once, and all who are connected with it (a fast shutdown).
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("PostgreSQL does not run")?;
        process.signal(libc::SIGINT)?;
        let code = process.wait(START)?;
        ensure!(
            code == 0,
            "PostgreSQL ended with {code}: {}",
            process.tail()
        );
        Ok(())
    }

    /// Stops all of its processes where they stand: it keeps its connections and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        // The first one first: it makes no more of them then.
        self.signal_all(libc::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal_all(libc::SIGCONT)
    }

    fn signal_all(&self, signal: libc::c_int) -> Result<()> {
        let process = self.process.as_ref().context("PostgreSQL does not run")?;
        process.signal(signal)?;
        for child in children(process.id())? {
            process::signal(child, signal)?;
        }
        Ok(())
    }

    /// Keys and values for its Unix socket.
    pub fn socket_string(&self, database: &str) -> String {
        format!(
            "host={} port={} user=plastron password={PASSWORD} dbname={database}",
            self.dir.path().display(),
            self.port
        )
    }

    /// Keys and values for a TCP connection to `host`, without an `sslmode`.
    pub fn tcp_string(&self, host: &str) -> String {
        format!(
            "host={host} port={} user=plastron password={PASSWORD} dbname=postgres",
            self.port
        )
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn give(&self, path: &Path) -> Result<()> {
        match self.user {
            Some((user, group)) => Ok(chown(path, Some(user), Some(group))?),
            None => Ok(()),
        }
    }

    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = match self.user {
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={user}"))
                    .arg(format!("--regid={group}"))
                    .arg("--clear-groups")
                    // The change of user takes away what ends it with the test.
                    .arg("--pdeathsig=QUIT")
                    .arg("--")
                    .arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir("/");
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            // A test that ends has said what it has to say; what is left is killed with the process.
            self.thaw().ok();
            self.stop().ok();
        }
    }
}

/// Where initdb and postgres are.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut candidates: Vec<_> = versions
        .flatten()
        .map(|one| one.path().join("bin"))
        .collect();
    candidates.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    candidates.splice(0..0, std::env::split_paths(&path));
    let found = candidates.into_iter().rfind(|directory| {
        directory.join("initdb").exists() && directory.join("postgres").exists()
    });
    found.context(
        "PostgreSQL's initdb is neither on PATH nor in /usr/lib/postgresql; tests/run installs it",
    )
}

/// The user `postgres` when this is root.
fn user() -> Result<Option<(u32, u32)>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let is_root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
    if !is_root {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    for line in passwd.lines() {
        if let ["postgres", _, user, group, ..] = line.split(':').collect::<Vec<_>>()[..] {
            return Ok(Some((user.parse()?, group.parse()?)));
        }
    }
    bail!("this is root, and there is no user postgres to run PostgreSQL as")
}

fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for process in std::fs::read_dir("/proc")? {
        let name = process?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile is no child any more.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else {
            continue;
        };
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        if after.split(' ').nth(1) == Some(&parent.to_string()) {
            children.push(id);
        }
    }
    Ok(children)
}
