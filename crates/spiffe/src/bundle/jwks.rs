//! The JWT part of a bundle, and the plain JWK Set the Workload API carries it in.

use super::{AuthoritySource, Bundle, BundleError, JwtAuthority, MAX_BUNDLE_LEN, MAX_KEYS};
use crate::json::Object;
use crate::key::{Jwk, JwkError, PublicKey};
use crate::trust_domain::TrustDomain;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;

/// The keys tokens of one trust domain may be signed with, by key id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtBundle {
    trust_domain: TrustDomain,
    keys: HashMap<String, PublicKey>,
}

impl JwtBundle {
    /// A bundle without keys.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            keys: HashMap::new(),
        }
    }

    /// The trust domain whose tokens this bundle verifies.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Adds a key; one with the same id is replaced. An empty id is not added.
    pub fn add(&mut self, key_id: &str, key: PublicKey) {
        if !key_id.is_empty() {
            self.keys.insert(key_id.to_owned(), key);
        }
    }

    /// The key with exactly this id.
    #[must_use]
    pub fn authority(&self, key_id: &str) -> Option<&PublicKey> {
        self.keys.get(key_id)
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key, so that no token of the trust domain is believed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Reads a plain JWK Set of token keys, as the Workload API sends it: `use` may be absent, `sig` or
    /// `jwt-svid`. Entries of other uses or kinds, or without an id, are passed over.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn from_jwks(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        let mut bundle = Self::new(trust_domain);
        let set: JwkSet = read_json(json)?;
        for (at, jwk) in set.entries()? {
            if !matches!(jwk.key_use.as_deref(), None | Some("sig" | "jwt-svid")) {
                continue;
            }
            if let Some((key_id, key)) = token_key(at, &jwk)? {
                bundle.add(&key_id, key);
            }
        }
        Ok(bundle)
    }
}

impl Bundle {
    /// The token keys as a plain JWK Set, without `use` (the Workload API's form).
    #[must_use]
    pub fn to_jwks_jwt_only(&self) -> Vec<u8> {
        write_json(&PlainSet {
            keys: self
                .jwt_authorities
                .iter()
                .map(|key| key.to_jwk(None))
                .collect(),
        })
    }

    /// Reads a plain JWK Set of token keys into a bundle; see [`JwtBundle::from_jwks`].
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn from_jwks(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        let keys = JwtBundle::from_jwks(trust_domain.clone(), json)?.keys;
        let mut bundle = Self::new(trust_domain);
        bundle.jwt_authorities = keys
            .into_iter()
            .map(|(key_id, public_key)| JwtAuthority {
                key_id,
                public_key,
                expires_at: None,
                tainted: false,
                source: AuthoritySource::Unknown,
            })
            .collect();
        bundle
            .jwt_authorities
            .sort_by(|a, b| a.key_id.cmp(&b.key_id));
        Ok(bundle)
    }
}

impl JwtAuthority {
    pub(super) fn to_jwk(&self, key_use: Option<&str>) -> Jwk {
        let key_use = key_use.map(str::to_owned);
        Jwk {
            key_use,
            kid: Some(self.key_id.clone()),
            ..self.public_key.to_jwk()
        }
    }
}

#[derive(Serialize)]
struct PlainSet {
    keys: Vec<Jwk>,
}

/// A JWK Set as read: `keys` must be there; members we do not know are ignored.
#[derive(Deserialize)]
pub(super) struct JwkSet {
    keys: Option<Vec<Value>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) spiffe_sequence: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    pub(super) spiffe_refresh_hint: Option<Value>,
}

/// A member that is there, even if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl JwkSet {
    /// The entries that have the form of a JWK, with their place in the list. One that says that it is an SVID's and has not
    /// is broken.
    pub(super) fn entries(&self) -> Result<Vec<(usize, Jwk)>, BundleError> {
        let keys = self.keys.as_ref().ok_or(BundleError::NoKeys)?;
        if keys.len() > MAX_KEYS {
            return Err(BundleError::TooManyKeys);
        }
        let mut entries = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            match Object::<Jwk>::deserialize(key) {
                Ok(Object(jwk)) => entries.push((at, jwk)),
                Err(fault) if is_svid_key(key) => {
                    let reason = fault.to_string();
                    return Err(BundleError::Key { at, reason });
                }
                // An entry of another form is of a kind we do not know.
                Err(_unknown) => {}
            }
        }
        Ok(entries)
    }
}

fn is_svid_key(key: &Value) -> bool {
    let key_use = key.get("use").and_then(Value::as_str);
    matches!(key_use, Some("x509-svid" | "jwt-svid"))
}

/// The id and key of an entry for tokens; `None` when it is to be passed over.
pub(super) fn token_key(at: usize, jwk: &Jwk) -> Result<Option<(String, PublicKey)>, BundleError> {
    let Some(key_id) = jwk.kid.as_deref().filter(|key_id| !key_id.is_empty()) else {
        return Ok(None);
    };
    match PublicKey::from_jwk(jwk) {
        Ok(key) => Ok(Some((key_id.to_owned(), key))),
        Err(JwkError::UnknownKind) => Ok(None),
        Err(fault @ JwkError::Malformed) => Err(BundleError::Key {
            at,
            reason: fault.to_string(),
        }),
    }
}

/// Reads a document that is an object.
pub(super) fn read_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, BundleError> {
    if json.len() > MAX_BUNDLE_LEN {
        return Err(BundleError::TooLong);
    }
    let read: serde_json::Result<Object<T>> = serde_json::from_slice(json);
    read.map(|object| object.0)
        .map_err(|fault| BundleError::Json(fault.to_string()))
}

/// Indented by four blanks, like the documents of other implementations.
pub(super) fn write_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(
        &mut out,
        serde_json::ser::PrettyFormatter::with_indent(b"    "),
    );
    // Structs of texts and numbers always serialise, and a vector takes all that is written.
    match value.serialize(&mut serializer) {
        Ok(()) => out,
        Err(_impossible) => Vec::new(),
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(self.spki_der());
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine;
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let der = base64::engine::general_purpose::STANDARD
            .decode(text.as_bytes())
            .map_err(serde::de::Error::custom)?;
        Self::from_spki_der(&der).map_err(serde::de::Error::custom)
    }
}
