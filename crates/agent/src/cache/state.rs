//! The cache's tables and what happens to them: a change from the server, an SVID that comes or does not come, a caller,
//! and the passing of time.
//!
//! Everything here is a plain function of the tables and the time that is given. It takes no lock and wakes nobody but
//! the streams of the sets that changed; whether the sync task has something to do is returned.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::id::SpiffeId;
use spiffe::selector::SelectorSet;
use spiffe::trust_domain::TrustDomain;
use tokio::sync::watch;

use super::bundles::{Bundles, TaintedKeys};
use super::entries::{self, EntryIndex};
use super::interest::{Interest, Purpose, SetId};
use super::issuance::Issuance;
use super::jwt::{JwtCache, JwtKey, JwtToken};
use super::svids::{RotationRule, Svids};
use super::timers::Timers;
use super::update::{Identity, WorkloadUpdate};
use super::{CacheOptions, Counts, Nearest, Outlook, Snapshot};

mod changes;
mod issued;
mod time;

pub(super) use changes::Applied;

/// What has a time. One queue holds them all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// An entry expires.
    Entry(Arc<str>),
    /// An entry's SVID is due for renewal, later for removal.
    Svid(Arc<str>),
    /// An entry's pause is over.
    Retry(Arc<str>),
    /// An authority of a bundle expires.
    Bundle(TrustDomain),
    /// A JWT-SVID expires.
    Token(Arc<JwtKey>),
}

/// The sets that have to be computed again.
#[derive(Debug, Default)]
struct Touched {
    /// Something changed, even if no set is concerned.
    any: bool,
    all_sets: bool,
    sets: BTreeSet<SetId>,
}

/// What updates are made of.
#[derive(Debug)]
struct Known {
    trust_domain: TrustDomain,
    entries: EntryIndex,
    bundles: Bundles,
    svids: Svids,
}

#[derive(Debug)]
pub(super) struct State {
    x509_limit: usize,
    rotation: RotationRule,
    known: Known,
    tainted: TaintedKeys,
    tokens: JwtCache,
    issuance: Issuance,
    interest: Interest,
    timers: Timers<Timer>,
    last_tick: SystemTime,
}

impl State {
    pub(super) fn new(options: CacheOptions, now: SystemTime) -> Self {
        Self {
            x509_limit: options.x509_svids,
            rotation: options.rotation,
            tokens: JwtCache::new(options.jwt_svids),
            known: Known {
                trust_domain: options.trust_domain,
                entries: EntryIndex::default(),
                bundles: Bundles::default(),
                svids: Svids::default(),
            },
            tainted: TaintedKeys::default(),
            issuance: Issuance::default(),
            interest: Interest::default(),
            timers: Timers::default(),
            last_tick: now,
        }
    }

    /// Opens a stream. True when an SVID became wanted by it.
    pub(super) fn subscribe(
        &mut self,
        selectors: &SelectorSet,
        purpose: Purpose,
        now: SystemTime,
    ) -> (SetId, watch::Receiver<Arc<WorkloadUpdate>>, bool) {
        let known = &self.known;
        let (set, updates) = self
            .interest
            .open(selectors, purpose, || known.update_of(selectors, now));
        let mut wanted = false;
        if purpose == Purpose::X509Svids {
            let update = Arc::clone(&updates.borrow());
            for entry in &update.entries {
                self.known.svids.count_use(&entry.id);
                wanted |= self.want_if_needed(&entry.id, now);
            }
        }
        (set, updates, wanted)
    }

    pub(super) fn unsubscribe(&mut self, set: SetId, purpose: Purpose) {
        self.interest.close(set, purpose);
    }

    pub(super) fn current(
        &mut self,
        selectors: &SelectorSet,
        now: SystemTime,
    ) -> Arc<WorkloadUpdate> {
        let known = &self.known;
        self.interest
            .current(selectors, || known.update_of(selectors, now))
    }

    /// What a caller may still wait for until `horizon`.
    pub(super) fn outlook(&self, set: SetId, now: SystemTime, horizon: SystemTime) -> Outlook {
        let mut outlook = Outlook::Settled;
        for entry in self
            .interest
            .update(set)
            .iter()
            .flat_map(|update| &update.entries)
        {
            if self.known.svids.valid(&entry.id, now).is_none() {
                if self.issuance.may_come(&entry.id, horizon) {
                    return Outlook::Issuing;
                }
            } else if self.known.svids.needs_issue(&entry.id, now)
                && self.issuance.is_under_way(&entry.id)
            {
                outlook = Outlook::Renewing;
            }
        }
        outlook
    }

    fn want_if_needed(&mut self, id: &Arc<str>, now: SystemTime) -> bool {
        self.known.svids.needs_issue(id, now) && self.issuance.want(id)
    }

    /// Whether an SVID is worth renewing before somebody asks for it.
    fn is_in_use(&self, id: &str) -> bool {
        self.interest.is_held(id) || self.known.svids.used_since_issue(id)
    }

    /// Nothing that was issued for this entry is given out any more.
    fn withdraw(&mut self, entry: &Entry) {
        self.drop_svid(&entry.id);
        self.timers.cancel(&Timer::Retry(Arc::clone(&entry.id)));
        self.issuance.forget(&entry.id);
        self.forget_tokens(|spiffe_id, _| *spiffe_id == entry.spiffe_id);
    }

    fn drop_svid(&mut self, id: &Arc<str>) {
        if self.known.svids.remove(id) {
            self.timers.cancel(&Timer::Svid(Arc::clone(id)));
        }
    }

    fn forget_tokens(&mut self, drop: impl Fn(&SpiffeId, &JwtToken) -> bool) -> usize {
        let forgotten = self.tokens.forget(drop);
        let number = forgotten.len();
        for key in forgotten {
            self.timers.cancel(&Timer::Token(key));
        }
        number
    }

    /// Computes sets again: streams hear of what is different, sets without streams are forgotten. True when an SVID
    /// became wanted.
    fn refresh(&mut self, touched: Touched, now: SystemTime) -> bool {
        let sets = if touched.all_sets {
            self.interest.all()
        } else {
            touched.sets.into_iter().collect()
        };
        let mut wanted = false;
        for set in sets {
            let Some(selectors) = self.interest.listened_to(set) else {
                self.interest.forget(set);
                continue;
            };
            let update = self.known.update_of(&selectors, now);
            let entries = update.entries.clone();
            if self.interest.needs_svids(set)
                && let Some(former) = self.interest.update(set)
            {
                log_new_default(&former, &update);
            }
            self.interest.publish(set, update);
            if self.interest.needs_svids(set) {
                for entry in entries {
                    wanted |= self.want_if_needed(&entry.id, now);
                }
            }
        }
        wanted
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            entries: self.known.entries.len(),
            x509_svids: self.known.svids.len(),
            jwt_svids: self.tokens.len(),
            bundles: self.known.bundles.received().count(),
        }
    }

    #[cfg(test)]
    pub(super) fn sets(&self) -> usize {
        self.interest.all().len()
    }

    pub(super) fn nearest(&self, selectors: &SelectorSet, now: SystemTime) -> Option<Nearest> {
        let (entry, lacking) = self.known.entries.nearest(selectors)?;
        Some(Nearest {
            expired: entries::has_expired(entry, now),
            entry: Arc::clone(entry),
            lacking,
        })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            entries: self.entries(),
            bundles: self.bundles(),
            svids: self.known.svids.iter().cloned().collect(),
        }
    }

    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.known.entries.iter().cloned().collect()
    }

    pub(super) fn bundles(&self) -> Vec<Arc<Bundle>> {
        self.known.bundles.received().cloned().collect()
    }
}

impl Known {
    fn update_of(&self, selectors: &SelectorSet, now: SystemTime) -> WorkloadUpdate {
        let mut matching = self.entries.matching(selectors);
        matching.retain(|entry| !entries::has_expired(entry, now));
        let entries = entries::without_repeated_hints(matching);
        let identity = |entry: &Arc<Entry>| {
            let svid = self.svids.valid(&entry.id, now)?;
            (svid.spiffe_id == entry.spiffe_id).then(|| Identity {
                entry: Arc::clone(entry),
                svid: Arc::clone(svid),
            })
        };
        let identities = entries.iter().filter_map(identity).collect();
        let own = self.bundles.get(&self.trust_domain).map(Arc::clone);
        let foreign: BTreeSet<&TrustDomain> = entries
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .filter(|other| **other != self.trust_domain)
            .collect();
        let federated = foreign
            .into_iter()
            .filter_map(|other| self.bundles.get(other).map(Arc::clone))
            .collect();
        WorkloadUpdate::new(entries, identities, own, federated)
    }
}

impl Touched {
    fn entry(&mut self, interest: &Interest, entry: &Entry) {
        self.any = true;
        self.sets.extend(interest.matched_by(entry));
    }
}

/// Programs that take the first SVID they get become somebody else when an entry with a lower ID matches them.
fn log_new_default(former: &WorkloadUpdate, update: &WorkloadUpdate) {
    if let (Some(before), Some(now)) = (former.entries.first(), update.entries.first())
        && before.spiffe_id != now.spiffe_id
    {
        tracing::info!(
            before = %before.spiffe_id,
            now = %now.spiffe_id,
            entry = %now.id,
            "the default identity of running workloads changed: the entry with the lowest ID comes first"
        );
    }
}

/// The entry with this ID unless it has expired.
fn live<'a>(entries: &'a EntryIndex, id: &str, now: SystemTime) -> Option<&'a Arc<Entry>> {
    entries
        .get(id)
        .filter(|entry| !entries::has_expired(entry, now))
}
