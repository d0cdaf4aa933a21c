//! Changes that the server reports: entries and bundles that come, change and go.

use std::sync::Arc;
use std::time::SystemTime;

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::trust_domain::TrustDomain;

use super::{State, Timer, Touched};
use crate::cache::bundles::TaintedKeys;
use crate::cache::{Delta, entries};

impl State {
    /// Takes in a change: whether anything was new, and whether an SVID became wanted.
    pub(in crate::cache) fn apply(&mut self, delta: Delta, now: SystemTime) -> (bool, bool) {
        let mut touched = Touched::default();
        for entry in delta.entries {
            self.put_entry(&entry, &mut touched);
        }
        for id in &delta.removed_entries {
            self.remove_entry(id, &mut touched);
        }
        let mut wanted = false;
        for bundle in delta.bundles {
            wanted |= self.put_bundle(bundle, now, &mut touched);
        }
        for trust_domain in delta.removed_bundles {
            // The own bundle is only ever replaced: without it nobody could verify anybody.
            if trust_domain != self.known.trust_domain && self.known.bundles.remove(&trust_domain) {
                self.bundle_changed(&trust_domain, now, &mut touched);
            }
        }
        let any = touched.any;
        wanted |= self.refresh(touched, now);
        (any, wanted)
    }

    /// An SVID for the same identity stays in use until its successor is there; for another identity it goes at once.
    /// What counts is the content: with SPIRE's server an entry that was deleted and created again may have the same
    /// revision number as before.
    fn put_entry(&mut self, entry: &Arc<Entry>, touched: &mut Touched) {
        let known = self.known.entries.get(&entry.id);
        if known.is_some_and(|known| known == entry) {
            return;
        }
        match entries::expiry(entry) {
            Some(expiry) => self.timers.set(Timer::Entry(Arc::clone(&entry.id)), expiry),
            None => self.timers.cancel(&Timer::Entry(Arc::clone(&entry.id))),
        }
        touched.entry(&self.interest, entry);
        if let Some(old) = self.known.entries.insert(Arc::clone(entry)) {
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
        }
    }

    fn remove_entry(&mut self, id: &Arc<str>, touched: &mut Touched) {
        if let Some(old) = self.known.entries.remove(id) {
            touched.entry(&self.interest, &old);
            self.timers.cancel(&Timer::Entry(Arc::clone(id)));
            self.withdraw(&old);
        }
    }

    /// True when an SVID became wanted because its authority is tainted.
    fn put_bundle(&mut self, bundle: Bundle, now: SystemTime, touched: &mut Touched) -> bool {
        let trust_domain = bundle.trust_domain.clone();
        let is_own = trust_domain == self.known.trust_domain;
        let tainted = is_own.then(|| TaintedKeys::of(&bundle));
        if !self.known.bundles.put(bundle, now) {
            return false;
        }
        self.bundle_changed(&trust_domain, now, touched);
        tainted.is_some_and(|tainted| self.taint(tainted))
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
    fn taint(&mut self, tainted: TaintedKeys) -> bool {
        let fresh = tainted.without(&self.tainted);
        self.tainted = tainted;
        if fresh.is_empty() {
            return false;
        }
        tracing::warn!(
            x509 = fresh.x509.len(),
            jwt = fresh.jwt.len(),
            "authorities are tainted: what they signed is replaced"
        );
        let mut wanted = false;
        for id in self.known.svids.signed_by(&fresh.x509) {
            self.known.svids.mark_stale(&id);
            wanted |= self.is_in_use(&id) && self.issuance.want(&id);
        }
        self.forget_tokens(|_, token| token.is_signed_by(&fresh.jwt));
        wanted
    }
}
