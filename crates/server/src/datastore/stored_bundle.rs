//! How a bundle lies in a row: each authority's DER, whether it is tainted and who put it there.
//!
//! A newer server may have written further members to an authority. Like those of the whole row they are kept beside the
//! bundle while it is in memory, each under the authority it belongs to, and written back with it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spiffe::bundle::{AuthoritySource, Bundle, JwtAuthority, X509Authority};
use spiffe::key::PublicKey;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Certificate;

use crate::registry::Unknown;

/// The lists of authorities in a row: the member that tells a list's authorities apart, and every member that the structs
/// below read.
const LISTS: [(&str, &str, &[&str]); 3] = [
    ("x509_authorities", "der", &["der", "tainted", "source"]),
    ("jwt_authorities", "key_id", TOKEN_MEMBERS),
    ("wit_authorities", "key_id", TOKEN_MEMBERS),
];
const TOKEN_MEMBERS: &[&str] = &["key_id", "public_key", "expires_at", "tainted", "source"];

/// Takes the members that we do not know out of the authorities of a row. They come by list and authority, under names that
/// no unknown member of the row itself can have.
pub(super) fn take_unknown(body: &mut Unknown) -> Unknown {
    let mut taken = Unknown::new();
    for (list, id, known) in LISTS {
        let mut of_list = Unknown::new();
        for authority in authorities(body, list) {
            let (known, unknown): (Unknown, Unknown) = std::mem::take(authority)
                .into_iter()
                .partition(|(name, _)| known.contains(&name.as_str()));
            *authority = known;
            if let Some(Value::String(id)) = authority.get(id)
                && !unknown.is_empty()
            {
                of_list.insert(id.clone(), Value::Object(unknown));
            }
        }
        if !of_list.is_empty() {
            taken.insert(list.to_owned(), Value::Object(of_list));
        }
    }
    taken
}

/// Puts what [`take_unknown`] took back to the authorities that are still there, and takes it out of `unknown`.
pub(super) fn put_unknown(body: &mut Unknown, unknown: &mut Unknown) {
    for (list, id, _) in LISTS {
        let Some(Value::Object(mut of_list)) = unknown.remove(list) else {
            continue;
        };
        for authority in authorities(body, list) {
            if let Some(Value::String(id)) = authority.get(id)
                && let Some(Value::Object(members)) = of_list.remove(id)
            {
                authority.extend(members);
            }
        }
    }
}

fn authorities<'a>(body: &'a mut Unknown, list: &str) -> impl Iterator<Item = &'a mut Unknown> {
    let list = body.get_mut(list).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StoredBundle {
    x509_authorities: Vec<StoredX509Authority>,
    jwt_authorities: Vec<StoredJwtAuthority>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wit_authorities: Vec<StoredJwtAuthority>,
    refresh_hint: i64,
    sequence_number: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredX509Authority {
    /// Base64.
    der: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tainted: bool,
    #[serde(default, skip_serializing_if = "AuthoritySource::is_unknown")]
    source: AuthoritySource,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredJwtAuthority {
    key_id: String,
    /// The SubjectPublicKeyInfo, base64.
    public_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tainted: bool,
    #[serde(default, skip_serializing_if = "AuthoritySource::is_unknown")]
    source: AuthoritySource,
}

impl From<&JwtAuthority> for StoredJwtAuthority {
    fn from(authority: &JwtAuthority) -> Self {
        Self {
            key_id: authority.key_id.clone(),
            public_key: STANDARD.encode(authority.public_key.spki_der()),
            expires_at: authority.expires_at,
            tainted: authority.tainted,
            source: authority.source.clone(),
        }
    }
}

impl StoredJwtAuthority {
    fn into_authority(self) -> Result<JwtAuthority, String> {
        let der = STANDARD
            .decode(&self.public_key)
            .map_err(|e| e.to_string())?;
        Ok(JwtAuthority {
            public_key: PublicKey::from_spki_der(&der)
                .map_err(|e| format!("key {}: {e}", self.key_id))?,
            key_id: self.key_id,
            expires_at: self.expires_at,
            tainted: self.tainted,
            source: self.source,
        })
    }
}

impl From<&Bundle> for StoredBundle {
    fn from(bundle: &Bundle) -> Self {
        let x509 = bundle
            .x509_authorities
            .iter()
            .map(|authority| StoredX509Authority {
                der: STANDARD.encode(authority.certificate.der()),
                tainted: authority.tainted,
                source: authority.source.clone(),
            });
        Self {
            x509_authorities: x509.collect(),
            jwt_authorities: bundle.jwt_authorities.iter().map(Into::into).collect(),
            wit_authorities: bundle.wit_authorities.iter().map(Into::into).collect(),
            refresh_hint: bundle.refresh_hint,
            sequence_number: bundle.sequence_number,
        }
    }
}

impl StoredBundle {
    pub(super) fn into_bundle(self, trust_domain: TrustDomain) -> Result<Bundle, String> {
        let x509 = self.x509_authorities.into_iter().map(|stored| {
            let der = STANDARD.decode(&stored.der).map_err(|e| e.to_string())?;
            let certificate = Certificate::from_der(&der).map_err(|e| e.to_string())?;
            Ok::<_, String>(X509Authority {
                certificate,
                tainted: stored.tainted,
                source: stored.source,
            })
        });
        let keys = |stored: Vec<StoredJwtAuthority>| {
            stored
                .into_iter()
                .map(StoredJwtAuthority::into_authority)
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Bundle {
            trust_domain,
            x509_authorities: x509.collect::<Result<_, _>>()?,
            jwt_authorities: keys(self.jwt_authorities)?,
            wit_authorities: keys(self.wit_authorities)?,
            refresh_hint: self.refresh_hint,
            sequence_number: self.sequence_number,
        })
    }
}
