//! `plastron`: one program for the server, the agent and the tools; called as `spire-server` or `spire-agent` it
//! takes SPIRE's flags and answers in SPIRE's texts. The only crate that prints or exits.

mod cli;
mod logging;

use std::process::ExitCode;

fn main() -> ExitCode {
    let argv: Vec<std::ffi::OsString> = std::env::args_os().collect();
    cli::main(&argv)
}
