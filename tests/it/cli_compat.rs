//! SPIRE's commands answer with SPIRE's texts and exit codes.
//!
//! Each test runs the commands of one file in `cli_compat/` in a fresh deployment and compares what they print with the file.
//! What differs from run to run (IDs, times, keys) is replaced by a mark in both. With `PLASTRON_TEST_BLESS` the file
//! is written instead: do that with SPIRE's programs only, since the files say what SPIRE does.

mod normalize;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use harness::deployment::{CHANGE, own_user};
use harness::process::Ran;
use harness::{Deployment, Entry, id};

use normalize::normalize;

/// `{agent}` in a command is the agent's SPIFFE ID, `{entry}` the ID of an existing entry, `{file}` a file's path.
struct Session {
    deployment: Deployment,
    entry: String,
    agent_id: String,
}

impl Session {
    fn start() -> Result<Self> {
        let deployment = Deployment::start()?;
        let entry = Entry::new(&Deployment::node(), &id("/web"), &own_user());
        let entry = deployment.server.create_entry(&entry)?;
        deployment.agent.wait_for_ids(&[&id("/web")], CHANGE)?;
        let agent_id = deployment.agent_id()?;
        Ok(Self {
            deployment,
            entry,
            agent_id,
        })
    }

    /// Runs one line: `server …` or `agent …`.
    fn run(&self, line: &str) -> Result<Ran> {
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| {
                word.replace("{agent}", &self.agent_id)
                    .replace("{entry}", &self.entry)
                    .replace(
                        "{file}",
                        &self
                            .deployment
                            .server
                            .dir()
                            .join("written")
                            .display()
                            .to_string(),
                    )
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.split_first() {
            Some((&"server", args)) => self.deployment.server.cli(args),
            Some((&"agent", args)) => self.deployment.agent.cli(args),
            _ => anyhow::bail!("a line starts with server or agent: {line}"),
        }
    }
}

/// The transcript of one command: the command, its exit code, its output, and the first line of its complaint.
fn transcript(line: &str, ran: &Ran) -> String {
    let mut text = format!("$ {line}\nexit {}\n{}", ran.code, normalize(&ran.stdout));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if let Some(complaint) = ran.stderr.lines().find(|line| !line.trim().is_empty()) {
        text.push_str(&format!("! {}\n", without_library(&normalize(complaint))));
    }
    text
}

/// What the libraries of one language say about a name, a date or a number is their own; up to there it is SPIRE's.
const LIBRARIES: [&str; 4] = [
    "idna error",
    "date is not valid",
    "for flag -timeout",
    "for flag -output",
];

fn without_library(complaint: &str) -> &str {
    let end = LIBRARIES
        .iter()
        .find_map(|marker| Some(complaint.find(marker)? + marker.len()));
    end.and_then(|end| complaint.get(..end))
        .unwrap_or(complaint)
}

/// Whether the output is the same and the complaint the same, or one that says more.
fn agrees(found: &str, expected: &str) -> bool {
    match (found.split_once("\n! "), expected.split_once("\n! ")) {
        (Some((found, complaint)), Some((expected, start))) => {
            found == expected && complaint.starts_with(start)
        }
        _ => found == expected,
    }
}

fn compare(name: &str) -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("it/cli_compat/{name}.txt"));
    let expected = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let session = Session::start()?;
    let mut found = Vec::new();
    for line in expected.lines().filter_map(|line| line.strip_prefix("$ ")) {
        found.push(transcript(line, &session.run(line)?));
    }
    let found = found.join("\n");
    if std::env::var_os("PLASTRON_TEST_BLESS").is_some() {
        return Ok(std::fs::write(path, found)?);
    }
    let differences: Vec<String> = found
        .split("\n$ ")
        .zip(expected.split("\n$ "))
        .filter(|(found, expected)| !agrees(found.trim(), expected.trim()))
        .map(|(found, expected)| {
            format!(
                "--- expected\n{}\n--- found\n{}",
                expected.trim(),
                found.trim()
            )
        })
        .collect();
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[test]
fn entry_commands_print_as_spire() -> Result<()> {
    compare("entry")
}

#[test]
fn agent_commands_print_as_spire() -> Result<()> {
    compare("agent")
}

#[test]
fn bundle_commands_print_as_spire() -> Result<()> {
    compare("bundle")
}

#[test]
fn token_and_mint_commands_print_as_spire() -> Result<()> {
    compare("mint")
}

#[test]
fn workload_commands_print_as_spire() -> Result<()> {
    compare("workload")
}

#[test]
fn refused_arguments_print_as_spire() -> Result<()> {
    compare("refused")
}
