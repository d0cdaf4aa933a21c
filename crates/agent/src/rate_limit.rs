//! Calls per second for each set of selectors and method. SPIRE: experimental.ratelimit.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use spiffe::selector::SelectorSet;
use tokio::time::Instant;

use crate::config::RateLimits;

/// The methods that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    FetchX509Svid,
    FetchJwtSvid,
    FetchX509Bundles,
    FetchJwtBundles,
}

impl Method {
    /// As the Workload API names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FetchX509Svid => "FetchX509SVID",
            Self::FetchJwtSvid => "FetchJWTSVID",
            Self::FetchX509Bundles => "FetchX509Bundles",
            Self::FetchJwtBundles => "FetchJWTBundles",
        }
    }
}

/// Buckets that were not used for this long are full again and need not be kept.
const FULL_AGAIN: Duration = Duration::from_secs(1);
/// Over so many buckets, full ones are thrown out.
const MANY: usize = 4096;

/// One token bucket for each method and set, with a burst of one second.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    limits: RateLimits,
    buckets: Mutex<HashMap<(Method, SelectorSet), Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self {
            limits,
            buckets: Mutex::default(),
        }
    }

    /// Takes one call out of the bucket; false when it is empty.
    pub(crate) fn allows(&self, method: Method, selectors: &SelectorSet) -> bool {
        let limit = match method {
            Method::FetchX509Svid => self.limits.fetch_x509_svid,
            Method::FetchJwtSvid => self.limits.fetch_jwt_svid,
            Method::FetchX509Bundles => self.limits.fetch_x509_bundles,
            Method::FetchJwtBundles => self.limits.fetch_jwt_bundles,
        };
        if limit == 0 {
            return true;
        }
        let (limit, now) = (f64::from(limit), Instant::now());
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MANY {
            buckets.retain(|_, bucket| now.duration_since(bucket.at) < FULL_AGAIN);
        }
        let bucket = buckets
            .entry((method, selectors.clone()))
            .or_insert(Bucket {
                tokens: limit,
                at: now,
            });
        bucket.tokens =
            (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * limit).min(limit);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::selectors;

    #[tokio::test(start_paused = true)]
    async fn refuses_what_is_over_the_limit_until_time_passes() {
        let limiter = RateLimiter::new(RateLimits {
            fetch_jwt_svid: 2,
            ..RateLimits::default()
        });
        let (one, other) = (selectors(&["unix:uid:1"]), selectors(&["unix:uid:2"]));
        assert!(limiter.allows(Method::FetchJwtSvid, &one));
        assert!(limiter.allows(Method::FetchJwtSvid, &one));
        assert!(!limiter.allows(Method::FetchJwtSvid, &one));
        assert!(limiter.allows(Method::FetchJwtSvid, &other));
        assert!(limiter.allows(Method::FetchX509Svid, &one));
        tokio::time::advance(Duration::from_millis(600)).await;
        assert!(limiter.allows(Method::FetchJwtSvid, &one));
        assert!(!limiter.allows(Method::FetchJwtSvid, &one));
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_do_not_fill_the_memory() {
        let limiter = RateLimiter::new(RateLimits {
            fetch_x509_svid: 5,
            ..RateLimits::default()
        });
        for number in 0..3 * MANY {
            assert!(limiter.allows(
                Method::FetchX509Svid,
                &selectors(&[&format!("unix:uid:{number}")])
            ));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(limiter.buckets.lock().unwrap().len() <= MANY);
    }
}
