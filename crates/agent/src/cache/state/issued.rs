//! What the server issued, refused, or could not be asked for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::entry::Entry;
use spiffe::random::{Random, unit_interval};
use spiffe::rotation::earliest_renewal;

use super::{State, Timer, Touched, live};
use crate::backoff::spread;
use crate::cache::entries;
use crate::cache::interest::SetId;
use crate::cache::issuance::Postponement;
use crate::cache::jwt::{Cached, JwtKey, JwtToken};
use crate::cache::svids::IssuedSvid;

/// The first pause of an entry whose SVID the server refused or that could not be used; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(240);

impl State {
    pub(in crate::cache) fn take_wanted(
        &mut self,
        limit: usize,
        now: SystemTime,
    ) -> Vec<Arc<Entry>> {
        let entries = &self.known.entries;
        self.issuance
            .take(limit, |id| live(entries, id, now).cloned())
    }

    /// Takes in SVIDs that were asked for. True when one of them has to be asked for again.
    pub(in crate::cache) fn put_svids(
        &mut self,
        issued: Vec<IssuedSvid>,
        now: SystemTime,
        random: &dyn Random,
    ) -> bool {
        let mut touched = Touched::default();
        for svid in issued {
            let id = Arc::clone(&svid.entry_id);
            // Nobody waits for it when its entry was removed in the meantime.
            let Some((asked, failures)) = self.issuance.arrived(&id) else {
                continue;
            };
            let Some(entry) = live(&self.known.entries, &id, now).cloned() else {
                continue;
            };
            touched.entry(&self.interest, &entry);
            if svid.spiffe_id != entry.spiffe_id {
                // The entry names another identity by now. Nobody could want that one while this one was in flight, so
                // the sets look again below.
                continue;
            }
            if svid.not_after <= now {
                warn_of_clock(&svid, now);
                self.postpone(&id, Postponement::Refused, failures, now, random);
            } else {
                let tainted = svid.is_signed_by(&self.tainted.x509);
                self.put_svid(svid, &entry, tainted || *asked != *entry, now, random);
                if tainted {
                    self.postpone(&id, Postponement::Refused, failures, now, random);
                }
            }
        }
        self.make_room(&mut touched);
        self.refresh(touched, now)
    }

    /// Takes in SVIDs that were issued before a restart, as far as they still fit.
    pub(in crate::cache) fn restore(
        &mut self,
        svids: Vec<IssuedSvid>,
        now: SystemTime,
        random: &dyn Random,
    ) -> bool {
        let mut touched = Touched::default();
        for svid in svids {
            let Some(entry) = live(&self.known.entries, &svid.entry_id, now).cloned() else {
                continue;
            };
            if svid.spiffe_id != entry.spiffe_id || svid.not_after <= now {
                continue;
            }
            let stale =
                svid.revision != entry.revision_number || svid.is_signed_by(&self.tainted.x509);
            self.issuance.forget(&svid.entry_id);
            touched.entry(&self.interest, &entry);
            self.put_svid(svid, &entry, stale, now, random);
        }
        self.make_room(&mut touched);
        self.refresh(touched, now)
    }

    fn put_svid(
        &mut self,
        svid: IssuedSvid,
        entry: &Entry,
        stale: bool,
        now: SystemTime,
        random: &dyn Random,
    ) {
        // The server issues nothing that outlives the entry: when that is what ends the SVID, a new one lives no longer.
        let renew_at = if entries::expiry(entry).is_some_and(|expiry| expiry <= svid.not_after) {
            svid.not_after
        } else {
            let spread = unit_interval(random);
            let rule = self.rotation;
            rule.renew_at(svid.not_before, svid.not_after, spread)
                .max(earliest_renewal(now, svid.not_after))
        };
        if self.known.svids.not_after(&svid.entry_id).is_none() {
            warn_of_short_life(&svid, entry, now);
        }
        self.timers
            .set(Timer::Svid(Arc::clone(&svid.entry_id)), renew_at);
        self.known.svids.put(svid, renew_at, stale);
    }

    fn make_room(&mut self, touched: &mut Touched) {
        let interest = &self.interest;
        let evicted = self
            .known
            .svids
            .evict(self.x509_limit, |id| interest.is_held(id));
        for id in evicted {
            if let Some(entry) = self.known.entries.get(&id) {
                touched.entry(&self.interest, entry);
            }
            self.timers.cancel(&Timer::Svid(id));
        }
    }

    /// The server could not be asked for these: they are wanted again after `pause`.
    pub(in crate::cache) fn not_answered(
        &mut self,
        ids: &[Arc<str>],
        pause: Duration,
        now: SystemTime,
    ) {
        for id in ids {
            if let Some((_, failures)) = self.issuance.arrived(id) {
                let retry_at = now + pause;
                self.issuance
                    .postpone(id, Postponement::NoAnswer, failures, retry_at);
                self.timers.set(Timer::Retry(Arc::clone(id)), retry_at);
            }
        }
        self.nudge(ids);
    }

    /// The server refused these: they are wanted again after a pause that grows.
    pub(in crate::cache) fn refused(
        &mut self,
        ids: &[Arc<str>],
        now: SystemTime,
        random: &dyn Random,
    ) {
        for id in ids {
            if let Some((_, failures)) = self.issuance.arrived(id) {
                self.postpone(id, Postponement::Refused, failures, now, random);
            }
        }
        self.nudge(ids);
    }

    fn postpone(
        &mut self,
        id: &Arc<str>,
        why: Postponement,
        failures: u32,
        now: SystemTime,
        random: &dyn Random,
    ) {
        let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
        let retry_at = now + spread(pause.min(LONGEST_PAUSE), random);
        let failures = failures.saturating_add(1);
        self.issuance.postpone(id, why, failures, retry_at);
        self.timers.set(Timer::Retry(Arc::clone(id)), retry_at);
    }

    /// Callers that wait for these look again at what they may expect.
    fn nudge(&self, ids: &[Arc<str>]) {
        let sets: BTreeSet<SetId> = ids
            .iter()
            .filter_map(|id| self.known.entries.get(id))
            .flat_map(|entry| self.interest.matched_by(entry))
            .collect();
        for set in sets {
            self.interest.nudge(set);
        }
    }

    /// The server answers again: nobody waits for the end of a pause that its absence caused.
    pub(in crate::cache) fn server_returned(&mut self) -> bool {
        self.end_pauses(|why| why == Postponement::NoAnswer)
    }

    pub(super) fn end_pauses(&mut self, which: impl Fn(Postponement) -> bool) -> bool {
        let ids: Vec<Arc<str>> = self
            .issuance
            .postponed()
            .filter(|(_, why)| which(*why))
            .map(|(id, _)| Arc::clone(id))
            .collect();
        let mut wanted = false;
        for id in ids {
            self.timers.cancel(&Timer::Retry(Arc::clone(&id)));
            wanted |= self.retry(&id);
        }
        wanted
    }

    pub(super) fn retry(&mut self, id: &Arc<str>) -> bool {
        if self.is_in_use(id) {
            return self.issuance.retry(id);
        }
        self.issuance.forget(id);
        false
    }

    pub(in crate::cache) fn jwt(&mut self, key: &JwtKey, now: SystemTime) -> Cached {
        self.tokens.get(key, now)
    }

    /// Caches a token, unless its entry changed or its key was tainted while it was in flight.
    pub(in crate::cache) fn put_jwt(
        &mut self,
        asked: &Entry,
        key: JwtKey,
        token: Arc<JwtToken>,
        now: SystemTime,
    ) {
        let unchanged =
            live(&self.known.entries, &asked.id, now).is_some_and(|entry| **entry == *asked);
        if !unchanged || token.is_signed_by(&self.tainted.jwt) || token.expires_at <= now {
            return;
        }
        let (key, expires_at) = (Arc::new(key), token.expires_at);
        self.timers.set(Timer::Token(Arc::clone(&key)), expires_at);
        for evicted in self.tokens.put(key, token) {
            self.timers.cancel(&Timer::Token(evicted));
        }
    }
}

/// How much shorter an SVID lives than its entry asks, when neither rounding nor the entry's expiry explains it.
fn missing_life(svid: &IssuedSvid, entry: &Entry, now: SystemTime) -> Option<Duration> {
    let asked = Duration::from_secs(u64::try_from(entry.x509_svid_ttl).unwrap_or_default());
    let missing = (now + asked).duration_since(svid.not_after).ok()?;
    let ends_with_entry = entries::expiry(entry).is_some_and(|expiry| expiry <= svid.not_after);
    (missing > asked / 10 && !ends_with_entry).then_some(missing)
}

fn warn_of_short_life(svid: &IssuedSvid, entry: &Entry, now: SystemTime) {
    if let Some(missing) = missing_life(svid, entry, now) {
        tracing::warn!(
            entry = %entry.id,
            spiffe_id = %entry.spiffe_id,
            asked_seconds = entry.x509_svid_ttl,
            missing_seconds = missing.as_secs(),
            "X509-SVID lives shorter than its entry asks: it cannot outlive the server's authority"
        );
    }
}

fn warn_of_clock(svid: &IssuedSvid, now: SystemTime) {
    let ahead = now.duration_since(svid.not_after).unwrap_or_default();
    tracing::warn!(
        entry = %svid.entry_id,
        spiffe_id = %svid.spiffe_id,
        expired_seconds_ago = ahead.as_secs(),
        "X509-SVID had expired when it arrived: the clock of this node is ahead of the server's"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, entry};

    #[test]
    fn an_svid_that_its_authority_cuts_short_is_noticed_and_one_that_ends_with_its_entry_is_not() {
        let mut week = Entry::clone(&entry("a", "/a", &[]));
        week.x509_svid_ttl = 7 * 24 * 3600;
        let until = |seconds| IssuedSvid {
            entry_id: "a".into(),
            revision: 0,
            spiffe_id: week.spiffe_id.clone(),
            chain: Vec::new(),
            key: Arc::new(spiffe::secret::Secret::new(Vec::new())),
            not_before: at(0),
            not_after: at(seconds),
            issuers: Vec::new(),
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(
            missing_life(&until(3600), &week, at(0)),
            Some(7 * 24 * hour - hour)
        );
        let nearly = until(7 * 24 * 3600 - 5);
        assert_eq!(missing_life(&nearly, &week, at(0)), None);
        let mut default = week.clone();
        default.x509_svid_ttl = 0;
        assert_eq!(missing_life(&until(60), &default, at(0)), None);
        let mut brief = week.clone();
        brief.expires_at = spiffe::clock::unix_seconds(at(3600));
        assert_eq!(missing_life(&until(3600), &brief, at(0)), None);
    }
}
