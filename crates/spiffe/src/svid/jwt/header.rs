//! The JOSE header of a JWT-SVID (JWT-SVID §2): read with the algorithm first, written with three members.

use super::JwtSvidError;
use crate::json::Object;
use crate::key::JwsAlgorithm;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A header that may stand before a JWT-SVID.
pub(super) struct Header {
    pub(super) alg: JwsAlgorithm,
    pub(super) kid: Option<String>,
}

/// The members looked at. A member given twice is refused by the deserialiser; others are ignored, as RFC 7515
/// §4 wants, unless `crit` names them.
#[derive(Deserialize)]
struct Read {
    #[serde(default, deserialize_with = "present")]
    alg: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    typ: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    kid: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    crit: Option<Value>,
}

/// A member that is there, even if it is `null`: absent and `null` are not the same here.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Serialize)]
struct Written<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

impl Header {
    pub(super) fn read(json: &[u8]) -> Result<Self, JwtSvidError> {
        let Object(read): Object<Read> =
            serde_json::from_slice(json).map_err(|_not_a_header| JwtSvidError::Header)?;
        let alg = read
            .alg
            .as_ref()
            .and_then(Value::as_str)
            .and_then(JwsAlgorithm::parse);
        let alg = alg.ok_or(JwtSvidError::Algorithm)?;
        match read.typ.as_ref().map(Value::as_str) {
            None | Some(Some("JWT" | "JOSE")) => {}
            Some(_) => return Err(JwtSvidError::Type),
        }
        if read.crit.is_some() {
            // Nothing is understood, so nothing can be critical.
            return Err(JwtSvidError::Critical);
        }
        let kid = match read.kid {
            None => None,
            Some(Value::String(kid)) if !kid.is_empty() => Some(kid),
            Some(_) => return Err(JwtSvidError::NoKeyId),
        };
        Ok(Self { alg, kid })
    }

    pub(super) fn write(alg: JwsAlgorithm, kid: &str) -> String {
        let written = Written {
            alg: alg.as_str(),
            kid,
            typ: "JWT",
        };
        // A struct of texts always serialises.
        serde_json::to_string(&written).unwrap_or_default()
    }
}
