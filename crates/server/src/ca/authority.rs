//! The life of one kind of authority, written once for X.509, JWT and whatever comes next.
//!
//! Two key slots, A and B. The next authority is made and published long before it signs, so that everybody who verifies
//! knows it by then; the one before stays published until it ends. A [`Kind`] says what an authority of it is made of.
//! No authority signs before the journal and the bundle hold it and before a document of its own passed a trial.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use plugin::key_manager::KeyManager;
use spiffe::bundle::Bundle;
use spiffe::clock::{from_unix, unix_seconds};
use spiffe::key::{KeyType, Signer};
use spiffe::rotation::{activate_at, prepare_at};
use spiffe::trust_domain::TrustDomain;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;

use super::CaError;
use super::journal::{Journal, Origin, Record, Series, SlotName, Status};
use crate::datastore::Datastore;

/// What differs between the kinds.
pub(super) trait Kind: Send + Sync {
    /// What the gate signs with.
    type Issuer: Send + Sync;
    const SERIES: Series;
    /// The key is called `<prefix>-A` or `<prefix>-B` (SPIRE: the same).
    const KEY_PREFIX: &'static str;
    /// For logs.
    const WHAT: &'static str;

    fn key_type(&self) -> KeyType;

    /// Makes the documents of a new authority around a fresh key, asking an upstream authority if there is one.
    fn draft(
        &self,
        key: &Arc<dyn Signer>,
        now: SystemTime,
    ) -> impl Future<Output = Result<Draft, CaError>> + Send;

    /// What signs, for a new record or one of an earlier life of the server. Tries it: a document made with it must
    /// verify against `trust`.
    fn issuer(
        &self,
        record: &Record,
        key: Arc<dyn Signer>,
        trust: &Bundle,
        now: SystemTime,
    ) -> impl Future<Output = Result<Self::Issuer, CaError>> + Send;

    /// Whether those who verify against `bundle` accept what this authority signs.
    fn is_published(&self, record: &Record, bundle: &Bundle) -> bool;
}

/// A new authority before it has a place.
pub(super) struct Draft {
    pub(super) authority_id: String,
    pub(super) origin: Option<Origin>,
    pub(super) upstream_authority_id: String,
    pub(super) not_after: SystemTime,
    /// As in [`Record::chain`].
    pub(super) chain: Vec<Vec<u8>>,
    /// What the bundle gains.
    pub(super) publication: Bundle,
}

/// What all kinds stand on.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) trust_domain: TrustDomain,
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) datastore: Datastore,
    pub(super) journal: Journal,
    /// Whether lost keys of active authorities are a reason not to start.
    pub(super) refuse_lost_keys: bool,
}

/// How an authority presents itself to an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityState {
    pub authority_id: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// Lower-case hex; empty when self-signed.
    pub upstream_authority_id: String,
}

/// The authorities of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityStates {
    pub active: Option<AuthorityState>,
    pub prepared: Option<AuthorityState>,
    pub old: Option<AuthorityState>,
}

struct Held<I> {
    record: Record,
    /// None for an old one: it signs no more.
    issuer: Option<Arc<I>>,
}

struct Slots<I> {
    current: Option<Held<I>>,
    next: Option<Held<I>>,
}

impl<I> Slots<I> {
    fn has_prepared(&self, now: i64) -> bool {
        self.next.as_ref().is_some_and(|held| {
            held.record.status == Status::Prepared && held.record.not_after > now
        })
    }
}

/// The two slots of one kind.
pub(super) struct Authority<K: Kind> {
    kind: K,
    ground: Arc<Ground>,
    slots: Mutex<Slots<K::Issuer>>,
    active: ArcSwapOption<K::Issuer>,
    states: ArcSwap<AuthorityStates>,
}

impl<K: Kind> Authority<K> {
    /// Takes up what the journal says of this kind, as far as the key manager and the bundle agree.
    pub(super) async fn resume(
        kind: K,
        ground: Arc<Ground>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let authority = Self {
            kind,
            ground,
            slots: Mutex::new(Slots {
                current: None,
                next: None,
            }),
            active: ArcSwapOption::empty(),
            states: ArcSwap::default(),
        };
        let mut slots = authority.slots.lock().await;
        authority.load(&mut slots, now).await?;
        authority.show(&slots);
        drop(slots);
        Ok(authority)
    }

    /// What signs now.
    pub(super) fn active(&self) -> Option<Arc<K::Issuer>> {
        self.active.load_full()
    }

    pub(super) fn states(&self) -> Arc<AuthorityStates> {
        self.states.load_full()
    }

    /// Does what is due at `now`. SPIRE calls it every ten seconds.
    ///
    /// # Errors
    /// The next authority could not be made. The active one goes on until it expires.
    pub(super) async fn tick(&self, now: SystemTime) -> Result<(), CaError> {
        let mut slots = self.slots.lock().await;
        if let Err(error) = self.ground.journal.flush().await {
            tracing::warn!(%error, "the CA journal is behind");
        }
        let done = self.step(&mut slots, now).await;
        self.show(&slots);
        done
    }

    /// Makes the next authority now, in place of one that is prepared already.
    ///
    /// # Errors
    /// It could not be made; the active one is not touched.
    pub(super) async fn prepare(&self, now: SystemTime) -> Result<AuthorityState, CaError> {
        let mut slots = self.slots.lock().await;
        let done = self.prepare_next(&mut slots, now).await;
        self.show(&slots);
        done
    }

    /// Lets the prepared authority sign from now on. False when `authority_id` is not prepared any more.
    pub(super) async fn activate(&self, authority_id: &str) -> bool {
        let mut slots = self.slots.lock().await;
        let wanted = |held: &Held<K::Issuer>| {
            held.record.status == Status::Prepared && held.record.authority_id == authority_id
        };
        if !slots.next.as_ref().is_some_and(wanted) {
            return false;
        }
        self.rotate(&mut slots).await;
        self.show(&slots);
        true
    }

    async fn step(&self, slots: &mut Slots<K::Issuer>, now: SystemTime) -> Result<(), CaError> {
        let due = slots
            .current
            .as_ref()
            .map(|held| lifetime(&held.record))
            .filter(|(_, end)| now < *end);
        let Some((issued, end)) = due else {
            // Nothing signs: at the first start, or after a long pause.
            if !slots.has_prepared(unix_seconds(now)) {
                self.prepare_next(slots, now).await?;
            }
            self.rotate(slots).await;
            return Ok(());
        };
        let mut prepared = Ok(());
        if now >= prepare_at(issued, end) && !slots.has_prepared(unix_seconds(now)) {
            prepared = self.prepare_next(slots, now).await.map(|_| ());
        }
        if now >= activate_at(issued, end) && slots.has_prepared(unix_seconds(now)) {
            self.rotate(slots).await;
        }
        prepared
    }

    async fn prepare_next(
        &self,
        slots: &mut Slots<K::Issuer>,
        now: SystemTime,
    ) -> Result<AuthorityState, CaError> {
        let slot = slots
            .current
            .as_ref()
            .map_or(SlotName::A, |held| held.record.slot.other());
        // Before a key is made and an upstream authority asked for something that could not be recorded.
        self.ground.journal.check_writable().await?;
        // Making the key destroys the one that the slot held.
        slots.next = None;
        let key = self
            .ground
            .keys
            .generate_key(&key_id::<K>(slot), self.kind.key_type())
            .await
            .map_err(CaError::Keys)?;
        let draft = self.kind.draft(&key, now).await?;
        let record = Record {
            slot,
            status: Status::Prepared,
            authority_id: draft.authority_id,
            origin: draft.origin,
            upstream_authority_id: draft.upstream_authority_id,
            issued_at: unix_seconds(now),
            not_after: unix_seconds(draft.not_after),
            public_key: key.public_key().spki_der().to_vec(),
            chain: draft.chain,
        };
        let issuer = self
            .kind
            .issuer(&record, key, &draft.publication, now)
            .await?;
        // Journal first: what is in the bundle but in no journal would be trusted without anybody to answer for it,
        // while a record that the bundle lacks is dropped at the next start.
        self.ground
            .journal
            .append(K::SERIES, record.clone())
            .await?;
        if let Err(error) = self.ground.datastore.append_bundle(draft.publication).await {
            self.ground
                .journal
                .forget(K::SERIES, &record.authority_id)
                .await;
            return Err(error.into());
        }
        tracing::info!(
            slot = %record.slot,
            issued_at = moment(record.issued_at),
            expiration = moment(record.not_after),
            local_authority_id = record.authority_id,
            upstream_authority_id = record.upstream_authority_id,
            "{} prepared",
            K::WHAT
        );
        let state = state_of(&record);
        slots.next = Some(Held {
            record,
            issuer: Some(Arc::new(issuer)),
        });
        Ok(state)
    }

    /// Moves next to current; the current one becomes old. What signs has changed before the first await, so that a
    /// caller who goes away in the middle leaves nothing half done.
    async fn rotate(&self, slots: &mut Slots<K::Issuer>) {
        let Some(mut next) = slots.next.take() else {
            return;
        };
        next.record.status = Status::Active;
        self.active.store(next.issuer.clone());
        tracing::info!(
            slot = %next.record.slot,
            issued_at = moment(next.record.issued_at),
            expiration = moment(next.record.not_after),
            local_authority_id = next.record.authority_id,
            "{} activated",
            K::WHAT
        );
        let active_id = next.record.authority_id.clone();
        let before = slots.current.replace(next);
        let old_id = before.as_ref().map(|held| held.record.authority_id.clone());
        slots.next = before.map(|held| Held {
            record: Record {
                status: Status::Old,
                ..held.record
            },
            issuer: None,
        });
        self.show(slots);
        let mut changes = vec![(active_id.as_str(), Status::Active)];
        changes.extend(old_id.as_deref().map(|id| (id, Status::Old)));
        if let Err(error) = self.ground.journal.set_status(K::SERIES, &changes).await {
            tracing::error!(%error, "the CA journal does not know yet which {} is active", K::WHAT);
        }
    }

    async fn load(&self, slots: &mut Slots<K::Issuer>, now: SystemTime) -> Result<(), CaError> {
        let bundle = self
            .ground
            .datastore
            .registry()
            .bundle(&self.ground.trust_domain);
        let Some(bundle) = bundle else { return Ok(()) };
        for record in self
            .ground
            .journal
            .records(K::SERIES)
            .await
            .into_iter()
            .rev()
        {
            let place = if record.status == Status::Active {
                &mut slots.current
            } else {
                &mut slots.next
            };
            if place.is_some() || record.not_after <= unix_seconds(now) {
                continue;
            }
            if !self.kind.is_published(&record, &bundle) {
                unusable::<K>(&record, "the bundle does not hold it");
                continue;
            }
            if record.status == Status::Old {
                *place = Some(Held {
                    record,
                    issuer: None,
                });
            } else if let Some(issuer) = self.try_resume(&record, &bundle, now).await? {
                *place = Some(Held {
                    record,
                    issuer: Some(Arc::new(issuer)),
                });
            }
        }
        let same_slot = |(current, next): (&Held<K::Issuer>, &Held<K::Issuer>)| {
            current.record.slot == next.record.slot
        };
        if slots
            .current
            .as_ref()
            .zip(slots.next.as_ref())
            .is_some_and(same_slot)
        {
            slots.next = None;
        }
        match &slots.current {
            Some(current) => self.active.store(current.issuer.clone()),
            None if slots.has_prepared(unix_seconds(now)) => self.rotate(slots).await,
            None => {}
        }
        Ok(())
    }

    async fn try_resume(
        &self,
        record: &Record,
        bundle: &Bundle,
        now: SystemTime,
    ) -> Result<Option<K::Issuer>, CaError> {
        let stored = self.ground.keys.key(&key_id::<K>(record.slot)).await;
        let Some(key) = stored.map_err(CaError::Keys)? else {
            return self.lost(record, "the key manager does not have its key");
        };
        if key.public_key().spki_der() != record.public_key {
            return self.lost(record, "the key manager's key is another one");
        }
        match self.kind.issuer(record, key, bundle, now).await {
            Ok(issuer) => Ok(Some(issuer)),
            Err(error) => {
                unusable::<K>(record, &error.to_string());
                Ok(None)
            }
        }
    }

    /// An authority whose key is gone. The one that signed last is not replaced silently: agents and servers below rely on it.
    fn lost(&self, record: &Record, why: &str) -> Result<Option<K::Issuer>, CaError> {
        if record.status == Status::Active && self.ground.refuse_lost_keys {
            return Err(CaError::KeyLost {
                what: K::WHAT,
                authority_id: record.authority_id.clone(),
            });
        }
        unusable::<K>(record, why);
        Ok(None)
    }

    fn show(&self, slots: &Slots<K::Issuer>) {
        let next = |status| {
            let held = slots
                .next
                .as_ref()
                .filter(|held| held.record.status == status);
            held.map(|held| state_of(&held.record))
        };
        self.states.store(Arc::new(AuthorityStates {
            active: slots.current.as_ref().map(|held| state_of(&held.record)),
            prepared: next(Status::Prepared),
            old: next(Status::Old),
        }));
    }
}

fn key_id<K: Kind>(slot: SlotName) -> String {
    format!("{}-{slot}", K::KEY_PREFIX)
}

/// Unix seconds as logs show them: RFC 3339.
pub(super) fn moment(unix: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix).ok();
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix.to_string())
}

fn lifetime(record: &Record) -> (SystemTime, SystemTime) {
    (from_unix(record.issued_at), from_unix(record.not_after))
}

fn state_of(record: &Record) -> AuthorityState {
    AuthorityState {
        authority_id: record.authority_id.clone(),
        expires_at: record.not_after,
        upstream_authority_id: record.upstream_authority_id.clone(),
    }
}

fn unusable<K: Kind>(record: &Record, why: &str) {
    tracing::warn!(
        slot = %record.slot,
        local_authority_id = record.authority_id,
        why,
        "{} of the journal cannot be used again",
        K::WHAT
    );
}
