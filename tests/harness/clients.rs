//! The published SDKs' clients (`tests/interop/clients`), as `tests/run` has built them under `PLASTRON_TEST_CLIENTS`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agent::Agent;
use crate::process::{self, Process};
use crate::wait;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Go,
    Java,
    Python,
    Node,
}

/// How to run one of the clients.
#[derive(Debug, Clone)]
pub struct Client {
    pub language: Language,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
}

impl Client {
    pub fn of(language: Language) -> Result<Self> {
        let built = std::env::var_os("PLASTRON_TEST_CLIENTS").context(
            "PLASTRON_TEST_CLIENTS is not set; tests/run builds the clients and sets it",
        )?;
        let built = PathBuf::from(built);
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (program, args, env) = match language {
            Language::Go => (built.join("go/client"), Vec::new(), Vec::new()),
            Language::Java => {
                let classes = built.join("java/classes");
                let path = format!(
                    "{}:{}/*",
                    classes.display(),
                    built.join("java/lib").display()
                );
                let args = [
                    "-Xshare:auto",
                    "-XX:TieredStopAtLevel=1",
                    "-cp",
                    path.as_str(),
                    "plastron.Main",
                ];
                (find("java")?, args.map(OsString::from).to_vec(), Vec::new())
            }
            Language::Python => {
                let script = package.join("interop/clients/python/client.py");
                (
                    built.join("python/bin/python"),
                    vec![script.into_os_string()],
                    Vec::new(),
                )
            }
            Language::Node => {
                let proto = package.join("../proto");
                let workload = proto.join("spiffe/workload/workload.proto");
                let env = vec![
                    ("WORKLOAD_PROTO", workload.into_os_string()),
                    ("WORKLOAD_PROTO_INCLUDE", proto.into_os_string()),
                ];
                (
                    find("node")?,
                    vec![built.join("node/client.js").into_os_string()],
                    env,
                )
            }
        };
        if !program.exists() {
            bail!("{} is missing; tests/run builds it", program.display());
        }
        Ok(Self {
            language,
            program,
            args,
            env,
        })
    }

    /// The file that the kernel says it runs: its `unix:path`.
    pub fn executable(&self) -> Result<PathBuf> {
        Ok(self.program.canonicalize()?)
    }

    fn command(&self, agent: &Agent, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("SPIFFE_ENDPOINT_SOCKET", agent.endpoint());
        command
    }

    /// Runs a sub-command to its end and returns the objects it printed.
    pub fn run(&self, agent: &Agent, args: &[&str]) -> Result<Vec<Value>> {
        let ran = process::run(&mut self.command(agent, args), Duration::from_secs(90))?;
        let lines = objects(&ran.stdout);
        if !ran.succeeded() {
            let reason = lines
                .last()
                .and_then(|line| line.get("error"))
                .and_then(Value::as_str);
            bail!(
                "{:?} client {args:?}: {}",
                self.language,
                reason.unwrap_or(&ran.text())
            );
        }
        Ok(lines)
    }

    /// Runs a sub-command that prints one object.
    pub fn one(&self, agent: &Agent, args: &[&str]) -> Result<Value> {
        let mut lines = self.run(agent, args)?;
        lines.pop().context("the client printed nothing")
    }

    /// Starts the mTLS server that admits `peer`, and returns it with its address.
    pub fn serve(&self, agent: &Agent, peer: &str) -> Result<(Process, String)> {
        let log = agent.dir().join(format!("{:?}-serve.log", self.language));
        let mut command = self.command(
            agent,
            &["serve", "--address", "127.0.0.1:0", "--peer", peer],
        );
        let mut process = Process::start(&mut command, &log)?;
        let address = wait::until("the client to listen", Duration::from_secs(30), || {
            let lines = objects(&process.log());
            let address = lines
                .iter()
                .find_map(|line| Some(line.get("listening")?.as_str()?.to_owned()));
            if address.is_none() && process.ended()?.is_some() {
                bail!("it ended: {}", process.log());
            }
            Ok(address)
        })?;
        Ok((process, address))
    }
}

/// The JSON objects among the lines of `text`.
pub fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("no {program} in PATH"))
}
