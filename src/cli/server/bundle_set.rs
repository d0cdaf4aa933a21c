//! `bundle set` and `bundle delete`: the bundles of other trust domains.

use config::fault::{Code, Fault};
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest,
};
use proto::spire::api::types::Status;
use serde_json::Value;
use spiffe::TrustDomain;
use spiffe::bundle::Bundle;

use super::batch::succeeded;
use super::bundle::{BundleFormat, FORMAT, ID, format};
use crate::cli::args::Args;
use crate::cli::command::{Command, Object};
use crate::cli::context::{Context, Frontend};
use crate::cli::error::{Batch, CliError, FailedItem};
use crate::cli::flag::{Flag, FlagSpec};
use crate::cli::output::Output;

const MODE: Flag<String> = Flag::text(
    "mode",
    "mode",
    "What happens to entries that federate with it: restrict (refuse), dissociate, or delete them",
)
.value("MODE")
.or("restrict");
const PATH: Flag<String> = Flag::text(
    "path",
    "path",
    "File with the bundle; standard input when absent",
)
.value("FILE");

const DELETE: &[FlagSpec] = &[ID.positional().spec, MODE.spec];

const SET: &[FlagSpec] = &[ID.positional().spec, PATH.spec, FORMAT.spec];

pub(crate) const SET_COMMAND: Command = Command::of_server(
    &["bundle", "set"],
    "Create or replace the bundle of another trust domain",
    |context, args| Box::pin(set(context, args)),
)
.flags(SET)
.object(Object::Bundle)
.examples("  plastron server bundle set --id other.example --format spiffe --path other.json");

pub(crate) const DELETE_COMMAND: Command = Command::of_server(
    &["bundle", "delete"],
    "Delete the bundle of another trust domain",
    |context, args| Box::pin(delete(context, args)),
)
.flags(DELETE)
.object(Object::Bundle);

async fn set(context: Context, args: Args) -> Result<Output, CliError> {
    let Some(id) = args.optional(ID) else {
        return Err(CliError::usage("id flag is required"));
    };
    let format = format(args.get(FORMAT))?;
    let data = context
        .read_input(args.optional(PATH).unwrap_or("-"))
        .map_err(|error| error.within("unable to load bundle data"))?;
    if context.frontend == Frontend::Native && data.trim_ascii().is_empty() {
        let given = args.optional(PATH).unwrap_or("standard input");
        return Err(Fault::new(Code::InvalidBundle, "no bundle was given")
            .at(given)
            .because("it is empty")
            .hint("name the file with --path, or pipe the bundle in")
            .into());
    }
    if let Some(fault) = not_a_document(&data, format) {
        return Err(CliError::wrong(Code::InvalidBundle, "", fault));
    }
    let domain = TrustDomain::parse(id).map_err(|error| CliError::usage(error.to_string()))?;
    let bundle = match format {
        BundleFormat::Spiffe => {
            let invalid = |fault: &dyn std::fmt::Display| {
                let text = format!("unable to parse to spiffe bundle: {fault}");
                CliError::wrong(Code::InvalidBundle, "", text)
            };
            if let Some(fault) = incomplete_key(&data) {
                return Err(invalid(&fault));
            }
            Bundle::from_spiffe_json(domain, &data).map_err(|error| invalid(&error))?
        }
        BundleFormat::Pem => {
            Bundle::from_pem(domain, &String::from_utf8_lossy(&data)).map_err(|error| {
                let text = format!("unable to parse bundle data: {error}");
                CliError::wrong(Code::InvalidBundle, "", text)
            })?
        }
    };
    if context.frontend == Frontend::Native
        && bundle.x509_authorities.is_empty()
        && bundle.jwt_authorities.is_empty()
    {
        return Err(
            Fault::new(Code::InvalidBundle, "the bundle has no authority")
                .at(args.optional(PATH).unwrap_or("standard input"))
                .because("with it nothing of the trust domain could be verified")
                .hint(format!(
                    "to remove the bundle: plastron server bundle delete --id {id}"
                ))
                .into(),
        );
    }
    let request = BatchSetFederatedBundleRequest {
        bundle: vec![proto::convert::bundle_to_wire(&bundle, None)],
        output_mask: None,
    };
    let reply = BundleClient::new(context.channel().await?)
        .batch_set_federated_bundle(request)
        .await
        .map_err(|status| CliError::status("failed to set federated bundle", status))?
        .into_inner();
    let status = reply
        .results
        .first()
        .and_then(|result| result.status.as_ref());
    let name = "spire.api.server.bundle.v1.BatchSetFederatedBundleResponse";
    if succeeded(status) {
        return Output::text("bundle set.").reply(name, &reply);
    }
    let mut output = Output::default().reply(name, &reply)?;
    let text = format!(
        "failed to set federated bundle: {}",
        status.map_or("", |status| &status.message)
    );
    output.partial_failure = failed(&text, id, status);
    Ok(output)
}

/// The first key that says what it is for and lacks what that needs. A bundle that is fetched is read without such keys
/// (SPIFFE Trust Domain and Bundle §4.2); one that an operator hands in would replace a good bundle by less.
fn incomplete_key(json: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(json).ok()?;
    let keys = document.get("keys")?.as_array()?;
    keys.iter().enumerate().find_map(|(index, key)| {
        let is_missing = |member: &str| match key.get(member) {
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            _ => true,
        };
        let (kind, member) = match key.get("use").and_then(Value::as_str)? {
            "x509-svid" => ("x509-svid", "x5c"),
            "jwt-svid" => ("jwt-svid", "kid"),
            _ => return None,
        };
        is_missing(member).then(|| format!("keys[{index}] is a {kind} key without {member}"))
    })
}

/// What SPIRE says of data that is not in the format at all.
fn not_a_document(data: &[u8], format: BundleFormat) -> Option<String> {
    match format {
        BundleFormat::Pem => (!String::from_utf8_lossy(data).contains("-----BEGIN "))
            .then(|| "unable to parse bundle data: no PEM blocks".to_owned()),
        BundleFormat::Spiffe => match data.trim_ascii_start().first() {
            Some(b'{') => None,
            Some(first) => Some(format!(
                "unable to parse to spiffe bundle: spiffebundle: unable to parse JWKS: invalid character {:?} looking for beginning of value",
                char::from(*first)
            )),
            None => Some(
                "unable to parse to spiffe bundle: spiffebundle: unable to parse JWKS: unexpected end of JSON input"
                    .to_owned(),
            ),
        },
    }
}

/// These batches have one item, and SPIRE says it all in one line.
fn failed(text: &str, id: &str, status: Option<&Status>) -> Option<Batch> {
    Some(Batch {
        text: text.to_owned(),
        items: vec![FailedItem {
            object: id.to_owned(),
            code: status.map_or(tonic::Code::Unknown, |status| {
                tonic::Code::from_i32(status.code)
            }),
            message: status.map_or_else(String::new, |status| status.message.clone()),
            paragraph: String::new(),
        }],
    })
}

async fn delete(context: Context, args: Args) -> Result<Output, CliError> {
    let Some(id) = args.optional(ID) else {
        return Err(CliError::usage("id is required"));
    };
    let mode = match args.get(MODE) {
        "" | "restrict" => Mode::Restrict,
        "dissociate" => Mode::Dissociate,
        "delete" => Mode::Delete,
        other => return Err(CliError::usage(format!("unsupported mode {other:?}"))),
    };
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: vec![id.to_owned()],
        mode: mode.into(),
    };
    let reply = BundleClient::new(context.channel().await?)
        .batch_delete_federated_bundle(request)
        .await
        .map_err(|status| CliError::status("failed to delete federated bundle", status))?
        .into_inner();
    let result = reply.results.first();
    let status = result.and_then(|result| result.status.as_ref());
    let name = "spire.api.server.bundle.v1.BatchDeleteFederatedBundleResponse";
    if succeeded(status) {
        return Output::text("bundle deleted.").reply(name, &reply);
    }
    let mut output = Output::default().reply(name, &reply)?;
    let text = format!(
        "failed to delete federated bundle {:?}: {}",
        result.map_or(id, |result| &result.trust_domain),
        status.map_or("", |status| &status.message)
    );
    output.partial_failure = failed(&text, id, status);
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::incomplete_key;

    #[test]
    fn a_key_that_lacks_what_its_use_needs_is_named() {
        for (key, named) in [
            (r#"{"use":"x509-svid","kty":"EC"}"#, Some("x5c")),
            (r#"{"use":"x509-svid","x5c":[]}"#, Some("x5c")),
            (r#"{"use":"x509-svid","x5c":null}"#, Some("x5c")),
            (r#"{"use":"jwt-svid","kty":"EC"}"#, Some("kid")),
            (r#"{"use":"jwt-svid","kid":""}"#, Some("kid")),
            (r#"{"use":"jwt-svid","kid":"a"}"#, None),
            (r#"{"use":"x509-svid","x5c":["MII"]}"#, None),
            (r#"{"use":"other"}"#, None),
            (r#"{}"#, None),
        ] {
            let fault = incomplete_key(format!(r#"{{"keys":[{{}},{key}]}}"#).as_bytes());
            match (fault, named) {
                (Some(fault), Some(named)) => {
                    assert!(
                        fault.starts_with("keys[1]") && fault.ends_with(named),
                        "{fault}"
                    );
                }
                (None, None) => {}
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}
