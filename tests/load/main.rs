//! Measures Plastron and, when `SPIRE_SERVER_BIN` and `SPIRE_AGENT_BIN` name its programs, SPIRE in the same run.
//!
//! The programs under test share one core, the load has the other. Rounds alternate between the subjects; each figure
//! is the median of its rounds. Progress goes to standard error, the result to standard output as one JSON object.

mod agent_side;
mod agents;
mod deployment;
mod entries;
mod rate;
mod report;
mod scale;
mod server_side;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::Subject;

use report::Report;

/// What a run does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) rounds: usize,
    /// How long one figure is measured in one round.
    pub(crate) time: Duration,
    /// How many entries the large part has.
    pub(crate) entries: usize,
    /// How many agents watch in the part `agents`.
    pub(crate) agents: usize,
    /// `server`, `agent`, `scale`, `agents`; empty for all but the last.
    pub(crate) parts: Vec<String>,
}

const USAGE: &str = "plastron-load [--rounds 3] [--seconds 3] [--entries 100000] [--agents 10000]
              [--parts server,agent,scale,agents] [--subjects plastron,spire]

The part `agents` runs when it is named: that many agents, played by this process, hold watch streams of one Plastron server.
Pins the programs under test to core 0 and itself to core 1 (taskset).";

fn plan() -> Result<Plan> {
    let mut plan = Plan {
        subjects: vec![Subject::Plastron],
        rounds: 3,
        time: Duration::from_secs(3),
        entries: 100_000,
        agents: 10_000,
        parts: Vec::new(),
    };
    if std::env::var_os("SPIRE_SERVER_BIN").is_some()
        && std::env::var_os("SPIRE_AGENT_BIN").is_some()
    {
        plan.subjects.push(Subject::Spire);
    }
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{flag} needs a value\n{USAGE}"))?;
        match flag.as_str() {
            "--rounds" => plan.rounds = value.parse()?,
            "--seconds" => plan.time = Duration::from_secs_f64(value.parse()?),
            "--entries" => plan.entries = value.parse()?,
            "--agents" => plan.agents = value.parse()?,
            "--parts" => plan.parts = value.split(',').map(str::to_owned).collect(),
            "--subjects" => {
                plan.subjects = value.split(',').map(subject).collect::<Result<_>>()?;
            }
            other => bail!("unknown flag {other}\n{USAGE}"),
        }
    }
    Ok(plan)
}

fn subject(name: &str) -> Result<Subject> {
    match name {
        "plastron" => Ok(Subject::Plastron),
        "spire" => Ok(Subject::Spire),
        other => bail!("a subject is plastron or spire, not {other}"),
    }
}

fn run() -> Result<()> {
    let plan = plan()?;
    pin_to("1")?;
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    report.limits()?;
    let wanted =
        |part: &str| plan.parts.is_empty() || plan.parts.iter().any(|wanted| wanted == part);
    for round in 0..plan.rounds {
        for subject in &plan.subjects {
            say(&format!(
                "round {} of {}: {subject:?}",
                round + 1,
                plan.rounds
            ));
            if wanted("server") {
                runtime.block_on(server_side::measure(*subject, &plan, &mut report))?;
            }
            if wanted("agent") {
                runtime.block_on(agent_side::measure(*subject, &plan, &mut report))?;
            }
        }
    }
    if wanted("scale") {
        for subject in &plan.subjects {
            say(&format!("{} entries: {subject:?}", plan.entries));
            runtime.block_on(scale::measure(*subject, &plan, &mut report))?;
        }
    }
    if plan.parts.iter().any(|part| part == "agents") {
        say(&format!("{} agents", plan.agents));
        runtime.block_on(agents::measure(&plan, &mut report))?;
    }
    report.print()
}

/// Moves this process, with the threads it will have, to one core.
fn pin_to(core: &str) -> Result<()> {
    let own = std::process::id().to_string();
    let moved = Command::new("taskset")
        .args(["-a", "-p", "-c", core, &own])
        .output()
        .context("run taskset")?;
    if !moved.status.success() {
        bail!("taskset: {}", String::from_utf8_lossy(&moved.stderr));
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "progress of a tool")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
