//! The X509-SVIDs of this node's workloads: which there are, when each is to be renewed, and which was used last.
//!
//! It knows nothing of selectors, timers or the server.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::id::SpiffeId;
use spiffe::rotation::half_life_spread;
use spiffe::secret::Secret;

/// The least life that has to be left over before `availability_target` is used in place of half life.
/// SPIRE: rotationutil, grace period of 12 hours.
const LEAST_GRACE: Duration = Duration::from_secs(12 * 60 * 60);
/// Renewals are spread over the ten minutes before the availability target is reached.
const TARGET_SPREAD: Duration = Duration::from_secs(600);

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

impl IssuedSvid {
    /// Whether one of these authorities signed a part of the chain.
    pub(crate) fn is_signed_by(&self, authorities: &BTreeSet<Vec<u8>>) -> bool {
        self.issuers
            .iter()
            .any(|issuer| authorities.contains(issuer))
    }
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
    /// The time at which an SVID is to be renewed. `spread` is in [0, 1) and keeps renewals apart. SPIRE: rotationutil.
    pub(crate) fn renew_at(
        &self,
        not_before: SystemTime,
        not_after: SystemTime,
        spread: f64,
    ) -> SystemTime {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        match self.availability_target {
            Some(target) if life.saturating_sub(target) > LEAST_GRACE => {
                not_after - (target + TARGET_SPREAD.mul_f64(spread))
            }
            _ => half_life_spread(not_before, not_after, spread),
        }
    }
}

#[derive(Debug)]
struct Cached {
    svid: Arc<IssuedSvid>,
    renew_at: SystemTime,
    used: u64,
    used_since_issue: bool,
    /// The entry or an authority changed since it was issued: a new caller needs a new one.
    stale: bool,
}

/// All cached SVIDs by entry ID.
#[derive(Debug, Default)]
pub(super) struct Svids {
    cached: HashMap<Arc<str>, Cached>,
    uses: u64,
    last_tail: Vec<Arc<[u8]>>,
}

impl Svids {
    pub(super) fn put(&mut self, mut svid: IssuedSvid, renew_at: SystemTime, stale: bool) {
        self.share_tail(&mut svid);
        self.uses += 1;
        let cached = Cached {
            renew_at,
            used: self.uses,
            used_since_issue: false,
            stale,
            svid: Arc::new(svid),
        };
        self.cached
            .insert(Arc::clone(&cached.svid.entry_id), cached);
    }

    pub(super) fn remove(&mut self, entry_id: &str) -> bool {
        self.cached.remove(entry_id).is_some()
    }

    /// When an entry's SVID expires.
    pub(super) fn not_after(&self, entry_id: &str) -> Option<SystemTime> {
        self.cached
            .get(entry_id)
            .map(|cached| cached.svid.not_after)
    }

    /// The SVID of an entry if it is valid now.
    pub(super) fn valid(&self, entry_id: &str, now: SystemTime) -> Option<&Arc<IssuedSvid>> {
        self.cached
            .get(entry_id)
            .map(|cached| &cached.svid)
            .filter(|svid| now < svid.not_after)
    }

    /// Counts a use of the entry's SVID.
    pub(super) fn count_use(&mut self, entry_id: &str) {
        self.uses += 1;
        if let Some(cached) = self.cached.get_mut(entry_id) {
            cached.used = self.uses;
            cached.used_since_issue = true;
        }
    }

    /// Whether somebody asked for the SVID since it was issued.
    pub(super) fn used_since_issue(&self, entry_id: &str) -> bool {
        self.cached
            .get(entry_id)
            .is_some_and(|cached| cached.used_since_issue)
    }

    /// Whether the entry's SVID is absent, or past its renewal time, or stale.
    pub(super) fn needs_issue(&self, entry_id: &str, now: SystemTime) -> bool {
        self.cached
            .get(entry_id)
            .is_none_or(|cached| cached.stale || now >= cached.renew_at)
    }

    /// Marks an SVID to be issued again when next needed.
    pub(super) fn mark_stale(&mut self, entry_id: &str) {
        if let Some(cached) = self.cached.get_mut(entry_id) {
            cached.stale = true;
        }
    }

    /// The entries whose chain was signed by one of these authorities.
    pub(super) fn signed_by(&self, authorities: &BTreeSet<Vec<u8>>) -> Vec<Arc<str>> {
        self.cached
            .values()
            .filter(|cached| cached.svid.is_signed_by(authorities))
            .map(|cached| Arc::clone(&cached.svid.entry_id))
            .collect()
    }

    /// Drops the least recently used ones over `limit` that nobody holds, and returns their entries.
    pub(super) fn evict(&mut self, limit: usize, held: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
        if self.cached.len() <= limit {
            return Vec::new();
        }
        let mut idle: Vec<(u64, Arc<str>)> = self
            .cached
            .iter()
            .filter(|(id, _)| !held(id))
            .map(|(id, cached)| (cached.used, Arc::clone(id)))
            .collect();
        idle.sort_unstable();
        idle.truncate(self.cached.len() - limit);
        let evicted: Vec<Arc<str>> = idle.into_iter().map(|(_, id)| id).collect();
        for id in &evicted {
            self.remove(id);
        }
        evicted
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &IssuedSvid> {
        self.cached.values().map(|cached| &*cached.svid)
    }

    pub(super) fn len(&self) -> usize {
        self.cached.len()
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
