//! How an object lies in a row: JSON whose names and meanings are the store's own, so that a type may change without
//! the stored form doing so. A field is only ever added, with a default.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use spiffe::digest::sha256_hex;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::{Selector, SelectorSet};
use spiffe::trust_domain::TrustDomain;

use super::stored_bundle::{self, StoredBundle};
use crate::registry::{
    Agent, BundleEndpointProfile, FederationRelationship, JoinTokenRecord, Journal, Kind, Lease,
    Object, Unknown,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "the entry's own switches")]
struct StoredEntry<'a> {
    #[serde(borrow)]
    spiffe_id: Cow<'a, str>,
    #[serde(borrow)]
    parent_id: Cow<'a, str>,
    #[serde(borrow)]
    selectors: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    x509_svid_ttl: i32,
    #[serde(default, skip_serializing_if = "is_default")]
    jwt_svid_ttl: i32,
    #[serde(default, skip_serializing_if = "is_default")]
    federates_with: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    admin: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    downstream: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    store_svid: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    expires_at: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    dns_names: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    revision_number: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    hint: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_default")]
    created_at: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    disable_x509_svid_prefetch: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    jwt_svid_include_jti: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAgent<'a> {
    attestation_type: Cow<'a, str>,
    serial: Cow<'a, str>,
    expires_at: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    new_serial: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_default")]
    new_expires_at: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    can_reattest: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    banned: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    selectors: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    agent_version: Cow<'a, str>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredToken<'a> {
    expires_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alias: Option<Cow<'a, str>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRelationship<'a> {
    bundle_endpoint_url: Cow<'a, str>,
    /// Present for `https_spiffe`, absent for `https_web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint_spiffe_id: Option<Cow<'a, str>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredJournal {
    /// Base64.
    data: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLease<'a> {
    holder: Cow<'a, str>,
    expires_at: i64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The row body of an object. Its key is in a column of its own.
///
/// # Errors
/// JSON cannot hold it, which it can.
pub(super) fn encode(object: &Object, unknown: Option<&Unknown>) -> Result<String, Because> {
    let body = match object {
        Object::Entry(entry) => serde_json::to_string(&stored_entry(entry)),
        Object::Agent(agent) => serde_json::to_string(&StoredAgent {
            attestation_type: Cow::Borrowed(&agent.attestation_type),
            serial: Cow::Borrowed(&agent.serial),
            expires_at: agent.expires_at,
            new_serial: Cow::Borrowed(&agent.new_serial),
            new_expires_at: agent.new_expires_at,
            can_reattest: agent.can_reattest,
            banned: agent.banned,
            selectors: agent
                .selectors
                .iter()
                .map(|selector| Cow::Borrowed(selector.as_str()))
                .collect(),
            agent_version: Cow::Borrowed(&agent.agent_version),
        }),
        Object::Bundle(bundle) => serde_json::to_string(&StoredBundle::from(&**bundle)),
        Object::JoinToken(token) => serde_json::to_string(&StoredToken {
            expires_at: token.expires_at,
            alias: token.alias.as_ref().map(|id| Cow::Borrowed(id.as_str())),
        }),
        Object::FederationRelationship(relationship) => {
            serde_json::to_string(&StoredRelationship {
                bundle_endpoint_url: Cow::Borrowed(&relationship.bundle_endpoint_url),
                endpoint_spiffe_id: match &relationship.bundle_endpoint_profile {
                    BundleEndpointProfile::HttpsWeb => None,
                    BundleEndpointProfile::HttpsSpiffe { endpoint_spiffe_id } => {
                        Some(Cow::Borrowed(endpoint_spiffe_id.as_str()))
                    }
                },
            })
        }
        Object::Journal(journal) => serde_json::to_string(&StoredJournal {
            data: STANDARD.encode(&journal.data),
        }),
        Object::Lease(lease) => serde_json::to_string(&StoredLease {
            holder: Cow::Borrowed(&lease.holder),
            expires_at: lease.expires_at,
        }),
    };
    let body = body.map_err(text)?;
    let Some(unknown) = unknown else {
        return Ok(body);
    };
    let mut members: Unknown = serde_json::from_str(&body).map_err(text)?;
    let mut unknown = unknown.clone();
    if matches!(object, Object::Bundle(_)) {
        stored_bundle::put_unknown(&mut members, &mut unknown);
    }
    members.extend(unknown);
    serde_json::to_string(&members).map_err(text)
}

fn stored_entry(entry: &Entry) -> StoredEntry<'_> {
    StoredEntry {
        spiffe_id: Cow::Borrowed(entry.spiffe_id.as_str()),
        parent_id: Cow::Borrowed(entry.parent_id.as_str()),
        selectors: entry
            .selectors
            .iter()
            .map(|selector| Cow::Borrowed(selector.as_str()))
            .collect(),
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with: entry
            .federates_with
            .iter()
            .map(|td| Cow::Borrowed(td.as_str()))
            .collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        expires_at: entry.expires_at,
        dns_names: entry
            .dns_names
            .iter()
            .map(|name| Cow::Borrowed(name.as_str()))
            .collect(),
        revision_number: entry.revision_number,
        hint: Cow::Borrowed(&entry.hint),
        created_at: entry.created_at,
        disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
    }
}

/// The members that [`Decoder::decode`] understands. What the structs above have and this lacks is read as unknown.
fn known_members(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Entry => &[
            "spiffe_id",
            "parent_id",
            "selectors",
            "x509_svid_ttl",
            "jwt_svid_ttl",
            "federates_with",
            "admin",
            "downstream",
            "store_svid",
            "expires_at",
            "dns_names",
            "revision_number",
            "hint",
            "created_at",
            "disable_x509_svid_prefetch",
            "jwt_svid_include_jti",
        ],
        Kind::Agent => &[
            "attestation_type",
            "serial",
            "expires_at",
            "new_serial",
            "new_expires_at",
            "can_reattest",
            "banned",
            "selectors",
            "agent_version",
        ],
        Kind::Bundle => &[
            "x509_authorities",
            "jwt_authorities",
            "wit_authorities",
            "refresh_hint",
            "sequence_number",
        ],
        Kind::JoinToken => &["expires_at", "alias"],
        Kind::FederationRelationship => &["bundle_endpoint_url", "endpoint_spiffe_id"],
        Kind::Journal => &["data"],
        Kind::Lease => &["holder", "expires_at"],
    }
}

/// Why a body can't be read. Shown to operators.
pub(super) type Because = String;

fn text(error: impl std::fmt::Display) -> Because {
    error.to_string()
}

/// Reads rows back. Equal parents, selectors and trust domains of different rows share their memory.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    ids: HashMap<String, SpiffeId>,
    selectors: HashMap<String, Selector>,
    trust_domains: HashMap<String, TrustDomain>,
}

/// Beyond this many of a sort, sharing starts afresh: what is common will soon be there again.
const SHARED: usize = 32_768;

fn shared<T: Clone>(
    known: &mut HashMap<String, T>,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, Because>,
) -> Result<T, Because> {
    if let Some(value) = known.get(text) {
        return Ok(value.clone());
    }
    let value = parse(text)?;
    if known.len() >= SHARED {
        known.clear();
    }
    known.insert(text.to_owned(), value.clone());
    Ok(value)
}

impl Decoder {
    /// Reads a row. Members that a newer version wrote come beside the object, to be written back with it: an older server
    /// on the same database must not take them away.
    pub(super) fn decode(
        &mut self,
        kind: Kind,
        key: &str,
        body: &str,
    ) -> Result<(Object, Option<Arc<Unknown>>), Because> {
        // Nearly always there are none, and nothing is spent on looking for them.
        let because = match self.decode_known(kind, key, body) {
            Ok(object) => return Ok((object, None)),
            Err(because) => because,
        };
        let members: Unknown = serde_json::from_str(body).map_err(text)?;
        let (mut known, mut unknown): (Unknown, Unknown) = members
            .into_iter()
            .partition(|(name, _)| known_members(kind).contains(&name.as_str()));
        if kind == Kind::Bundle {
            unknown.extend(stored_bundle::take_unknown(&mut known));
        }
        if unknown.is_empty() {
            return Err(because);
        }
        let known = serde_json::to_string(&known).map_err(text)?;
        let object = self.decode_known(kind, key, &known)?;
        Ok((object, Some(Arc::new(unknown))))
    }

    fn decode_known(&mut self, kind: Kind, key: &str, body: &str) -> Result<Object, Because> {
        Ok(match kind {
            Kind::Entry => Object::Entry(Arc::new(
                self.entry(key, serde_json::from_str(body).map_err(text)?)?,
            )),
            Kind::Agent => Object::Agent(Arc::new(
                self.agent(key, serde_json::from_str(body).map_err(text)?)?,
            )),
            Kind::Bundle => {
                let stored: StoredBundle = serde_json::from_str(body).map_err(text)?;
                Object::Bundle(Arc::new(
                    stored.into_bundle(TrustDomain::parse(key).map_err(text)?)?,
                ))
            }
            Kind::JoinToken => {
                let stored: StoredToken<'_> = serde_json::from_str(body).map_err(text)?;
                let alias = stored.alias.map(|id| SpiffeId::parse(&id).map_err(text));
                Object::JoinToken(Arc::new(JoinTokenRecord {
                    digest: key.to_owned(),
                    expires_at: stored.expires_at,
                    alias: alias.transpose()?,
                }))
            }
            Kind::FederationRelationship => {
                let stored: StoredRelationship<'_> = serde_json::from_str(body).map_err(text)?;
                Object::FederationRelationship(Arc::new(FederationRelationship {
                    trust_domain: TrustDomain::parse(key).map_err(text)?,
                    bundle_endpoint_url: stored.bundle_endpoint_url.into_owned(),
                    bundle_endpoint_profile: match stored.endpoint_spiffe_id {
                        None => BundleEndpointProfile::HttpsWeb,
                        Some(id) => BundleEndpointProfile::HttpsSpiffe {
                            endpoint_spiffe_id: SpiffeId::parse(&id).map_err(text)?,
                        },
                    },
                }))
            }
            Kind::Journal => {
                let stored: StoredJournal = serde_json::from_str(body).map_err(text)?;
                let data = STANDARD.decode(stored.data).map_err(text)?;
                Object::Journal(Arc::new(Journal {
                    id: key.to_owned(),
                    data,
                }))
            }
            Kind::Lease => {
                let stored: StoredLease<'_> = serde_json::from_str(body).map_err(text)?;
                Object::Lease(Arc::new(Lease {
                    name: key.to_owned(),
                    holder: stored.holder.into_owned(),
                    expires_at: stored.expires_at,
                }))
            }
        })
    }

    fn entry(&mut self, key: &str, stored: StoredEntry<'_>) -> Result<Entry, Because> {
        let domains = stored.federates_with.iter();
        let federates_with = domains
            .map(|name| {
                shared(&mut self.trust_domains, name, |name| {
                    TrustDomain::parse(name).map_err(text)
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Entry {
            id: Arc::from(key),
            spiffe_id: SpiffeId::parse(&stored.spiffe_id).map_err(text)?,
            parent_id: shared(&mut self.ids, &stored.parent_id, |id| {
                SpiffeId::parse(id).map_err(text)
            })?,
            selectors: self.selectors(&stored.selectors)?,
            x509_svid_ttl: stored.x509_svid_ttl,
            jwt_svid_ttl: stored.jwt_svid_ttl,
            federates_with,
            admin: stored.admin,
            downstream: stored.downstream,
            store_svid: stored.store_svid,
            expires_at: stored.expires_at,
            dns_names: stored.dns_names.into_iter().map(Cow::into_owned).collect(),
            revision_number: stored.revision_number,
            hint: stored.hint.into_owned(),
            created_at: stored.created_at,
            disable_x509_svid_prefetch: stored.disable_x509_svid_prefetch,
            jwt_svid_include_jti: stored.jwt_svid_include_jti,
        })
    }

    fn agent(&mut self, key: &str, stored: StoredAgent<'_>) -> Result<Agent, Because> {
        Ok(Agent {
            id: SpiffeId::parse(key).map_err(text)?,
            attestation_type: stored.attestation_type.into_owned(),
            serial: stored.serial.into_owned(),
            expires_at: stored.expires_at,
            new_serial: stored.new_serial.into_owned(),
            new_expires_at: stored.new_expires_at,
            can_reattest: stored.can_reattest,
            banned: stored.banned,
            selectors: self.selectors(&stored.selectors)?,
            agent_version: stored.agent_version.into_owned(),
        })
    }

    fn selectors(&mut self, stored: &[Cow<'_, str>]) -> Result<SelectorSet, Because> {
        let parsed = stored.iter().map(|selector| {
            shared(&mut self.selectors, selector, |selector| {
                Selector::parse(selector).map_err(text)
            })
        });
        Ok(SelectorSet::from(parsed.collect::<Result<Vec<_>, _>>()?))
    }
}

/// What two entries must not share, as 128 bits of hex: the database's own guard against similar entries.
pub(super) fn similarity_digest(entry: &Entry) -> String {
    let mut text = format!("{}\n{}", entry.parent_id, entry.spiffe_id);
    for selector in entry.selectors.iter() {
        // A selector may hold any character: the length keeps two lists from reading alike.
        text.push_str(&format!(
            "\n{} {}",
            selector.as_str().len(),
            selector.as_str()
        ));
    }
    let mut hex = sha256_hex(text.as_bytes());
    hex.truncate(32);
    hex
}
