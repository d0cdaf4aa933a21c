//! `version`: which Plastron this is.

use serde_json::json;

use crate::cli::command::{Command, Prints};
use crate::cli::output::Output;

pub(crate) const COMMAND: Command =
    Command::local(&["version"], "Print the version", |_context, _args| {
        Box::pin(std::future::ready(Ok(output())))
    })
    .prints(Prints::DataNatively);

fn output() -> Output {
    let version = env!("CARGO_PKG_VERSION");
    Output {
        replies: vec![json!({ "version": version })],
        ..Output::text(format!("plastron {version}"))
    }
}
