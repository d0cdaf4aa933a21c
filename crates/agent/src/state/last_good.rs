//! The entries, bundles and X509-SVIDs that the node had last, so that a restart without a server serves what is
//! still valid. SPIRE keeps no such file; the name is ours and SPIRE ignores it.
//!
//! Trusted only for the node identity that wrote it. JWT-SVIDs live too short to be kept.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use config::fault::{Code, Fault};
use serde::{Deserialize, Serialize};
use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::key::KeyPair;
use spiffe::secret::Secret;

use super::{StateDir, read_bounded};
use crate::cache::Snapshot;
use crate::cache::svids::IssuedSvid;
use crate::server_client::issued::chain_facts;

pub(super) const FILE: &str = "plastron-last-good.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Json {
    version: u32,
    agent_id: SpiffeId,
    entries: Vec<Arc<Entry>>,
    bundles: Vec<Arc<Bundle>>,
    svids: Vec<SvidJson>,
}

#[derive(Serialize, Deserialize)]
struct SvidsJson {
    version: u32,
    agent_id: SpiffeId,
    svids: Vec<SvidJson>,
}

#[derive(Serialize, Deserialize)]
struct SvidJson {
    entry_id: Arc<str>,
    revision: i64,
    spiffe_id: SpiffeId,
    chain: Vec<String>,
    key: String,
}

impl Drop for SvidJson {
    fn drop(&mut self) {
        drop(Secret::new(std::mem::take(&mut self.key)));
    }
}

/// Tells whether two states are the same, without holding one.
pub(crate) type Digest = [u8; 32];

/// Stores the state of `agent_id`, unless it is what `written` is the digest of.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn store(
    dir: &StateDir,
    agent_id: &SpiffeId,
    state: &Snapshot,
    written: Option<Digest>,
) -> Result<Digest, Fault> {
    let json = Json {
        version: VERSION,
        agent_id: agent_id.clone(),
        entries: state.entries.clone(),
        bundles: state.bundles.clone(),
        svids: state.svids.iter().map(encode).collect(),
    };
    let text = serde_json::to_vec(&json).map_err(|error| {
        Fault::new(Code::Internal, "the last good state cannot be encoded").because(error)
    })?;
    let text = Secret::new(text);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.expose());
    let digest: Digest = digest
        .as_ref()
        .try_into()
        .map_err(|_length| Fault::new(Code::Internal, "a SHA-256 digest is not of 32 bytes"))?;
    if written != Some(digest) {
        dir.write(FILE, text.expose())?;
    }
    Ok(digest)
}

/// The X509-SVIDs of `agent_id` alone, for the process that follows this one.
///
/// # Errors
/// When they can't be encoded.
pub(crate) fn encode_svids(
    agent_id: &SpiffeId,
    svids: &[IssuedSvid],
) -> Result<Secret<Vec<u8>>, Fault> {
    let json = SvidsJson {
        version: VERSION,
        agent_id: agent_id.clone(),
        svids: svids.iter().map(encode).collect(),
    };
    serde_json::to_vec(&json).map(Secret::new).map_err(|error| {
        Fault::new(Code::Internal, "the workloads' SVIDs cannot be encoded").because(error)
    })
}

/// What [`encode_svids`] made, with the same care as [`load`]: nothing of another node or version, nothing expired,
/// nothing that does not fit its key or its entry.
pub(crate) fn decode_svids(
    bytes: &[u8],
    agent_id: &SpiffeId,
    entries: &[Arc<Entry>],
    now: SystemTime,
) -> Vec<IssuedSvid> {
    match serde_json::from_slice::<SvidsJson>(bytes) {
        Ok(json) if json.version == VERSION && json.agent_id == *agent_id => json
            .svids
            .iter()
            .filter_map(|svid| decode(svid, entries, now))
            .collect(),
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "the SVIDs handed over by the process before cannot be read");
            Vec::new()
        }
    }
}

/// Takes the workloads' private keys out of a stored state: an earlier version, or an earlier configuration, put them
/// there. A file that cannot be read is removed, since nobody can say what is in it.
///
/// # Errors
/// When the file can't be replaced.
pub(crate) fn remove_keys(dir: &StateDir) -> Result<(), Fault> {
    let path = dir.file(FILE);
    let json = match read_bounded(&path) {
        Ok(None) => return Ok(()),
        Ok(Some(bytes)) => {
            serde_json::from_slice::<Json>(&bytes).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    match json {
        Ok(json) if json.svids.is_empty() => Ok(()),
        Ok(mut json) => {
            tracing::warn!(file = %path.display(), keys = json.svids.len(), "private keys of workloads are removed from the stored state: persist_workload_svids is not set");
            json.svids.clear();
            let text = serde_json::to_vec(&json).map_err(|error| {
                Fault::new(Code::Internal, "the last good state cannot be encoded").because(error)
            })?;
            dir.write(FILE, &text)
        }
        Err(error) => {
            tracing::warn!(%error, file = %path.display(), "the stored state cannot be read and is removed");
            dir.remove(FILE);
            Ok(())
        }
    }
}

/// What was kept for `agent_id`. A file that is missing, damaged, of another node or another version counts as empty,
/// and an SVID that is expired or does not fit its key or its entry is left out.
pub(crate) fn load(dir: &StateDir, agent_id: &SpiffeId, now: SystemTime) -> Snapshot {
    let path = dir.file(FILE);
    let bytes = match read_bounded(&path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Snapshot::default(),
        Err(error) => {
            tracing::warn!(%error, file = %path.display(), "last good state cannot be read");
            return Snapshot::default();
        }
    };
    let json: Json = match serde_json::from_slice(&bytes) {
        Ok(json) => json,
        Err(error) => {
            tracing::warn!(%error, file = %path.display(), "last good state is damaged and ignored");
            return Snapshot::default();
        }
    };
    if json.version != VERSION || json.agent_id != *agent_id {
        tracing::info!(file = %path.display(), "last good state is of another node or version and ignored");
        return Snapshot::default();
    }
    let svids = json
        .svids
        .iter()
        .filter_map(|svid| decode(svid, &json.entries, now))
        .collect();
    Snapshot {
        entries: json.entries,
        bundles: json.bundles,
        svids,
    }
}

fn encode(svid: &IssuedSvid) -> SvidJson {
    SvidJson {
        entry_id: Arc::clone(&svid.entry_id),
        revision: svid.revision,
        spiffe_id: svid.spiffe_id.clone(),
        chain: svid.chain.iter().map(|der| BASE64.encode(der)).collect(),
        key: BASE64.encode(svid.key.expose()),
    }
}

fn decode(json: &SvidJson, entries: &[Arc<Entry>], now: SystemTime) -> Option<IssuedSvid> {
    let chain: Vec<Vec<u8>> = json
        .chain
        .iter()
        .map(|text| BASE64.decode(text))
        .collect::<Result<_, _>>()
        .ok()?;
    let key = Secret::new(BASE64.decode(&json.key).ok()?);
    let pair = KeyPair::from_pkcs8_der(key.expose()).ok()?;
    let facts = chain_facts(&chain).ok()?;
    let fits = facts.spiffe_id == json.spiffe_id
        && facts.public_key == *pair.public_key()
        && now < facts.not_after
        && entries
            .iter()
            .any(|entry| entry.id == json.entry_id && entry.spiffe_id == json.spiffe_id);
    fits.then(|| IssuedSvid {
        entry_id: Arc::clone(&json.entry_id),
        revision: json.revision,
        spiffe_id: facts.spiffe_id,
        chain: chain.into_iter().map(Arc::from).collect(),
        key: Arc::new(key),
        not_before: facts.not_before,
        not_after: facts.not_after,
        issuers: facts.issuers,
    })
}
