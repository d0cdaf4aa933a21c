//! The passing of time: what is due, what expires, and a clock that was set back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::trust_domain::TrustDomain;

use super::{State, Timer, Touched};
use crate::cache::entries;

/// A clock that is set back by more than this invalidates what was concluded from it.
const CLOCK_STEP: Duration = Duration::from_secs(5);

impl State {
    pub(in crate::cache) fn next_due(&self) -> Option<SystemTime> {
        self.timers.next()
    }

    /// Does what is due: renews, retries, and withdraws what expired. True when an SVID became wanted.
    pub(in crate::cache) fn tick(&mut self, now: SystemTime) -> bool {
        let mut touched = Touched::default();
        let mut wanted = false;
        if now + CLOCK_STEP < self.last_tick {
            wanted |= self.clock_was_set_back(now, &mut touched);
        }
        self.last_tick = now;
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Entry(id) => self.entry_expired(&id, now, &mut touched),
                Timer::Svid(id) => wanted |= self.svid_due(&id, now, &mut touched),
                Timer::Retry(id) => wanted |= self.retry(&id),
                Timer::Bundle(trust_domain) => self.review_bundle(&trust_domain, now, &mut touched),
                Timer::Token(key) => self.tokens.remove(&key),
            }
        }
        wanted | self.refresh(touched, now)
    }

    /// The entry stays known, since the clock may be wrong, but counts as absent until the server changes it.
    fn entry_expired(&mut self, id: &Arc<str>, now: SystemTime, touched: &mut Touched) {
        let Some(entry) = self.known.entries.get(id).cloned() else {
            return;
        };
        if entries::has_expired(&entry, now) {
            tracing::info!(entry = %id, spiffe_id = %entry.spiffe_id, "registration entry expired: its SVIDs are withdrawn");
            touched.entry(&self.interest, &entry);
            self.withdraw(&entry);
        }
    }

    /// At its renewal time an SVID that is in use becomes wanted; at its expiry it is dropped, if nothing better came.
    fn svid_due(&mut self, id: &Arc<str>, now: SystemTime, touched: &mut Touched) -> bool {
        let Some(not_after) = self.known.svids.not_after(id) else {
            return false;
        };
        if now < not_after {
            self.timers.set(Timer::Svid(Arc::clone(id)), not_after);
            return self.is_in_use(id) && self.issuance.want(id);
        }
        self.known.svids.remove(id);
        if let Some(entry) = self.known.entries.get(id) {
            touched.entry(&self.interest, entry);
        }
        false
    }

    fn review_bundle(
        &mut self,
        trust_domain: &TrustDomain,
        now: SystemTime,
        touched: &mut Touched,
    ) {
        if self.known.bundles.review(trust_domain, now) {
            self.bundle_changed(trust_domain, now, touched);
        } else if let Some(expiry) = self.known.bundles.next_expiry(trust_domain, now) {
            self.timers.set(Timer::Bundle(trust_domain.clone()), expiry);
        }
    }

    /// What was withdrawn or put off because of a time that has not come after all is taken up again.
    fn clock_was_set_back(&mut self, now: SystemTime, touched: &mut Touched) -> bool {
        tracing::warn!("the clock was set back: what had expired by it is looked at again");
        for entry in self.known.entries.iter() {
            if let Some(expiry) = entries::expiry(entry).filter(|expiry| *expiry > now) {
                self.timers.set(Timer::Entry(Arc::clone(&entry.id)), expiry);
            }
        }
        for trust_domain in self.known.bundles.trust_domains() {
            self.review_bundle(&trust_domain, now, touched);
        }
        touched.all_sets = true;
        self.end_pauses(|_| true)
    }
}
