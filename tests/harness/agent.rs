//! An agent under test, driven by SPIRE's configuration file and command line.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{self, Process, Ran};
use crate::server::{COMMAND, START, Server, temporary_directory};
use crate::subject::{Role, Subject};
use crate::{TRUST_DOMAIN, wait};

/// How the agent first trusts the server.
#[derive(Debug, Clone)]
pub enum Bootstrap {
    /// These PEM certificates.
    Bundle(String),
    Insecure,
    /// Lines of the `agent` section.
    Lines(String),
}

#[derive(Debug, Clone)]
pub struct AgentOptions {
    pub subject: Option<Subject>,
    pub trust_domain: String,
    pub server: SocketAddr,
    pub bootstrap: Bootstrap,
    pub join_token: Option<String>,
    /// Lines for the `agent` section.
    pub settings: String,
    /// Lines for its `experimental` section.
    pub experimental: String,
    /// `memory` or `disk`.
    pub key_manager: &'static str,
    /// Whether the `unix` attestor also tells path and hash of the workload's program.
    pub discover_path: bool,
    pub log_level: &'static str,
    /// Programs and arguments before the agent's own.
    pub wrapper: Vec<String>,
}

impl AgentOptions {
    /// An agent that attests to `server` with `join_token`.
    pub fn attesting(server: &Server, join_token: &str) -> Result<Self> {
        Ok(Self {
            subject: None,
            trust_domain: TRUST_DOMAIN.to_owned(),
            server: server.address(),
            bootstrap: Bootstrap::Bundle(server.bundle()?),
            join_token: Some(join_token.to_owned()),
            settings: String::new(),
            experimental: "    sync_interval = \"1s\"".to_owned(),
            key_manager: "disk",
            discover_path: true,
            log_level: "DEBUG",
            wrapper: Vec::new(),
        })
    }
}

#[derive(Debug)]
pub struct Agent {
    pub subject: Subject,
    pub options: AgentOptions,
    program: PathBuf,
    client: PathBuf,
    process: Option<Process>,
    dir: TempDir,
}

impl Agent {
    /// Starts an agent of the subject and waits until it serves.
    pub fn start(options: AgentOptions) -> Result<Self> {
        let mut agent = Self::prepare(options)?;
        agent.launch()?;
        Ok(agent)
    }

    /// Writes its files and starts nothing.
    pub fn prepare(options: AgentOptions) -> Result<Self> {
        let dir = temporary_directory("agent")?;
        let subject = options
            .subject
            .map_or_else(|| Subject::of(Role::Agent), Ok)?;
        let program = subject.install(Role::Agent, dir.path())?;
        let client = subject
            .command_line()
            .install(Role::Agent, &dir.path().join("client"))?;
        let agent = Self {
            subject,
            options,
            program,
            client,
            process: None,
            dir,
        };
        std::fs::create_dir_all(agent.data_dir())?;
        agent.write_configuration()?;
        Ok(agent)
    }

    pub fn write_configuration(&self) -> Result<()> {
        if let Bootstrap::Bundle(pem) = &self.options.bootstrap {
            std::fs::write(self.dir.path().join("bundle.pem"), pem)?;
        }
        std::fs::write(self.config_path(), self.configuration())?;
        Ok(())
    }

    fn configuration(&self) -> String {
        let data = self.data_dir();
        let data = data.display();
        let bootstrap = match &self.options.bootstrap {
            Bootstrap::Bundle(_) => {
                format!(
                    "  trust_bundle_path = \"{}/bundle.pem\"",
                    self.dir.path().display()
                )
            }
            Bootstrap::Insecure => "  insecure_bootstrap = true".to_owned(),
            Bootstrap::Lines(lines) => lines.clone(),
        };
        let token = self
            .options
            .join_token
            .as_ref()
            .map_or_else(String::new, |token| format!("  join_token = \"{token}\""));
        let key_manager = match self.options.key_manager {
            "disk" => format!("KeyManager \"disk\" {{ plugin_data {{ directory = \"{data}\" }} }}"),
            other => format!("KeyManager \"{other}\" {{ plugin_data {{}} }}"),
        };
        format!(
            "agent {{\n  data_dir = \"{data}\"\n  log_level = \"{}\"\n  server_address = \"{}\"\n  server_port = \"{}\"\n  \
             socket_path = \"{}\"\n  trust_domain = \"{}\"\n{bootstrap}\n{token}\n{}\n  experimental {{\n{}\n  }}\n}}\n\n\
             plugins {{\n  NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n  {key_manager}\n  WorkloadAttestor \"unix\" {{\n    \
             plugin_data {{ discover_workload_path = {} }}\n  }}\n}}\n",
            self.options.log_level,
            self.options.server.ip(),
            self.options.server.port(),
            self.socket().display(),
            self.options.trust_domain,
            self.options.settings,
            self.options.experimental,
            self.options.discover_path,
        )
    }

    /// Starts it (again) on the same files and waits until it serves.
    pub fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_until_serving()
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        let (config, log) = (self.config_path(), self.dir.path().join("agent.log"));
        let wrapper = &self.options.wrapper;
        let process = Process::start_daemon(wrapper, &self.program, &config, &log)?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until it is attested and says that it is healthy.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        let (socket, client) = (self.socket(), self.client.clone());
        self.process()?.until_serving("the agent", START, || {
            drop(UnixStream::connect(&socket)?);
            let mut command = Command::new(&client);
            command.arg("healthcheck").arg("-socketPath").arg(&socket);
            process::run(&mut command, COMMAND)?.ok().map(drop)
        })
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent was not started")
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self) -> Result<i32> {
        self.process()?.stop(Duration::from_secs(20))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("public/api.sock")
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("agent.conf")
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The program whose command line [`Self::cli`] uses.
    pub fn client(&self) -> &Path {
        &self.client
    }

    /// The value of `SPIFFE_ENDPOINT_SOCKET` for its workloads.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Runs a client command of the same program against its Workload API.
    pub fn cli(&self, args: &[&str]) -> Result<Ran> {
        let mut command = Command::new(&self.client);
        command
            .args(args)
            .arg("-socketPath")
            .arg(self.socket())
            .current_dir(self.dir.path());
        process::run(&mut command, COMMAND)
    }

    /// The X509-SVIDs that this process's user is given now, as the JSON of `api fetch x509`.
    pub fn fetch_x509(&self) -> Result<Value> {
        self.cli(&["api", "fetch", "x509", "-output", "json"])?
            .json()
    }

    /// Fetches until the workload has exactly these SPIFFE IDs, in any order.
    pub fn wait_for_ids(&self, ids: &[&str], limit: Duration) -> Result<Value> {
        let mut wanted: Vec<&str> = ids.to_vec();
        wanted.sort_unstable();
        wait::until(&format!("SVIDs {wanted:?}"), limit, || {
            let answer = self.fetch_x509()?;
            let mut found = ids_of(&answer);
            found.sort_unstable();
            if found == wanted {
                return Ok(Some(answer));
            }
            bail!("have {found:?}")
        })
    }
}

/// The SPIFFE IDs in the JSON of `api fetch x509`, in its order.
pub fn ids_of(answer: &Value) -> Vec<&str> {
    let svids = answer.get("svids").and_then(Value::as_array);
    svids
        .into_iter()
        .flatten()
        .filter_map(|svid| svid.get("spiffe_id").and_then(Value::as_str))
        .collect()
}
