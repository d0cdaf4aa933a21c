//! The X509-SVIDs of this node's workloads: issued, due for renewal, expired, least used.
//!
//! One ordered queue holds when each SVID is to be looked at next. It knows nothing of entries, selectors or the server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::id::SpiffeId;
use spiffe::secret::Secret;

/// The least life that has to be left over before `availability_target` is used in place of half life.
/// SPIRE: rotationutil, grace period of 12 hours.
const LEAST_GRACE: Duration = Duration::from_secs(12 * 60 * 60);

/// An issued X509-SVID with its private key.
#[derive(Clone)]
pub(crate) struct IssuedSvid {
    pub(crate) entry_id: Arc<str>,
    /// The revision of the entry that it was issued for.
    pub(crate) revision: i64,
    pub(crate) spiffe_id: SpiffeId,
    /// Leaf first, then the intermediates, each in DER.
    pub(crate) chain: Vec<Arc<[u8]>>,
    /// PKCS#8.
    pub(crate) key: Arc<Secret<Vec<u8>>>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// The key identifiers of the authorities that signed the chain.
    pub(crate) issuers: Vec<Vec<u8>>,
}

impl fmt::Debug for IssuedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedSvid")
            .field("entry_id", &self.entry_id)
            .field("spiffe_id", &self.spiffe_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// When to renew: half life, or so that a wished amount of life is always left.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RotationRule {
    pub(crate) availability_target: Option<Duration>,
}

impl RotationRule {
    /// The time at which an SVID is to be renewed. `jitter` is in [0, 1) and spreads renewals over ± 10 % of half life,
    /// or over the ten minutes before the availability target is reached. SPIRE: rotationutil.
    pub(crate) fn renew_at(
        &self,
        not_before: SystemTime,
        not_after: SystemTime,
        jitter: f64,
    ) -> SystemTime {
        let life = not_after
            .duration_since(not_before)
            .unwrap_or(Duration::ZERO);
        let left = match self.availability_target {
            Some(target) if life.saturating_sub(target) > LEAST_GRACE => {
                target + Duration::from_secs(600).mul_f64(jitter)
            }
            _ => (life / 2).mul_f64(0.9 + 0.2 * jitter),
        };
        not_after.checked_sub(left.min(life)).unwrap_or(not_before)
    }
}

#[derive(Debug)]
struct Kept {
    svid: IssuedSvid,
    renew_at: SystemTime,
    used: u64,
    used_since_issue: bool,
    /// The entry or an authority changed: renew as soon as it is wanted.
    stale: bool,
}

/// All kept SVIDs by entry ID.
#[derive(Debug, Default)]
pub(crate) struct Svids {
    kept: BTreeMap<Arc<str>, Kept>,
    /// When to look at which entry next: to renew, to drop what expired, or to try again.
    queue: BTreeSet<(SystemTime, Arc<str>)>,
    queued: BTreeMap<Arc<str>, SystemTime>,
    tick: u64,
    last_tail: Vec<Arc<[u8]>>,
}

/// What the queue says about an entry whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing is kept: an earlier attempt failed and may be repeated.
    Retry(Arc<str>),
    /// Its renewal time has come; true if somebody asked for it since it was issued.
    Renew(Arc<str>, bool),
    /// It expired and was dropped.
    Expired(Arc<str>),
}

impl Svids {
    /// Keeps an SVID until it is renewed or expires.
    pub(crate) fn put(&mut self, mut svid: IssuedSvid, renew_at: SystemTime) {
        self.share_tail(&mut svid);
        let id = Arc::clone(&svid.entry_id);
        self.look_again(&id, renew_at);
        self.tick += 1;
        self.kept.insert(
            id,
            Kept {
                svid,
                renew_at,
                used: self.tick,
                used_since_issue: false,
                stale: false,
            },
        );
    }

    /// Forgets an entry's SVID and its place in the queue.
    pub(crate) fn remove(&mut self, entry_id: &str) -> Option<IssuedSvid> {
        self.unqueue(entry_id);
        self.kept.remove(entry_id).map(|kept| kept.svid)
    }

    /// The SVID of an entry if it is valid now.
    pub(crate) fn valid(&self, entry_id: &str, now: SystemTime) -> Option<&IssuedSvid> {
        self.kept
            .get(entry_id)
            .map(|kept| &kept.svid)
            .filter(|svid| now < svid.not_after)
    }

    /// Counts a use of the entry's SVID.
    pub(crate) fn used(&mut self, entry_id: &str) {
        self.tick += 1;
        if let Some(kept) = self.kept.get_mut(entry_id) {
            kept.used = self.tick;
            kept.used_since_issue = true;
        }
    }

    /// Whether the entry's SVID is absent, or past its renewal time, or stale; false while a new attempt is planned.
    pub(crate) fn needs_issue(&self, entry_id: &str, now: SystemTime) -> bool {
        match self.kept.get(entry_id) {
            Some(kept) => kept.stale || now >= kept.renew_at,
            None => !self.queued.contains_key(entry_id),
        }
    }

    /// Plans the next attempt after one that failed.
    pub(crate) fn postpone(&mut self, entry_id: &Arc<str>, until: SystemTime) {
        if let Some(kept) = self.kept.get_mut(entry_id) {
            kept.renew_at = until;
            kept.stale = false;
        }
        self.look_again(entry_id, until);
    }

    /// Marks an SVID to be renewed when next wanted; false when there is none.
    pub(crate) fn mark_stale(&mut self, entry_id: &str) -> bool {
        self.kept
            .get_mut(entry_id)
            .map(|kept| kept.stale = true)
            .is_some()
    }

    /// Makes the queue come back to an entry at `when`, and not before.
    fn look_again(&mut self, entry_id: &Arc<str>, when: SystemTime) {
        self.unqueue(entry_id);
        self.queue.insert((when, Arc::clone(entry_id)));
        self.queued.insert(Arc::clone(entry_id), when);
    }

    /// When the queue has to be looked at next.
    pub(crate) fn next_due(&self) -> Option<SystemTime> {
        self.queue.first().map(|(when, _)| *when)
    }

    /// Takes what is due now out of the queue. What is to be renewed is queued again for its expiry, so that it is
    /// dropped then if nothing better came.
    pub(crate) fn take_due(&mut self, now: SystemTime) -> Vec<Due> {
        let mut due = Vec::new();
        while self.queue.first().is_some_and(|(when, _)| *when <= now) {
            let Some((_, id)) = self.queue.pop_first() else {
                break;
            };
            self.queued.remove(&id);
            match self.kept.get(&id) {
                None => due.push(Due::Retry(id)),
                Some(kept) if now >= kept.svid.not_after => {
                    self.kept.remove(&id);
                    due.push(Due::Expired(id));
                }
                Some(kept) => {
                    let (expiry, used) = (kept.svid.not_after, kept.used_since_issue);
                    self.look_again(&id, expiry);
                    due.push(Due::Renew(id, used));
                }
            }
        }
        due
    }

    /// The entries whose chain was signed by one of these authorities.
    pub(crate) fn signed_by(&self, authorities: &BTreeSet<Vec<u8>>) -> Vec<Arc<str>> {
        self.kept
            .values()
            .filter(|kept| {
                kept.svid
                    .issuers
                    .iter()
                    .any(|issuer| authorities.contains(issuer))
            })
            .map(|kept| Arc::clone(&kept.svid.entry_id))
            .collect()
    }

    /// Drops the least recently used ones over `limit` that nobody holds, and returns them.
    pub(crate) fn evict(&mut self, limit: usize, in_use: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        if self.kept.len() <= limit {
            return Vec::new();
        }
        let mut idle: Vec<(u64, Arc<str>)> = self
            .kept
            .iter()
            .filter(|(id, _)| !in_use(id))
            .map(|(id, kept)| (kept.used, Arc::clone(id)))
            .collect();
        idle.sort_unstable();
        idle.truncate(self.kept.len() - limit);
        idle.into_iter()
            .map(|(_, id)| {
                self.remove(&id);
                id
            })
            .collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &IssuedSvid> {
        self.kept.values().map(|kept| &kept.svid)
    }

    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    fn unqueue(&mut self, entry_id: &str) {
        if let Some((id, when)) = self.queued.remove_entry(entry_id) {
            self.queue.remove(&(when, id));
        }
    }

    /// Intermediates are the same for all SVIDs of an authority: keep them once.
    fn share_tail(&mut self, svid: &mut IssuedSvid) {
        let Some(tail) = svid.chain.get_mut(1..) else {
            return;
        };
        if *tail == *self.last_tail {
            tail.clone_from_slice(&self.last_tail);
        } else {
            self.last_tail = tail.to_vec();
        }
    }
}

#[cfg(test)]
mod tests;
