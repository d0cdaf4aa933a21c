//! Runs the agent alone, with a configuration file: `cargo run -p plastron-agent --example agent -- agent.conf [TOKEN]`.
//! For trying things out; the program of record is `plastron agent run`.

use std::path::Path;
use std::process::ExitCode;

use config::Document;
use plastron_agent::{Agent, Config, Overrides};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap_or_else(|| "agent.conf".to_owned());
    let overrides = Overrides {
        join_token: arguments.next(),
        ..Overrides::default()
    };
    match run(&file, &overrides) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(file: &str, overrides: &Overrides) -> Result<(), Box<dyn std::error::Error>> {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stderr)
        .finish();
    tracing::subscriber::set_global_default(subscriber)?;
    let document = Document::load(Path::new(file), None)?;
    let config = Config::from_document(&document, overrides)?;
    let bound = Agent::bind(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    Ok(runtime.block_on(bound.run(async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tell(&error);
        }
    }))?)
}

#[expect(clippy::print_stderr, reason = "an example has no other face")]
fn tell(error: &dyn std::fmt::Display) {
    eprintln!("{error}");
}
