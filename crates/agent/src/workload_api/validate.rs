//! ValidateJWTSVID: a token against the bundles that the caller may verify by.

use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use proto::workload::{ValidateJwtsvidRequest, ValidateJwtsvidResponse};
use spiffe::bundle::JwtBundle;
use spiffe::secret::Secret;
use spiffe::svid::jwt::{JwtBundleSource, verify_jwt_svid};
use spiffe::trust_domain::TrustDomain;
use tonic::Status;

use super::Context;
use super::messages::Encoded;
use crate::attestor::Workload;
use crate::cache::update::WorkloadUpdate;

/// The claims that are always returned of a token of another trust domain.
const ALWAYS: [&str; 3] = ["sub", "exp", "aud"];
/// Claims are nested as deep as this, not deeper.
const DEEPEST: usize = 32;

pub(super) async fn validate(
    context: Arc<Context>,
    workload: Arc<Workload>,
    request: ValidateJwtsvidRequest,
) -> Result<Encoded, Status> {
    if request.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if request.svid.is_empty() {
        return Err(Status::invalid_argument("svid must be specified"));
    }
    let svid = Secret::new(request.svid);
    let caller = context.gate.admit(workload, None).await?;
    let update = context.gate.cache.current(&caller.selectors);
    let verified = verify_jwt_svid(
        svid.expose(),
        &request.audience,
        &Visible(&update),
        context.clock.now(),
    )
    .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let foreign = !verified.id().is_member_of(&context.trust_domain);
    let allowed = |name: &str| {
        !foreign
            || ALWAYS.contains(&name)
            || context
                .config
                .allowed_foreign_jwt_claims
                .iter()
                .any(|allowed| allowed == name)
    };
    let spiffe_id = verified.id().to_string();
    let claims = verified
        .into_claims()
        .into_iter()
        .filter(|(name, _)| allowed(name))
        .map(|(name, value)| {
            // `aud` may be one string in the token; here it is always a list.
            let value = match value {
                serde_json::Value::String(one) if name == "aud" => {
                    serde_json::Value::Array(vec![serde_json::Value::String(one)])
                }
                other => other,
            };
            (name, to_wire(value, 0))
        });
    let response = ValidateJwtsvidResponse {
        spiffe_id,
        claims: Some(Struct {
            fields: claims.collect(),
        }),
    };
    Ok(Encoded::of(&response))
}

/// The bundles of the caller's own trust domain and of those that its entries federate with.
#[derive(Debug)]
struct Visible<'a>(&'a WorkloadUpdate);

impl JwtBundleSource for Visible<'_> {
    fn jwt_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<JwtBundle>> {
        self.0
            .bundle_of(trust_domain)
            .map(|bundle| Arc::clone(bundle.jwt()))
    }
}

fn to_wire(value: serde_json::Value, depth: usize) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        _ if depth >= DEEPEST => Kind::NullValue(0),
        serde_json::Value::Array(values) => Kind::ListValue(ListValue {
            values: values
                .into_iter()
                .map(|value| to_wire(value, depth + 1))
                .collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, to_wire(value, depth + 1)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}
