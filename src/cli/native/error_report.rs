//! What failed, said natively: the error form with a code, and the exit code that follows from it (0 done, 1 internal,
//! 2 usage, 3 not found, 4 denied, 5 conflict, 6 unreachable, 7 check failed, 8 timeout, 130 interrupted).

use config::fault::{Code, Fault, Faults};
use serde_json::{Value, json};
use tonic::Code as Status;
use tonic_types::StatusExt;

use super::spire_peers;
use super::usage::usage;
use crate::cli::command::{Command, Endpoint};
use crate::cli::context::Format;
use crate::cli::error::{Batch, CliError};

/// The version of the JSON that is our own and not a message of the API.
pub(crate) const API_VERSION: &str = "plastron/v1";
/// SIGINT: 128 + 2, as shells count.
const INTERRUPTED: u8 = 130;

/// Everything that went wrong, as text or in the format that was asked for; and the exit code.
pub(crate) fn report(error: &CliError, command: &Command, format: Format) -> (Option<String>, u8) {
    let faults = match error {
        CliError::Interrupted => return (None, INTERRUPTED),
        CliError::Silent => return (None, 1),
        CliError::Faults(faults) => (**faults).clone(),
        CliError::Batch(batch) => of_batch(batch, command),
        other => Faults::from(fault(other, command)),
    };
    let text = match format {
        Format::Json | Format::Yaml => json_text(&faults),
        Format::Pretty | Format::Table => faults.to_string(),
    };
    (Some(text), faults.exit_code().max(1))
}

/// `{"apiVersion", "errors": [{"code", "what", …}]}`; YAML reads it too.
fn json_text(faults: &Faults) -> String {
    let errors: Vec<Value> = faults
        .iter()
        .map(|fault| {
            let mut object = serde_json::Map::new();
            object.insert("code".to_owned(), json!(fault.code.as_str()));
            object.insert("what".to_owned(), json!(fault.what));
            for (key, value) in [
                ("at", &fault.at),
                ("because", &fault.because),
                ("hint", &fault.hint),
            ] {
                if let Some(value) = value {
                    object.insert(key.to_owned(), json!(value));
                }
            }
            Value::Object(object)
        })
        .collect();
    json!({ "apiVersion": API_VERSION, "errors": errors }).to_string()
}

fn fault(error: &CliError, command: &Command) -> Fault {
    match error {
        CliError::Fault(fault) => (**fault).clone(),
        CliError::Status { context, status } => {
            let given = given_code(status);
            let code = given.as_ref().map_or_else(
                || spire_peers::code(status.code(), status.message(), command),
                |(code, _hint)| *code,
            );
            let fault = match context.as_str() {
                "" => Fault::new(code, sentence(status.code(), status.message())),
                context => {
                    Fault::new(code, context).because(sentence(status.code(), status.message()))
                }
            };
            match given.and_then(|(_code, hint)| hint) {
                Some(hint) => fault.hint(hint),
                None => hinted(fault, command),
            }
        }
        CliError::File {
            code,
            path,
            because,
            ..
        } => {
            let what = match code {
                Code::FileUnwritable => "the file cannot be written",
                _ => "the file cannot be read",
            };
            Fault::new(*code, what).at(path).because(because)
        }
        CliError::Check { code, text } => hinted(Fault::new(*code, text), command),
        CliError::Usage { native, .. } => usage(native, &command.words().join(" ")),
        CliError::Wrong { code, value, text } => wrong(*code, value, text),
        other => Fault::new(Code::Internal, other.to_string()),
    }
}

/// A value that cannot be what it should be.
fn wrong(code: Code, value: &str, text: &str) -> Fault {
    match code {
        Code::InvalidSpiffeId => Fault::new(code, format!("{value:?} is not a SPIFFE ID"))
            .because(text)
            .hint("write spiffe://TRUST-DOMAIN/PATH; entries and mint take the path alone too, such as web"),
        Code::InvalidSelector => Fault::new(code, format!("{value:?} is not a selector"))
            .hint("write TYPE:VALUE, such as unix:uid:1000"),
        _ if value.is_empty() => Fault::new(code, text),
        _ => Fault::new(code, text).at(value),
    }
}

fn of_batch(batch: &Batch, command: &Command) -> Faults {
    let faults: Vec<Fault> = batch
        .items
        .iter()
        .map(|item| {
            let code = spire_peers::code(item.code, &item.message, command);
            hinted(
                Fault::new(code, sentence(item.code, &item.message)).at(&item.object),
                command,
            )
        })
        .collect();
    if faults.is_empty() {
        return Fault::new(Code::Internal, &batch.text).into();
    }
    Faults(faults)
}

/// The peer's words; a status without any has its code's.
fn sentence(code: Status, message: &str) -> String {
    if message.is_empty() {
        code.description().to_owned()
    } else {
        message.to_owned()
    }
}

/// The domain of our codes in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "plastron";

/// The code and the hint that a Plastron server or agent sends beside its message. SPIRE's send none: what they mean is
/// taken from status and message.
fn given_code(status: &tonic::Status) -> Option<(Code, Option<String>)> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    let hint = info.metadata.get("hint").filter(|hint| !hint.is_empty());
    Some((Code::parse(&info.reason)?, hint.cloned()))
}

/// Adds what to do about it, where there is something to type.
fn hinted(fault: Fault, command: &Command) -> Fault {
    let hint = match fault.code {
        Code::EntryNotFound => "`plastron server entry show` lists the entries".to_owned(),
        Code::SimilarEntry => {
            "`plastron server entry show` finds it, `plastron server entry update` changes it"
                .to_owned()
        }
        Code::AgentNotFound => "`plastron server agent list` lists the nodes".to_owned(),
        Code::BundleNotFound => "`plastron server bundle list` lists the bundles".to_owned(),
        Code::BundleInUse => {
            "choose with --mode: dissociate keeps the entries, delete removes them".to_owned()
        }
        Code::UnknownFederatedTrustDomain => {
            "`plastron server bundle set --id TRUST-DOMAIN --path FILE` imports its bundle"
                .to_owned()
        }
        Code::NoIdentityIssued => format!(
            "register this process: plastron server entry create --spiffe-id NAME --selector unix:uid:{}",
            nix::unistd::getuid()
        ),
        Code::AgentNotReady => "`plastron agent healthcheck` reports when it is ready".to_owned(),
        Code::TimedOut if command.endpoint() == Some(Endpoint::Workload) => {
            "the agent has nothing to give yet: `plastron agent healthcheck`, and its log, say whether it reaches its server; \
             a longer time is given with --timeout"
                .to_owned()
        }
        Code::TimedOut => "a longer time is given with --timeout".to_owned(),
        Code::DatabaseUnreachable => {
            "/ready of the server has the cause; the server recovers by itself when the database answers".to_owned()
        }
        Code::DiskFull => "free some space on the server's disk; the server recovers by itself".to_owned(),
        Code::CheckFailed if command.words().last() == Some(&"healthcheck") => format!(
            "the log of the {0} and its /ready (health_checks) have the cause",
            command.program.word()
        ),
        Code::Internal => format!("see the log of the {}", command.program.word()),
        _ => return fault,
    };
    fault.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::report;
    use crate::cli::command::Command;
    use crate::cli::context::Format;
    use crate::cli::error::{Batch, CliError, FailedItem};
    use config::fault::Code;
    use tonic::{Code as Status, Status as Reply};
    use tonic_types::StatusExt;

    fn command(words: &[&str]) -> Command {
        crate::cli::commands()
            .into_iter()
            .find(|command| command.words() == words)
            .unwrap()
    }

    #[test]
    fn each_failed_item_of_a_batch_is_a_fault_of_its_own() {
        let item = |code, object: &str| FailedItem {
            object: object.to_owned(),
            code,
            message: String::new(),
            paragraph: String::new(),
        };
        let error = CliError::Batch(Box::new(Batch {
            text: "failed".to_owned(),
            items: vec![item(Status::NotFound, "e-1"), item(Status::Internal, "e-2")],
        }));
        let (text, exit) = report(
            &error,
            &command(&["server", "entry", "delete"]),
            Format::Table,
        );
        let text = text.unwrap();
        assert!(
            text.contains("error[PLA-2005]") && text.contains("at: e-2"),
            "{text}"
        );
        assert_eq!(exit, 3);
    }

    #[test]
    fn an_error_is_json_when_json_was_asked_for() {
        let error = CliError::status("", Reply::not_found("agent not found"));
        let (text, exit) = report(&error, &command(&["server", "agent", "show"]), Format::Json);
        let value: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
        assert_eq!(value["errors"][0]["code"], "PLA-2009");
        assert_eq!(exit, 3);
    }

    #[test]
    fn the_code_and_the_hint_that_the_peer_sends_win_over_what_its_words_seem_to_mean() {
        let reply = |reason: &str, domain: &str, hint: &str| {
            let mut details = tonic_types::ErrorDetails::new();
            let hints = std::collections::HashMap::from([("hint".to_owned(), hint.to_owned())]);
            details.set_error_info(reason, domain, hints);
            let status = Reply::with_error_details(Status::Unavailable, "not now", details);
            let command = command(&["agent", "api", "fetch", "x509"]);
            super::fault(&CliError::status("", status), &command)
        };
        let fault = reply("PLA-2107", "plastron", "run it as root");
        assert_eq!(fault.code, Code::WorkloadUnreadable);
        assert_eq!(fault.hint.as_deref(), Some("run it as root"));
        for (reason, domain) in [
            ("PLA-2107", "elsewhere"),
            ("PLA-9999", "plastron"),
            ("", "plastron"),
        ] {
            assert_eq!(
                reply(reason, domain, "").code,
                Code::AgentNotReady,
                "{reason}"
            );
        }
    }

    #[test]
    fn an_interrupted_command_says_nothing() {
        let reported = report(
            &CliError::Interrupted,
            &command(&["agent", "api", "watch"]),
            Format::Table,
        );
        assert_eq!(reported, (None, 130));
    }
}
