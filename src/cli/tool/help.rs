//! `help`: a command, or a code, explained; nothing is looked up outside the program.

use config::fault::Code;
use serde_json::json;

use crate::cli::args::Args;
use crate::cli::command::{Command, Prints};
use crate::cli::commands;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::native::{command_line, usage};
use crate::cli::output::{Output, Table};

const TOPIC: Flag<Vec<String>> = Flag::words(
    "topic",
    "TOPIC",
    "The words of a command, a code such as PLA-1203, or `codes` for all of them",
);

const FLAGS: &[FlagSpec] = &[TOPIC.spec];

pub(crate) const COMMAND: Command = Command::local(
    &["help"],
    "Explain a command or an error code",
    |context, args| Box::pin(std::future::ready(run(&context, &args))),
)
.flags(FLAGS)
.prints(Prints::DataNatively)
.examples(
    "\
  plastron help server entry create
  plastron help PLA-1203
  plastron help codes",
);

fn run(_context: &Context, args: &Args) -> Result<Output, CliError> {
    let words = args.get(TOPIC);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words == ["codes"] {
        return Ok(codes());
    }
    if let [word] = words.as_slice()
        && let Some(code) = Code::parse(word)
    {
        let text = format!("{code}: {}\n\n{}\n", code.title(), wrapped(code.help()));
        return Ok(Output {
            replies: vec![row(code)],
            ..Output::text(text)
        });
    }
    let mut line = command_line::command_line(&commands());
    line.build();
    let mut found = &mut line;
    for word in &words {
        match found.find_subcommand_mut(word) {
            Some(below) => found = below,
            None => {
                let topic = words.join(" ");
                return Err(usage::usage(
                    &format!("{topic:?} is neither a command nor an error code"),
                    "",
                )
                .hint("`plastron help` lists the commands, `plastron help codes` the codes")
                .into());
            }
        }
    }
    let text = found.render_long_help().to_string();
    Ok(Output {
        replies: vec![json!({ "help": text })],
        ..Output::text(text)
    })
}

fn row(code: Code) -> serde_json::Value {
    json!({
        "code": code.as_str(),
        "meaning": code.title(),
        "exit_code": code.exit_code(),
        "help": code.help(),
    })
}

fn codes() -> Output {
    let table = Table {
        headings: vec!["CODE", "EXIT", "MEANING"],
        rows: Code::ALL
            .iter()
            .map(|code| {
                vec![
                    code.as_str().to_owned(),
                    code.exit_code().to_string(),
                    code.title().to_owned(),
                ]
            })
            .collect(),
    };
    Output {
        replies: vec![json!({ "codes": Code::ALL.iter().copied().map(row).collect::<Vec<_>>() })],
        ..Output::text_and_table("", table)
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

#[cfg(test)]
mod tests {
    use super::{codes, run};
    use crate::cli::args::{Args, Value};
    use crate::cli::commands;
    use crate::cli::context::{Context, Format, Frontend};
    use crate::cli::output::{Output, Table, View};
    use crate::cli::socket::Socket;
    use config::fault::Code;

    fn help(words: &[&str]) -> Result<Output, String> {
        let mut args = Args::default();
        let topic = words.iter().map(|&word| word.to_owned()).collect();
        args.set(&super::TOPIC.spec, Value::List(topic));
        let context = Context::new(
            Frontend::Native,
            &super::COMMAND,
            Format::Table,
            Socket::default(),
        );
        run(&context, &args).map_err(|error| error.to_string())
    }

    #[test]
    fn every_code_is_explained_and_listed() {
        let View::Table(Table { rows: listed, .. }) = codes().shown.native() else {
            panic!("the codes are a table")
        };
        for code in Code::ALL {
            assert!(
                help(&[code.as_str()])
                    .unwrap()
                    .shown
                    .spire()
                    .contains(code.title())
            );
            assert!(listed.iter().any(|row| row[0] == code.as_str()));
        }
    }

    #[test]
    fn every_command_is_explained() {
        for command in commands() {
            let text = help(&command.words()).unwrap().shown.spire();
            assert!(
                text.contains("Usage: plastron "),
                "{:?}: {text}",
                command.words()
            );
        }
        assert!(help(&[]).unwrap().shown.spire().contains("Usage: plastron"));
    }

    #[test]
    fn what_is_no_topic_is_refused() {
        for words in [
            &["PLA-9999"][..],
            &["server", "entry", "make"],
            &["codes", "x"],
            &["12"],
        ] {
            assert!(help(words).unwrap_err().contains("PLA-1008"), "{words:?}");
        }
    }
}
