//! The life of one kind of authority, written once for X.509, JWT and whatever comes next.
//!
//! Two key slots, A and B. The next authority is made and published long before it signs, so that everybody who verifies
//! knows it by then; the one before stays published until it ends. A [`Kind`] says what an authority of it is made of, and
//! [`Slots`] which changes are possible. No authority signs before the journal and the bundle hold it and before a document
//! of its own passed a trial.
//!
//! Changes are serialized by the state of the slots, not by a lock: who wants to prepare while a change is under way waits
//! until it is over; who wants to activate finds nothing prepared. A caller who goes away in the middle leaves the slots as
//! they were.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use plugin::key_manager::KeyManager;
use spiffe::bundle::Bundle;
use spiffe::clock::{Clock, unix_seconds};
use spiffe::trust_domain::TrustDomain;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;

use super::CaError;
use super::journal::{Journal, Record, SlotName, Status};
use super::kind::{Draft, Kind};
use super::slots::{AuthorityState, AuthorityStates, Next, Slot, Slots, state_of};
use crate::datastore::Bundles;
use crate::metrics::{AUTHORITY_ACTIVATED, AUTHORITY_EXPIRES, AUTHORITY_PREPARED};
use crate::registry::Registry;
use daemon::telemetry::Telemetry;

/// How long a key manager and an upstream authority may take to make an authority; others wait meanwhile.
const DRAFT_TIMEOUT: Duration = Duration::from_secs(120);

/// What all kinds stand on.
#[derive(Debug)]
pub(super) struct AuthorityContext {
    pub(super) trust_domain: TrustDomain,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) keys: Arc<dyn KeyManager>,
    pub(super) registry: Arc<Registry>,
    pub(super) bundles: Bundles,
    pub(super) journal: Journal,
    pub(super) telemetry: Telemetry,
    /// Whether lost keys of active authorities are a reason not to start.
    pub(super) refuse_lost_keys: bool,
    /// Wakes the renewal of the server's own SVID, which may hang on an authority that was tainted.
    pub(super) server_svid_due: Notify,
}

/// The two slots of one kind.
pub(super) struct Authority<K: Kind> {
    pub(super) kind: K,
    pub(super) context: Arc<AuthorityContext>,
    /// Never held over an await.
    slots: Mutex<Slots<K::Issuer>>,
    /// What the slots say, for readers who wait for nobody.
    active: ArcSwapOption<K::Issuer>,
    states: ArcSwap<AuthorityStates>,
    /// A change is over.
    changed: Notify,
}

impl<K: Kind> Authority<K> {
    /// Takes up what the journal says of this kind, as far as the key manager and the bundle agree.
    pub(super) async fn resume(
        kind: K,
        context: Arc<AuthorityContext>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let authority = Self {
            kind,
            context,
            slots: Mutex::default(),
            active: ArcSwapOption::empty(),
            states: ArcSwap::default(),
            changed: Notify::new(),
        };
        let resumed = authority.load(now).await?;
        let nothing_signs = resumed.issuer().is_none();
        authority.change(|slots| *slots = resumed);
        if nothing_signs && authority.lock().has_prepared(now) {
            authority.activate_if(|_| true).await;
        }
        Ok(authority)
    }

    /// What signs now.
    pub(super) fn active(&self) -> Option<Arc<K::Issuer>> {
        self.active.load_full()
    }

    pub(super) fn current_states(&self) -> Arc<AuthorityStates> {
        self.states.load_full()
    }

    /// Does what is due at `now`. SPIRE calls it every ten seconds.
    ///
    /// # Errors
    /// The next authority could not be made. The active one goes on until it expires.
    pub(super) async fn rotate(&self, now: SystemTime) -> Result<(), CaError> {
        // An earlier change may not have reached the datastore.
        if let Err(error) = self.record_statuses().await {
            tracing::warn!(%error, "the CA journal is behind");
        }
        let is_due = |slots: &Slots<K::Issuer>| slots.preparation_is_due(now);
        let prepared = if is_due(&self.lock()) {
            self.prepare_if(now, is_due).await.map(|_| ())
        } else {
            Ok(())
        };
        if self.lock().activation_is_due(now) {
            self.activate_if(|_| true).await;
        }
        prepared
    }

    /// Makes the next authority now, in place of one that is prepared already.
    ///
    /// # Errors
    /// It could not be made; the active one is not touched.
    pub(super) async fn prepare_next(&self, now: SystemTime) -> Result<AuthorityState, CaError> {
        let prepared = self.prepare_if(now, |_| true).await?;
        prepared.ok_or_else(|| CaError::Journal("nothing was prepared".to_owned()))
    }

    /// Lets the prepared authority sign from now on. False when `authority_id` is not prepared any more.
    pub(super) async fn activate_prepared(&self, authority_id: &str) -> bool {
        self.activate_if(|record| record.authority_id == authority_id)
            .await
    }

    /// Makes the next authority if that is still `wanted` once no other change is under way.
    async fn prepare_if(
        &self,
        now: SystemTime,
        wanted: impl Fn(&Slots<K::Issuer>) -> bool,
    ) -> Result<Option<AuthorityState>, CaError> {
        // Before a key is made and an upstream authority asked for something that could not be recorded.
        self.context.journal.check_writable().await?;
        let Some(preparation) = self.begin(wanted).await else {
            return Ok(None);
        };
        let timer = self
            .context
            .telemetry
            .start(&AUTHORITY_PREPARED, [K::LABEL]);
        let made = self.make(preparation, now).await;
        timer.end_with(&made);
        made.map(Some)
    }

    /// Waits for its turn to prepare; nothing when that is not wanted any more.
    async fn begin(
        &self,
        wanted: impl Fn(&Slots<K::Issuer>) -> bool,
    ) -> Option<Preparation<'_, K>> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            {
                let mut slots = self.lock();
                if !wanted(&slots) {
                    return None;
                }
                if let Some((slot, former)) = slots.begin() {
                    self.show(&slots);
                    return Some(Preparation {
                        authority: self,
                        slot,
                        former: Some(former),
                    });
                }
            }
            changed.await;
        }
    }

    async fn make(
        &self,
        mut preparation: Preparation<'_, K>,
        now: SystemTime,
    ) -> Result<AuthorityState, CaError> {
        let journal = &self.context.journal;
        let drafting = self.draft(&mut preparation, now);
        let drafted = tokio::time::timeout(DRAFT_TIMEOUT, drafting).await;
        let (record, issuer, draft) = drafted.map_err(|_elapsed| CaError::TookTooLong)??;
        // Journal first: what is in the bundle but in no journal would be trusted without anybody to answer for it,
        // while a record that the bundle lacks is dropped at the next start.
        journal.append(K::SERIES, record.clone()).await?;
        let published = self.context.bundles.append(draft.publication);
        if let Err(error) = published.await {
            journal.forget(K::SERIES, &record.authority_id).await;
            return Err(error.into());
        }
        if let Some(follow) = draft.once_published {
            follow();
        }
        log::<K>(&record, "prepared");
        let state = state_of(&record);
        preparation.finish(Slot {
            record,
            issuer: Some(Arc::new(issuer)),
        });
        Ok(state)
    }

    /// Makes the key, the documents and what signs, and tries them. Nothing of it is stored yet.
    async fn draft(
        &self,
        preparation: &mut Preparation<'_, K>,
        now: SystemTime,
    ) -> Result<(Record, K::Issuer, Draft), CaError> {
        let slot = preparation.slot;
        let key_id = key_id::<K>(slot);
        let keys = &self.context.keys;
        let key = keys.generate_key(&key_id, self.kind.key_type()).await;
        let key = key.map_err(CaError::Keys)?;
        preparation.key_was_replaced();
        let mut draft = self.kind.draft(&key, now).await?;
        let record = Record {
            slot,
            status: Status::Prepared,
            authority_id: std::mem::take(&mut draft.authority_id),
            origin: draft.origin,
            upstream_authority_id: std::mem::take(&mut draft.upstream_authority_id),
            issued_at: unix_seconds(now),
            not_after: unix_seconds(draft.not_after),
            public_key: key.public_key().spki_der().to_vec(),
            chain: std::mem::take(&mut draft.chain),
        };
        let trust = &draft.publication;
        let issuer = self.kind.issuer(&record, key, trust, now).await?;
        Ok((record, issuer, draft))
    }

    /// Lets the prepared authority sign, if it is the one meant. What signs has changed before the first await, so that a
    /// caller who goes away in the middle leaves nothing half done.
    async fn activate_if(&self, is_meant: impl Fn(&Record) -> bool) -> bool {
        let Some(activated) = self.change(|slots| slots.activate(is_meant)) else {
            return false;
        };
        let _recording = Recording { authority: self };
        log::<K>(&activated, "activated");
        let telemetry = &self.context.telemetry;
        telemetry.count(&AUTHORITY_ACTIVATED, [K::LABEL]);
        if let Err(error) = self.record_statuses().await {
            tracing::error!(%error, "the CA journal does not know yet which {} is active", K::WHAT);
        }
        true
    }

    /// Has the journal say what the slots say.
    async fn record_statuses(&self) -> Result<(), CaError> {
        let statuses = self.lock().statuses();
        self.context
            .journal
            .set_statuses(K::SERIES, &statuses)
            .await
    }

    fn lock(&self) -> MutexGuard<'_, Slots<K::Issuer>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One transition; callers that wait for it check again.
    fn change<R>(&self, transition: impl FnOnce(&mut Slots<K::Issuer>) -> R) -> R {
        let mut slots = self.lock();
        let outcome = transition(&mut slots);
        self.show(&slots);
        drop(slots);
        self.changed.notify_waiters();
        outcome
    }

    /// Called under the lock, so that no older state is shown after a newer one.
    fn show(&self, slots: &Slots<K::Issuer>) {
        let states = slots.states();
        if let Some(active) = &states.active {
            let telemetry = &self.context.telemetry;
            telemetry.set_time(&AUTHORITY_EXPIRES, active.expires_at, [K::LABEL]);
        }
        self.active.store(slots.issuer());
        self.states.store(Arc::new(states));
    }

    async fn load(&self, now: SystemTime) -> Result<Slots<K::Issuer>, CaError> {
        let AuthorityContext {
            trust_domain,
            registry,
            journal,
            ..
        } = self.context.as_ref();
        let (mut current, mut next) = (None, None);
        let Some(bundle) = registry.bundle(trust_domain) else {
            return Ok(Slots::default());
        };
        for record in journal.records(K::SERIES).await.into_iter().rev() {
            let place = match record.status {
                Status::Active => &mut current,
                Status::Prepared | Status::Old => &mut next,
            };
            if place.is_some() || record.not_after <= unix_seconds(now) {
                continue;
            }
            if !self.kind.is_published(&record, &bundle) {
                unusable::<K>(&record, "the bundle does not hold it");
                continue;
            }
            let issuer = match record.status {
                Status::Old => None,
                Status::Prepared | Status::Active => {
                    let Some(issuer) = self.try_resume(&record, &bundle, now).await? else {
                        continue;
                    };
                    Some(Arc::new(issuer))
                }
            };
            *place = Some(Slot { record, issuer });
        }
        Ok(Slots::resumed(current, next))
    }

    async fn try_resume(
        &self,
        record: &Record,
        bundle: &Bundle,
        now: SystemTime,
    ) -> Result<Option<K::Issuer>, CaError> {
        let stored = self.context.keys.key(&key_id::<K>(record.slot)).await;
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
        if record.status == Status::Active && self.context.refuse_lost_keys {
            return Err(CaError::KeyLost {
                what: K::WHAT,
                authority_id: record.authority_id.clone(),
            });
        }
        unusable::<K>(record, why);
        Ok(None)
    }
}

/// A successor is being made. Dropped before it is finished, it leaves the slot as it was, or empty once the key manager
/// has replaced the key that was there.
struct Preparation<'a, K: Kind> {
    authority: &'a Authority<K>,
    slot: SlotName,
    /// None when it is finished.
    former: Option<Next<K::Issuer>>,
}

impl<K: Kind> Preparation<'_, K> {
    /// What the slot held can never sign again.
    fn key_was_replaced(&mut self) {
        self.former = Some(Next::Empty);
    }

    fn finish(mut self, successor: Slot<K::Issuer>) {
        self.former = None;
        self.authority.change(|slots| slots.finish(successor));
    }
}

impl<K: Kind> Drop for Preparation<'_, K> {
    fn drop(&mut self) {
        if let Some(former) = self.former.take() {
            self.authority.change(|slots| slots.abandon(former));
        }
    }
}

/// The journal is learning what signs.
struct Recording<'a, K: Kind> {
    authority: &'a Authority<K>,
}

impl<K: Kind> Drop for Recording<'_, K> {
    fn drop(&mut self) {
        self.authority.change(Slots::recorded);
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

fn log<K: Kind>(record: &Record, became: &str) {
    tracing::info!(
        slot = %record.slot,
        issued_at = moment(record.issued_at),
        expiration = moment(record.not_after),
        local_authority_id = record.authority_id,
        upstream_authority_id = record.upstream_authority_id,
        "{} {became}",
        K::WHAT
    );
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
