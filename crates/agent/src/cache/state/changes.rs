//! Changes that the server reports: entries and bundles that come, change and go.

use std::sync::Arc;
use std::time::SystemTime;

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::trust_domain::TrustDomain;

use super::{State, Timer, Touched};
use crate::cache::bundles::TaintedKeys;
use crate::cache::{Delta, entries};

/// What a change from the server led to.
#[derive(Debug, Default)]
pub(in crate::cache) struct Applied {
    /// Something of it was new.
    pub(in crate::cache) changed: bool,
    /// An SVID became wanted.
    pub(in crate::cache) wanted: bool,
    pub(in crate::cache) added: usize,
    pub(in crate::cache) updated: usize,
    pub(in crate::cache) removed: usize,
    /// Authorities of the own bundle are newly tainted.
    pub(in crate::cache) tainted: Option<Tainted>,
}

/// What newly tainted authorities had signed.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Tainted {
    /// An SVID became wanted in place of one of them.
    wanted: bool,
    pub(in crate::cache) x509_svids: usize,
    pub(in crate::cache) jwt_svids: usize,
}

enum Put {
    Added,
    Updated,
}

impl State {
    /// Takes in a change.
    pub(in crate::cache) fn apply(&mut self, delta: Delta, now: SystemTime) -> Applied {
        let mut touched = Touched::default();
        let mut applied = Applied::default();
        for entry in delta.entries {
            match self.put_entry(&entry, &mut touched) {
                Some(Put::Added) => applied.added += 1,
                Some(Put::Updated) => applied.updated += 1,
                None => {}
            }
        }
        for id in &delta.removed_entries {
            applied.removed += usize::from(self.remove_entry(id, &mut touched));
        }
        for bundle in delta.bundles {
            if let Some(tainted) = self.put_bundle(bundle, now, &mut touched) {
                applied.wanted |= tainted.wanted;
                applied.tainted = Some(tainted);
            }
        }
        for trust_domain in delta.removed_bundles {
            // The own bundle is only ever replaced: without it nobody could verify anybody.
            if trust_domain != self.known.trust_domain && self.known.bundles.remove(&trust_domain) {
                self.bundle_changed(&trust_domain, now, &mut touched);
            }
        }
        applied.changed = touched.any;
        applied.wanted |= self.refresh(touched, now);
        applied
    }

    /// An SVID for the same identity stays in use until its successor is there; for another identity it goes at once.
    /// What counts is the content: with SPIRE's server an entry that was deleted and created again may have the same
    /// revision number as before.
    fn put_entry(&mut self, entry: &Arc<Entry>, touched: &mut Touched) -> Option<Put> {
        let known = self.known.entries.get(&entry.id);
        if known.is_some_and(|known| known == entry) {
            return None;
        }
        match entries::expiry(entry) {
            Some(expiry) => self.timers.set(Timer::Entry(Arc::clone(&entry.id)), expiry),
            None => self.timers.cancel(&Timer::Entry(Arc::clone(&entry.id))),
        }
        touched.entry(&self.interest, entry);
        let Some(old) = self.known.entries.insert(Arc::clone(entry)) else {
            return Some(Put::Added);
        };
        touched.entry(&self.interest, &old);
        // What was refused was the former content. Who holds the entry wants it again when the sets are computed.
        if self.issuance.end_pause(&entry.id) {
            self.timers.cancel(&Timer::Retry(Arc::clone(&entry.id)));
        }
        if old.spiffe_id == entry.spiffe_id {
            self.known.svids.mark_stale(&entry.id);
        } else {
            self.drop_svid(&entry.id);
        }
        self.forget_tokens(|old_id, _| *old_id == old.spiffe_id);
        Some(Put::Updated)
    }

    /// False when there is no such entry.
    fn remove_entry(&mut self, id: &Arc<str>, touched: &mut Touched) -> bool {
        let Some(old) = self.known.entries.remove(id) else {
            return false;
        };
        touched.entry(&self.interest, &old);
        self.timers.cancel(&Timer::Entry(Arc::clone(id)));
        self.withdraw(&old);
        true
    }

    /// What an authority that is newly tainted leads to.
    fn put_bundle(
        &mut self,
        bundle: Bundle,
        now: SystemTime,
        touched: &mut Touched,
    ) -> Option<Tainted> {
        let trust_domain = bundle.trust_domain.clone();
        let is_own = trust_domain == self.known.trust_domain;
        let tainted = is_own.then(|| TaintedKeys::of(&bundle));
        if !self.known.bundles.put(bundle, now) {
            return None;
        }
        self.bundle_changed(&trust_domain, now, touched);
        tainted.and_then(|tainted| self.taint(tainted))
    }

    pub(super) fn bundle_changed(
        &mut self,
        trust_domain: &TrustDomain,
        now: SystemTime,
        touched: &mut Touched,
    ) {
        let timer = Timer::Bundle(trust_domain.clone());
        match self.known.bundles.next_expiry(trust_domain, now) {
            Some(expiry) => self.timers.set(timer, expiry),
            None => self.timers.cancel(&timer),
        }
        touched.any = true;
        if *trust_domain == self.known.trust_domain {
            touched.all_sets = true;
            return;
        }
        for entry in self.known.entries.iter() {
            if entry.federates_with.contains(trust_domain) {
                touched.entry(&self.interest, entry);
            }
        }
    }

    /// Replaces what tainted authorities signed: SVIDs as soon as the server issues others, tokens at once.
    fn taint(&mut self, tainted: TaintedKeys) -> Option<Tainted> {
        let fresh = tainted.without(&self.tainted);
        self.tainted = tainted;
        if fresh.is_empty() {
            return None;
        }
        tracing::warn!(
            x509 = fresh.x509.len(),
            jwt = fresh.jwt.len(),
            "authorities are tainted: what they signed is replaced"
        );
        let stale = self.known.svids.signed_by(&fresh.x509);
        let x509_svids = stale.len();
        let mut wanted = false;
        for id in stale {
            self.known.svids.mark_stale(&id);
            wanted |= self.is_in_use(&id) && self.issuance.want(&id);
        }
        Some(Tainted {
            wanted,
            x509_svids,
            jwt_svids: self.forget_tokens(|_, token| token.is_signed_by(&fresh.jwt)),
        })
    }
}
