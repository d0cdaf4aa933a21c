//! The journal: which authorities this server has made, in which key slot each lives and what became of it.
//!
//! One row of the datastore for each server. A restarted server finds its row by the keys that its key manager still
//! holds (SPIRE: the same rule), so no identity of the server itself is configured anywhere. The journal never holds
//! private keys, and what it says is believed only after the key and the published bundle agree.

use std::collections::BTreeSet;
use std::fmt;

use plugin::key_manager::KeyManager;
use serde::{Deserialize, Serialize};
use spiffe::x509::Certificate;
use tokio::sync::Mutex;

use super::CaError;
use crate::datastore::Journals;

/// SPIRE: no more than ten entries of a kind are kept.
const MOST_RECORDS: usize = 10;

/// One of the two places for a key of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SlotName {
    A,
    B,
}

impl SlotName {
    #[must_use]
    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// Where an authority stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Published, not yet signing.
    Prepared,
    /// Signs.
    Active,
    /// Signed once; still published until it expires or is revoked.
    Old,
}

/// Who signed an X.509 authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    SelfSigned,
    Upstream,
}

/// One authority as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) slot: SlotName,
    pub(crate) status: Status,
    /// X.509: the subject key id in hex. JWT: the key id.
    pub(crate) authority_id: String,
    /// X.509: who signed it. Absent in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    /// The authority key id, in hex, of the certificate; empty when self-signed, or when the upstream CA names none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) upstream_authority_id: String,
    /// Unix seconds.
    pub(crate) issued_at: i64,
    /// Unix seconds.
    pub(crate) not_after: i64,
    /// `SubjectPublicKeyInfo`, DER.
    #[serde(with = "base64_bytes")]
    pub(crate) public_key: Vec<u8>,
    /// X.509: our CA certificate, then what leads from it to the upstream root (DER). Empty for JWT.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_list")]
    pub(crate) chain: Vec<Vec<u8>>,
}

impl Record {
    /// Records of earlier versions say it by an empty id alone.
    pub(crate) fn is_self_signed(&self) -> bool {
        match self.origin {
            Some(origin) => origin == Origin::SelfSigned,
            None => self.upstream_authority_id.is_empty(),
        }
    }
}

/// What the stored row says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entries {
    #[serde(default)]
    x509: Vec<Record>,
    #[serde(default)]
    jwt: Vec<Record>,
}

/// Which list of the journal a kind of authority writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Series {
    X509,
    Jwt,
}

impl Entries {
    fn all(&self) -> impl Iterator<Item = &Record> {
        self.x509.iter().chain(&self.jwt)
    }

    fn list(&self, series: Series) -> &Vec<Record> {
        match series {
            Series::X509 => &self.x509,
            Series::Jwt => &self.jwt,
        }
    }

    fn list_mut(&mut self, series: Series) -> &mut Vec<Record> {
        match series {
            Series::X509 => &mut self.x509,
            Series::Jwt => &mut self.jwt,
        }
    }
}

struct State {
    entries: Entries,
    /// What memory says is not yet in the datastore.
    unsaved: bool,
}

/// This server's journal row.
pub(crate) struct Journal {
    id: String,
    journals: Journals,
    state: Mutex<State>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Finds the row that belongs to the keys in `keys`, or starts an empty one.
    ///
    /// # Errors
    /// The datastore or the key manager does not answer. A row that cannot be read is somebody else's or damaged: it is
    /// left alone and never a reason not to start.
    pub(super) async fn open(journals: &Journals, keys: &dyn KeyManager) -> Result<Self, CaError> {
        let mut held = BTreeSet::new();
        for (_, signer) in keys.keys().await.map_err(CaError::Keys)? {
            held.insert(signer.public_key().spki_der().to_vec());
        }
        let mut found: Option<(String, Entries)> = None;
        for journal in journals.all() {
            let Ok(entries) = serde_json::from_slice::<Entries>(&journal.data) else {
                tracing::warn!(
                    journal = journal.id,
                    "a CA journal cannot be read and is left alone"
                );
                continue;
            };
            if entries
                .all()
                .any(|record| held.contains(&record.public_key))
                && found
                    .as_ref()
                    .is_none_or(|(_, known)| newest(known) < newest(&entries))
            {
                found = Some((journal.id.clone(), entries));
            }
        }
        let (id, entries) =
            found.unwrap_or_else(|| (uuid::Uuid::new_v4().to_string(), Entries::default()));
        Ok(Self {
            id,
            journals: journals.clone(),
            state: Mutex::new(State {
                entries,
                unsaved: false,
            }),
        })
    }

    /// The active X.509 authority, not expired, of some journal that no key of this server fits. On a database of a single
    /// server it is this server's own, and its keys were lost.
    pub(super) async fn orphan(&self, now: i64) -> Option<String> {
        if !self.state.lock().await.entries.x509.is_empty() {
            return None;
        }
        let active = |entries: &Entries| {
            let mut active = entries.x509.iter();
            active
                .find(|record| record.status == Status::Active && record.not_after > now)
                .map(|record| record.authority_id.clone())
        };
        let journals = self.journals.all().into_iter();
        journals
            .filter_map(|journal| serde_json::from_slice::<Entries>(&journal.data).ok())
            .find_map(|entries| active(&entries))
    }

    /// The CA certificates of all servers that have not expired, with what leads from each to an upstream root: what is
    /// valid was signed below these.
    pub(super) fn certificates_in_use(&self, now: i64) -> Vec<Certificate> {
        let journals = self.journals.all().into_iter();
        let entries =
            journals.filter_map(|journal| serde_json::from_slice::<Entries>(&journal.data).ok());
        let records = entries.flat_map(|entries| entries.x509);
        records
            .filter(|record| record.not_after > now)
            .flat_map(|record| record.chain)
            .filter_map(|der| Certificate::from_der(&der).ok())
            .collect()
    }

    /// Stores the row as it is, to learn whether it can be stored before something is made that has to be recorded.
    ///
    /// # Errors
    /// The datastore does not answer.
    pub(super) async fn check_writable(&self) -> Result<(), CaError> {
        let mut state = self.state.lock().await;
        self.store(&state.entries).await?;
        state.unsaved = false;
        Ok(())
    }

    /// Names this server among those of the database, for leases.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Deletes the journals whose every authority ended before `before`: those of servers that are no more.
    ///
    /// # Errors
    /// The datastore does not answer.
    pub(super) async fn prune_others(&self, before: i64) -> Result<(), CaError> {
        for journal in self.journals.all() {
            let ended = serde_json::from_slice::<Entries>(&journal.data)
                .is_ok_and(|entries| entries.all().all(|record| record.not_after < before));
            if ended && journal.id != self.id {
                self.journals.delete(&journal.id).await?;
            }
        }
        Ok(())
    }

    /// Oldest first.
    pub(super) async fn records(&self, series: Series) -> Vec<Record> {
        self.state.lock().await.entries.list(series).clone()
    }

    /// Adds a record and stores the row.
    ///
    /// # Errors
    /// The row was not stored; the record is not in memory either.
    pub(super) async fn append(&self, series: Series, record: Record) -> Result<(), CaError> {
        let mut state = self.state.lock().await;
        let before = state.entries.clone();
        let list = state.entries.list_mut(series);
        list.push(record);
        // The one that signs stays, however often another was prepared since.
        while list.len() > MOST_RECORDS {
            let oldest = list.iter().position(|one| one.status != Status::Active);
            list.remove(oldest.unwrap_or(0));
        }
        state.unsaved = true;
        if let Err(error) = self.store(&state.entries).await {
            state.entries = before;
            return Err(error);
        }
        state.unsaved = false;
        Ok(())
    }

    /// Says what became of authorities, each given by its id, and stores that unless the row says so already.
    ///
    /// # Errors
    /// The row was not stored. Memory keeps the change and the next call stores it: an authority that is due must sign
    /// even if the datastore is away.
    pub(super) async fn set_statuses(
        &self,
        series: Series,
        statuses: &[(String, Status)],
    ) -> Result<(), CaError> {
        let mut state = self.state.lock().await;
        for (authority_id, status) in statuses {
            let mut records = state.entries.list_mut(series).iter_mut();
            let record = records.find(|record| record.authority_id == *authority_id);
            if let Some(record) = record.filter(|record| record.status != *status) {
                record.status = *status;
                state.unsaved = true;
            }
        }
        if state.unsaved {
            self.store(&state.entries).await?;
            state.unsaved = false;
        }
        Ok(())
    }

    /// Takes back a record whose authority was not published after all.
    pub(super) async fn forget(&self, series: Series, authority_id: &str) {
        let mut state = self.state.lock().await;
        state
            .entries
            .list_mut(series)
            .retain(|record| record.authority_id != authority_id);
        state.unsaved = true;
    }

    async fn store(&self, entries: &Entries) -> Result<(), CaError> {
        let bytes =
            serde_json::to_vec(entries).map_err(|error| CaError::Journal(error.to_string()))?;
        Ok(self.journals.save(&self.id, bytes).await?)
    }
}

fn newest(entries: &Entries) -> i64 {
    entries
        .x509
        .iter()
        .map(|record| record.issued_at)
        .max()
        .unwrap_or(i64::MIN)
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(D::Error::custom)
    }
}

mod base64_list {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| STANDARD.encode(bytes)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .into_iter()
            .map(|text| STANDARD.decode(text).map_err(D::Error::custom))
            .collect()
    }
}
