//! A server under test, driven by SPIRE's configuration file and command line.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::TRUST_DOMAIN;
use crate::process::{self, Process, Ran};
use crate::subject::{Role, Subject};

/// How long a program may take to serve.
pub const START: Duration = Duration::from_secs(30);
/// How long a command may take.
pub const COMMAND: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Default)]
pub enum Database {
    #[default]
    Sqlite,
    /// A `postgres://` URL.
    Postgres(String),
}

#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub subject: Option<Subject>,
    pub trust_domain: String,
    pub database: Database,
    /// Lines for the `server` section.
    pub settings: String,
    /// Lines for the `plugins` section beside the data store, join tokens and the key manager.
    pub plugins: String,
    /// `memory` or `disk`; disk survives a restart.
    pub key_manager: &'static str,
    /// Shortens SPIRE's waits between looks at its own entries; off where they are measured.
    pub impatient: bool,
    pub log_level: &'static str,
    /// Programs and arguments before the server's own, such as `taskset -c 0`.
    pub wrapper: Vec<String>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            subject: None,
            trust_domain: TRUST_DOMAIN.to_owned(),
            database: Database::Sqlite,
            settings: String::new(),
            plugins: String::new(),
            key_manager: "disk",
            impatient: true,
            log_level: "DEBUG",
            wrapper: Vec::new(),
        }
    }
}

/// A registration entry to create.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub parent: String,
    pub id: String,
    pub selectors: Vec<String>,
    /// Further flags of `entry create`.
    pub flags: Vec<String>,
}

impl Entry {
    pub fn new(parent: &str, id: &str, selector: &str) -> Self {
        Self {
            parent: parent.to_owned(),
            id: id.to_owned(),
            selectors: vec![selector.to_owned()],
            flags: Vec::new(),
        }
    }

    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }
}

#[derive(Debug)]
pub struct Server {
    pub subject: Subject,
    pub options: ServerOptions,
    address: SocketAddr,
    program: PathBuf,
    client: PathBuf,
    process: Option<Process>,
    dir: TempDir,
}

impl Server {
    /// Starts a server of the subject and waits until it serves.
    pub fn start(options: ServerOptions) -> Result<Self> {
        let mut server = Self::prepare(options)?;
        server.launch()?;
        Ok(server)
    }

    /// Writes its files and starts nothing.
    pub fn prepare(options: ServerOptions) -> Result<Self> {
        let dir = temporary_directory("server")?;
        let subject = options
            .subject
            .map_or_else(|| Subject::of(Role::Server), Ok)?;
        let program = subject.install(Role::Server, dir.path())?;
        let client = subject
            .command_line()
            .install(Role::Server, &dir.path().join("client"))?;
        let server = Self {
            subject,
            options,
            address: free_address()?,
            program,
            client,
            process: None,
            dir,
        };
        std::fs::create_dir_all(server.data_dir())?;
        server.write_configuration()?;
        Ok(server)
    }

    pub fn write_configuration(&self) -> Result<()> {
        std::fs::write(self.config_path(), self.configuration())?;
        Ok(())
    }

    fn configuration(&self) -> String {
        let data = self.data_dir();
        let data = data.display();
        let (kind, connection) = match &self.options.database {
            Database::Sqlite => ("sqlite3", format!("{data}/datastore.sqlite3")),
            Database::Postgres(url) => ("postgres", url.clone()),
        };
        let key_manager = match self.options.key_manager {
            "disk" => format!(
                "KeyManager \"disk\" {{ plugin_data {{ keys_path = \"{data}/keys.json\" }} }}"
            ),
            other => format!("KeyManager \"{other}\" {{ plugin_data {{}} }}"),
        };
        // SPIRE's server looks at its own entries every five seconds.
        let experimental = if self.subject == Subject::Spire && self.options.impatient {
            "  experimental { cache_reload_interval = \"1s\" }"
        } else {
            ""
        };
        format!(
            "server {{\n  bind_address = \"{}\"\n  bind_port = \"{}\"\n  socket_path = \"{}\"\n  trust_domain = \"{}\"\n  \
             data_dir = \"{data}\"\n  log_level = \"{}\"\n{experimental}\n{}\n}}\n\nplugins {{\n  DataStore \"sql\" {{\n    plugin_data {{\n      \
             database_type = \"{kind}\"\n      connection_string = \"{connection}\"\n    }}\n  }}\n  \
             NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n  {key_manager}\n{}\n}}\n",
            self.address.ip(),
            self.address.port(),
            self.socket().display(),
            self.options.trust_domain,
            self.options.log_level,
            self.options.settings,
            self.options.plugins,
        )
    }

    /// Starts it (again) on the same files and address, and waits until it serves.
    pub fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_until_serving()
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        let (config, log) = (self.config_path(), self.dir.path().join("server.log"));
        let wrapper = &self.options.wrapper;
        let process = Process::start_daemon(wrapper, &self.program, &config, &log)?;
        self.process = Some(process);
        Ok(())
    }

    pub fn wait_until_serving(&mut self) -> Result<()> {
        let (socket, address) = (self.socket(), self.address);
        self.process()?.until_serving("the server", START, || {
            drop(UnixStream::connect(&socket)?);
            let second = Duration::from_secs(1);
            drop(TcpStream::connect_timeout(&address, second)?);
            Ok(())
        })
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the server was not started")
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self) -> Result<i32> {
        self.process()?.stop(Duration::from_secs(20))
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("server.conf")
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The program whose command line [`Self::cli`] uses.
    pub fn client(&self) -> &Path {
        &self.client
    }

    /// Runs a client command of the same program against its admin socket.
    pub fn cli(&self, args: &[&str]) -> Result<Ran> {
        let mut command = Command::new(&self.client);
        command
            .args(args)
            .arg("-socketPath")
            .arg(self.socket())
            .current_dir(self.dir.path());
        process::run(&mut command, COMMAND)
    }

    /// The JSON of a command that must succeed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["-output", "json"]).collect();
        self.cli(&args)?.json().with_context(|| format!("{args:?}"))
    }

    /// The server's bundle as PEM.
    pub fn bundle(&self) -> Result<String> {
        self.cli(&["bundle", "show"])?.ok()
    }

    /// A new join token; the agent that uses it also gets the SPIFFE ID `alias`.
    pub fn token(&self, alias: &str) -> Result<String> {
        let answer = self.json(&["token", "generate", "-spiffeID", alias])?;
        Ok(answer
            .get("value")
            .and_then(Value::as_str)
            .context("no token in the answer")?
            .to_owned())
    }

    /// Creates an entry and returns its ID.
    pub fn create_entry(&self, entry: &Entry) -> Result<String> {
        let mut args = vec![
            "entry",
            "create",
            "-parentID",
            &entry.parent,
            "-spiffeID",
            &entry.id,
        ];
        for selector in &entry.selectors {
            args.extend(["-selector", selector]);
        }
        args.extend(entry.flags.iter().map(String::as_str));
        let answer = self.json(&args)?;
        let result = answer.pointer("/results/0").context("no result")?;
        match result.pointer("/entry/id").and_then(Value::as_str) {
            Some(id) if result.pointer("/status/code") == Some(&Value::from(0)) => {
                Ok(id.to_owned())
            }
            _ => bail!("entry not created: {answer}"),
        }
    }
}

/// A directory of the test's own, removed with its value unless `PLASTRON_TEST_KEEP` is set.
pub fn temporary_directory(kind: &str) -> Result<TempDir> {
    let mut dir = tempfile::Builder::new()
        .prefix(&format!("plastron-{kind}-"))
        .tempdir()?;
    if std::env::var_os("PLASTRON_TEST_KEEP").is_some() {
        dir.disable_cleanup(true);
    }
    Ok(dir)
}

/// A free port on a loopback address that no other test uses. Clients connect from 127.0.0.1, so the port stays free
/// until the program binds it.
pub fn free_address() -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = (process.wrapping_mul(64).wrapping_add(next)).to_be_bytes();
    let address = Ipv4Addr::new(
        127,
        64 + (process >> 10 & 63).to_be_bytes()[3],
        high,
        low.max(1),
    );
    let listener = TcpListener::bind((address, 0))?;
    Ok(listener.local_addr()?)
}
