//! `localauthority x509|jwt`: the server's own signing authorities, shown and rotated by hand.

use proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use proto::spire::api::server::localauthority::v1::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, AuthorityState,
    GetJwtAuthorityStateRequest, GetX509AuthorityStateRequest, PrepareJwtAuthorityRequest,
    PrepareX509AuthorityRequest, RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest,
    TaintJwtAuthorityRequest, TaintX509AuthorityRequest,
};
use tonic::transport::Channel;

use crate::cli::args::Args;
use crate::cli::command::Command;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::flag::Flag;
use crate::cli::output::{Output, Table, proto_json};
use crate::cli::timefmt;

const AUTHORITY_ID: Flag<String> = Flag::text("authorityID", "authority-id", "The authority's ID")
    .value("AUTHORITY-ID")
    .positional();

const PREPARE: &str = "Make a new authority and put it into the bundle, not signing yet";
const ACTIVATE: &str = "Sign with the prepared authority from now on";
const TAINT: &str = "Mark the old authority as not to be trusted: what it signed is issued again";
const REVOKE: &str = "Take the old, tainted authority out of the bundle";
const ROTATION: &str = "\
To rotate by hand: prepare; wait until every agent has the new bundle; activate; then, once nothing
uses what the old authority signed, taint and revoke it.";

pub(super) const X509_SHOW: Command = Command::of_server(
    &["localauthority", "x509", "show"],
    "Show the X.509 authorities",
    |c, _a| Box::pin(show(c, Type::X509)),
);
pub(super) const X509_PREPARE: Command =
    Command::of_server(&["localauthority", "x509", "prepare"], PREPARE, |c, a| {
        Box::pin(change(c, a, Type::X509, Step::Prepare))
    });
pub(super) const X509_ACTIVATE: Command =
    Command::of_server(&["localauthority", "x509", "activate"], ACTIVATE, |c, a| {
        Box::pin(change(c, a, Type::X509, Step::Activate))
    })
    .flags(&[AUTHORITY_ID.spec])
    .examples(ROTATION);
pub(super) const X509_TAINT: Command =
    Command::of_server(&["localauthority", "x509", "taint"], TAINT, |c, a| {
        Box::pin(change(c, a, Type::X509, Step::Taint))
    })
    .flags(&[AUTHORITY_ID.spec]);
pub(super) const X509_REVOKE: Command =
    Command::of_server(&["localauthority", "x509", "revoke"], REVOKE, |c, a| {
        Box::pin(change(c, a, Type::X509, Step::Revoke))
    })
    .flags(&[AUTHORITY_ID.spec]);
pub(super) const JWT_SHOW: Command = Command::of_server(
    &["localauthority", "jwt", "show"],
    "Show the JWT authorities",
    |c, _a| Box::pin(show(c, Type::Jwt)),
);
pub(super) const JWT_PREPARE: Command =
    Command::of_server(&["localauthority", "jwt", "prepare"], PREPARE, |c, a| {
        Box::pin(change(c, a, Type::Jwt, Step::Prepare))
    });
pub(super) const JWT_ACTIVATE: Command =
    Command::of_server(&["localauthority", "jwt", "activate"], ACTIVATE, |c, a| {
        Box::pin(change(c, a, Type::Jwt, Step::Activate))
    })
    .flags(&[AUTHORITY_ID.spec])
    .examples(ROTATION);
pub(super) const JWT_TAINT: Command =
    Command::of_server(&["localauthority", "jwt", "taint"], TAINT, |c, a| {
        Box::pin(change(c, a, Type::Jwt, Step::Taint))
    })
    .flags(&[AUTHORITY_ID.spec]);
pub(super) const JWT_REVOKE: Command =
    Command::of_server(&["localauthority", "jwt", "revoke"], REVOKE, |c, a| {
        Box::pin(change(c, a, Type::Jwt, Step::Revoke))
    })
    .flags(&[AUTHORITY_ID.spec]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    X509,
    Jwt,
}

impl Type {
    const fn name(self) -> &'static str {
        match self {
            Self::X509 => "X.509",
            Self::Jwt => "JWT",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Prepare,
    Activate,
    Taint,
    Revoke,
}

impl Step {
    /// As a command, and as what has been done.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Prepare => ("prepare", "Prepared"),
            Self::Activate => ("activate", "Activated"),
            Self::Taint => ("taint", "Tainted"),
            Self::Revoke => ("revoke", "Revoked"),
        }
    }
}

type Client = LocalAuthorityClient<Channel>;
type Answer = Result<(Option<AuthorityState>, serde_json::Value), CliError>;

async fn show(context: Context, kind: Type) -> Result<Output, CliError> {
    let mut client = Client::new(context.channel().await?);
    let (states, reply) = match kind {
        Type::X509 => {
            let reply = client
                .get_x509_authority_state(GetX509AuthorityStateRequest {})
                .await
                .map_err(|status| CliError::status("could not get X.509 authorities", status))?
                .into_inner();
            let json = proto_json(&message("Get", kind, "AuthorityStateResponse"), &reply)?;
            ([reply.active, reply.prepared, reply.old], json)
        }
        Type::Jwt => {
            let reply = client
                .get_jwt_authority_state(GetJwtAuthorityStateRequest {})
                .await
                .map_err(|status| CliError::status("", status))?
                .into_inner();
            let json = proto_json(&message("Get", kind, "AuthorityStateResponse"), &reply)?;
            ([reply.active, reply.prepared, reply.old], json)
        }
    };
    let slots = [
        ("Active", "active"),
        ("Prepared", "prepared"),
        ("Old", "old"),
    ];
    let mut paragraphs = Vec::new();
    let mut rows = Vec::new();
    for ((title, word), state) in slots.into_iter().zip(&states) {
        let body = match state {
            Some(state) => text(kind, state),
            None => format!("  No {word} {} authority found\n", kind.name()),
        };
        paragraphs.push(format!("{title} {} authority:\n{body}", kind.name()));
        if let Some(state) = state {
            rows.push(row(word, state));
        }
    }
    Ok(Output {
        replies: vec![reply],
        ..Output::text_and_table(paragraphs.join("\n"), table(rows))
    })
}

async fn change(context: Context, args: Args, kind: Type, step: Step) -> Result<Output, CliError> {
    // `prepare` makes a new authority, so it has no such flag.
    let id = match step {
        Step::Prepare => String::new(),
        Step::Activate | Step::Taint | Step::Revoke => args.get(AUTHORITY_ID).to_owned(),
    };
    if step != Step::Prepare && id.is_empty() {
        return Err(CliError::usage("an authority ID is required"));
    }
    let client = Client::new(context.channel().await?);
    let (state, reply) = match kind {
        Type::X509 => x509(client, step, id).await?,
        Type::Jwt => jwt(client, step, id).await?,
    };
    let (_, done) = step.words();
    let state = state.ok_or_else(|| {
        CliError::failed(format!(
            "internal error: expected to have {} {} authority information",
            done.to_lowercase(),
            kind.name()
        ))
    })?;
    let text = format!("{done} {} authority:\n{}", kind.name(), text(kind, &state));
    let table = table(vec![row(&done.to_lowercase(), &state)]);
    Ok(Output {
        replies: vec![reply],
        ..Output::text_and_table(text, table)
    })
}

async fn x509(mut client: Client, step: Step, authority_id: String) -> Answer {
    let failed = failed(Type::X509, step);
    Ok(match step {
        Step::Prepare => {
            let reply = client
                .prepare_x509_authority(PrepareX509AuthorityRequest {})
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Prepare", Type::X509, "AuthorityResponse"), &reply)?;
            (reply.prepared_authority, json)
        }
        Step::Activate => {
            let request = ActivateX509AuthorityRequest { authority_id };
            let reply = client
                .activate_x509_authority(request)
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(
                &message("Activate", Type::X509, "AuthorityResponse"),
                &reply,
            )?;
            (reply.activated_authority, json)
        }
        Step::Taint => {
            let request = TaintX509AuthorityRequest { authority_id };
            let reply = client
                .taint_x509_authority(request)
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Taint", Type::X509, "AuthorityResponse"), &reply)?;
            (reply.tainted_authority, json)
        }
        Step::Revoke => {
            let request = RevokeX509AuthorityRequest { authority_id };
            let reply = client
                .revoke_x509_authority(request)
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Revoke", Type::X509, "AuthorityResponse"), &reply)?;
            (reply.revoked_authority, json)
        }
    })
}

async fn jwt(mut client: Client, step: Step, authority_id: String) -> Answer {
    let failed = failed(Type::Jwt, step);
    Ok(match step {
        Step::Prepare => {
            let reply = client
                .prepare_jwt_authority(PrepareJwtAuthorityRequest {})
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Prepare", Type::Jwt, "AuthorityResponse"), &reply)?;
            (reply.prepared_authority, json)
        }
        Step::Activate => {
            let request = ActivateJwtAuthorityRequest { authority_id };
            let reply = client
                .activate_jwt_authority(request)
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Activate", Type::Jwt, "AuthorityResponse"), &reply)?;
            (reply.activated_authority, json)
        }
        Step::Taint => {
            let request = TaintJwtAuthorityRequest { authority_id };
            let reply = client
                .taint_jwt_authority(request)
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Taint", Type::Jwt, "AuthorityResponse"), &reply)?;
            (reply.tainted_authority, json)
        }
        Step::Revoke => {
            let request = RevokeJwtAuthorityRequest { authority_id };
            let reply = client
                .revoke_jwt_authority(request)
                .await
                .map_err(failed)?
                .into_inner();
            let json = proto_json(&message("Revoke", Type::Jwt, "AuthorityResponse"), &reply)?;
            (reply.revoked_authority, json)
        }
    })
}

fn failed(kind: Type, step: Step) -> impl Fn(tonic::Status) -> CliError {
    move |status| {
        let (verb, _) = step.words();
        CliError::status(
            format!("could not {verb} {} authority", kind.name()),
            status,
        )
    }
}

/// The full name of a reply's message.
fn message(verb: &str, kind: Type, rest: &str) -> String {
    let kind = match kind {
        Type::X509 => "X509",
        Type::Jwt => "JWT",
    };
    format!("spire.api.server.localauthority.v1.{verb}{kind}{rest}")
}

/// SPIRE's text of an authority.
fn text(kind: Type, state: &AuthorityState) -> String {
    let mut text = format!(
        "  Authority ID: {}\n  Expires at: {}\n",
        state.authority_id,
        timefmt::go_text(state.expires_at)
    );
    match (kind, state.upstream_authority_subject_key_id.as_str()) {
        (Type::Jwt, _) => {}
        (Type::X509, "") => text.push_str("  Upstream authority ID: No upstream authority\n"),
        (Type::X509, id) => text.push_str(&format!("  Upstream authority Subject Key ID: {id}\n")),
    }
    text
}

fn row(slot: &str, state: &AuthorityState) -> Vec<String> {
    vec![
        slot.to_owned(),
        state.authority_id.clone(),
        // The reply to `revoke` has no expiry.
        match state.expires_at {
            0 => String::new(),
            at => timefmt::rfc3339(at),
        },
        state.upstream_authority_subject_key_id.clone(),
    ]
}

fn table(rows: Vec<Vec<String>>) -> Table {
    Table {
        headings: vec!["STATE", "AUTHORITY", "EXPIRES", "UPSTREAM KEY"],
        rows,
    }
}
