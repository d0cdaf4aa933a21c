//! A machine that does not give what the server needs: a clear message, its code, and the exit code of its kind.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::process::{self, Ran};
use harness::subject::plastron;
use harness::{Deployment, Entry, Server, ServerOptions, id};

/// Exit codes of `plastron`.
const INTERNAL: i32 = 1;
const USAGE: i32 = 2;
const DENIED: i32 = 4;
const CONFLICT: i32 = 5;
pub(super) const UNREACHABLE: i32 = 6;

/// Runs `plastron server run` on the files of `server`; it must end by itself.
pub(super) fn run(server: &Server) -> Result<Ran> {
    let mut command = Command::new(plastron()?);
    command
        .args(["server", "run", "--config"])
        .arg(server.config_path());
    process::run(&mut command, Duration::from_secs(20))
}

pub(super) fn is_told(ran: &Ran, exit: i32, code: &str) -> Result<()> {
    let reported = ran.stderr.contains(&format!("error[{code}]"));
    ensure!(
        reported && ran.stderr.contains("hint: "),
        "no {code} with a hint: {ran:?}"
    );
    ensure!(
        ran.code == exit,
        "exit code {}, expected {exit}: {}",
        ran.code,
        ran.stderr
    );
    Ok(())
}

fn prepared() -> Result<Server> {
    Server::prepare(ServerOptions::default())
}

#[test]
fn port_in_use() -> Result<()> {
    let server = prepared()?;
    let holder = TcpListener::bind(server.address())?;
    is_told(&run(&server)?, CONFLICT, "PLA-1301")?;
    drop(holder);
    Ok(())
}

#[test]
fn socket_in_use() -> Result<()> {
    let server = prepared()?;
    let holder = std::os::unix::net::UnixListener::bind(server.socket())?;
    is_told(&run(&server)?, CONFLICT, "PLA-1303")?;
    drop(holder);
    Ok(())
}

#[test]
fn socket_left_behind_by_a_crash_is_no_obstacle() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    server.kill()?;
    ensure!(server.socket().exists());
    server.launch()
}

#[test]
fn data_directory_is_a_file() -> Result<()> {
    let server = prepared()?;
    std::fs::remove_dir(server.data_dir())?;
    std::fs::write(server.data_dir(), "not a directory")?;
    is_told(&run(&server)?, USAGE, "PLA-1305")
}

#[test]
fn key_file_that_cannot_be_read() -> Result<()> {
    let server = prepared()?;
    // A directory cannot be read as a file, by root neither.
    std::fs::create_dir(server.data_dir().join("keys.json"))?;
    is_told(&run(&server)?, DENIED, "PLA-1320")
}

#[test]
fn damaged_key_file() -> Result<()> {
    let server = prepared()?;
    std::fs::write(
        server.data_dir().join("keys.json"),
        "{\"keys\": {\"x509-CA-A\": \"AAAA\"}}",
    )?;
    is_told(&run(&server)?, INTERNAL, "PLA-1321")
}

#[test]
fn locked_database() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    server.stop()?;
    let holder = rusqlite::Connection::open(server.data_dir().join("datastore.sqlite3"))?;
    holder.execute_batch("BEGIN EXCLUSIVE")?;
    is_told(&run(&server)?, CONFLICT, "PLA-1311")?;
    holder.execute_batch("ROLLBACK")?;
    server.launch()
}

#[test]
fn database_of_another_trust_domain() -> Result<()> {
    let mut server = Server::start(ServerOptions::default())?;
    server.stop()?;
    server.options.trust_domain = "elsewhere.org".to_owned();
    server.write_configuration()?;
    is_told(&run(&server)?, CONFLICT, "PLA-1312")
}

#[test]
fn database_that_nobody_serves() -> Result<()> {
    let address = harness::server::free_address()?;
    let url = format!("postgres://nobody@{address}/none?sslmode=disable");
    let server = Server::prepare(ServerOptions {
        database: harness::Database::Postgres(url),
        ..ServerOptions::default()
    })?;
    is_told(&run(&server)?, UNREACHABLE, "PLA-1310")
}

/// A small file system at the server's data directory, unmounted with its value.
struct SmallDisk<'a>(&'a Server);

impl<'a> SmallDisk<'a> {
    fn mount(server: &'a Server) -> Result<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(server.data_dir())
            .output()
            .context("run mount")?;
        ensure!(
            mounted.status.success(),
            "mount: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Ok(Self(server))
    }

    fn fill(&self) -> Result<()> {
        let chunk = vec![0; 64 << 10];
        let mut file = std::fs::File::create(self.0.data_dir().join("ballast"))?;
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        // The last bytes too.
        while std::io::Write::write_all(&mut file, &[0]).is_ok() {}
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.data_dir().join("ballast"))?)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(
            Command::new("umount")
                .arg("-l")
                .arg(self.0.data_dir())
                .output(),
        );
    }
}

fn entries(first: usize, count: usize) -> impl Iterator<Item = Entry> {
    (first..first + count).map(|number| {
        Entry::new(
            &Deployment::node(),
            &id(&format!("/w{number}")),
            "unix:uid:70000",
        )
    })
}

#[test]
#[ignore = "mounts a small file system: needs root, as tests/run has in the gate"]
fn full_disk_refuses_writes_and_recovers() -> Result<()> {
    let server = prepared()?;
    let disk = SmallDisk::mount(&server)?;
    let mut command = Command::new(server.program());
    command.arg("run").arg("-config").arg(server.config_path());
    let log = server.dir().join("server.log");
    let mut running = harness::Process::start(&mut command, &log)?;
    harness::wait::until("the server to serve", harness::server::START, || {
        server.cli(&["healthcheck"])?.ok().map(Some)
    })?;
    for entry in entries(0, 3) {
        server.create_entry(&entry)?;
    }
    disk.fill()?;
    let refused = entries(100, 300).find_map(|entry| server.create_entry(&entry).err());
    let refused = refused.context("three hundred writes fitted on a full disk")?;
    let text = format!("{refused:#}");
    ensure!(
        text.contains("disk") || text.contains("space"),
        "the refusal does not name the disk: {text}"
    );
    let count = server
        .json(&["entry", "count"])?
        .get("count")
        .and_then(serde_json::Value::as_i64);
    ensure!(count >= Some(3), "reads fail on a full disk: {count:?}");
    disk.empty()?;
    for entry in entries(1000, 3) {
        server
            .create_entry(&entry)
            .context("the disk has room again")?;
    }
    ensure!(running.stop(Duration::from_secs(20))? == 0);
    Ok(())
}

#[test]
#[ignore = "mounts a small file system: needs root, as tests/run has in the gate"]
fn start_on_a_full_disk() -> Result<()> {
    let server = prepared()?;
    let disk = SmallDisk::mount(&server)?;
    disk.fill()?;
    is_told(&run(&server)?, INTERNAL, "PLA-1315")
}
