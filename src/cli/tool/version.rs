//! `version`: which Plastron this is.

use serde_json::json;

use crate::cli::error_report::API_VERSION;
use crate::cli::output::Output;
use crate::cli::spec::{Command, Endpoint, Program, Surface};

pub(crate) fn command() -> Command {
    Command {
        program: Program::Plastron,
        path: &["version"],
        about: "Print the version",
        flags: &[],
        endpoint: Endpoint::None,
        formats: false,
        surface: Surface::Native,
        run: |_context, _args| Box::pin(std::future::ready(Ok(output()))),
    }
}

fn output() -> Output {
    let version = env!("CARGO_PKG_VERSION");
    Output {
        replies: vec![json!({ "apiVersion": API_VERSION, "version": version })],
        ..Output::text(format!("plastron {version}"))
    }
}
