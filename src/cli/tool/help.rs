//! `help`: a code explained, or the list of codes; nothing is looked up outside the program.

use plugin::fault::{Code, Fault};

use crate::cli::args::Args;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::{Output, Table};
use crate::cli::spec::{Command, Endpoint, Flag, Kind, Program, Surface, flag};

const FLAGS: &[Flag] = &[flag("code", "CODE", Kind::Word, "The code")];

pub(crate) fn command() -> Command {
    Command {
        program: Program::Plastron,
        path: &["help"],
        about: "Explain an error code, such as PLA-1203; without one, list them",
        flags: FLAGS,
        endpoint: Endpoint::None,
        formats: false,
        surface: Surface::Native,
        run: |context, args| Box::pin(std::future::ready(run(&context, &args))),
    }
}

fn run(_context: &Context, args: &Args) -> Result<Output, CliError> {
    let Some(word) = args.optional("code") else {
        let rows = Code::ALL
            .iter()
            .map(|code| vec![code.as_str().to_owned(), code.title().to_owned()])
            .collect();
        return Ok(Output {
            table: Some(Table {
                headings: vec!["CODE", "MEANING"],
                rows,
            }),
            ..Output::default()
        });
    };
    match Code::parse(word) {
        Some(code) => Ok(Output::text(format!("{code}: {}\n\n{}\n", code.title(), wrapped(code.help())))),
        None => Err(Fault::new(Code::Usage, format!("{word:?} is not an error code"))
            .hint("`plastron help` lists them; a command is explained by `plastron COMMAND --help`")
            .into()),
    }
}

/// Lines of at most 80 characters.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 80 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
