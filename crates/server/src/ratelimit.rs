//! Token buckets per client address (IPv6: per /64) for the calls that cost the server a signature or a write.
//!
//! A call waits for its tokens; it is refused only when it asks for more than the bucket can ever hold, or when the queue
//! before it is longer than anybody would wait. Callers on the admin socket are never limited. The map of buckets is
//! bounded: idle ones leave after two generations, and past the cap strangers share one bucket.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use config::fault::Code;
use tokio::time::Instant;

use crate::caller::Connection;
use crate::config::RateLimitConfig;
use crate::error::{Kind, OpError, failed};
use crate::source::Source;

/// SPIRE: limits.AttestLimitPerIP and its siblings, per second; the burst is the same number.
const ATTEST_PER_SECOND: u32 = 1;
const SIGN_PER_SECOND: u32 = 500;
const PUBLISH_KEY_PER_SECOND: u32 = 500;
const POST_STATUS_PER_SECOND: u32 = 10;
/// How long a generation of buckets lives; a bucket unused for two of them is forgotten.
const GENERATION: Duration = Duration::from_secs(60);
/// Buckets per generation. One is about 100 bytes.
const MAX_BUCKETS: usize = 65_536;
/// Nobody waits longer: the client's own deadline has passed by then, and each waiter holds a stream open.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Every limiter of the server.
#[derive(Debug)]
pub(crate) struct RateLimits {
    pub(crate) attest: Limiter,
    /// Shared by BatchNewX509SVID, RenewAgent and NewDownstreamX509CA.
    pub(crate) x509_signing: Limiter,
    pub(crate) jwt_signing: Limiter,
    pub(crate) wit_signing: Limiter,
    pub(crate) publish_key: Limiter,
    pub(crate) post_status: Limiter,
}

impl RateLimits {
    pub(crate) fn new(config: RateLimitConfig) -> Self {
        let when = |on: bool, rate: u32| {
            if on {
                Limiter::per_second(rate)
            } else {
                Limiter::unlimited()
            }
        };
        Self {
            attest: when(config.attestation, ATTEST_PER_SECOND),
            x509_signing: when(config.signing, SIGN_PER_SECOND),
            jwt_signing: when(config.signing, SIGN_PER_SECOND),
            wit_signing: when(config.signing, SIGN_PER_SECOND),
            publish_key: Limiter::per_second(PUBLISH_KEY_PER_SECOND),
            post_status: Limiter::per_second(POST_STATUS_PER_SECOND),
        }
    }
}

/// Token buckets by source, all of one rate.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Option<u32>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    since: Instant,
    current: HashMap<Source, Bucket>,
    previous: HashMap<Source, Bucket>,
    overflow: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Below zero: already promised to calls that wait.
    tokens: f64,
    at: Instant,
}

impl Limiter {
    fn unlimited() -> Self {
        Self::new(None)
    }

    fn per_second(rate: u32) -> Self {
        Self::new(Some(rate))
    }

    fn new(rate: Option<u32>) -> Self {
        let now = Instant::now();
        let full = Bucket {
            tokens: f64::from(rate.unwrap_or(0)),
            at: now,
        };
        Self {
            rate,
            buckets: Mutex::new(Buckets {
                since: now,
                current: HashMap::new(),
                previous: HashMap::new(),
                overflow: full,
            }),
        }
    }

    /// Waits until `count` calls' worth of tokens are there for this peer.
    ///
    /// # Errors
    /// ResourceExhausted when `count` exceeds the burst or the queue is too long; `what` names the refused work.
    pub(crate) async fn take(
        &self,
        connection: &Connection,
        count: usize,
        what: &str,
    ) -> Result<(), OpError> {
        let (Some(rate), Some(address)) = (self.rate, connection.remote_ip()) else {
            return Ok(());
        };
        let Some(count) = u32::try_from(count).ok().filter(|count| *count <= rate) else {
            return Err(failed(
                Kind::ResourceExhausted,
                &format!("rejecting request due to {what} rate limiting"),
                format!(
                    "rate ({count}) exceeds burst size ({rate}); send at most {rate} in one call"
                ),
            )
            .with_code(Code::TooManyRequests));
        };
        let source = Source::of(address);
        let wait = self.reserve(source, rate, count);
        if wait > LONGEST_WAIT {
            self.give_back(source, count);
            return Err(failed(
                Kind::ResourceExhausted,
                &format!("rejecting request due to {what} rate limiting"),
                format!(
                    "{} s of work from {address} are queued already; back off and retry",
                    wait.as_secs()
                ),
            )
            .with_code(Code::TooManyRequests));
        }
        if wait > Duration::ZERO {
            let mut reservation = Reservation {
                limiter: self,
                source,
                count,
                kept: false,
            };
            tokio::time::sleep(wait).await;
            reservation.kept = true;
        }
        Ok(())
    }

    fn reserve(&self, source: Source, rate: u32, count: u32) -> Duration {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.turn(now);
        let bucket = buckets.bucket(source, rate, now);
        let refilled =
            bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * f64::from(rate);
        bucket.tokens = refilled.min(f64::from(rate)) - f64::from(count);
        bucket.at = now;
        if bucket.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-bucket.tokens / f64::from(rate))
        }
    }

    fn give_back(&self, source: Source, count: u32) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.current.get_mut(&source) {
            bucket.tokens += f64::from(count);
        }
    }
}

impl Buckets {
    fn turn(&mut self, now: Instant) {
        let age = now.duration_since(self.since);
        if age < GENERATION {
            return;
        }
        self.previous = std::mem::take(&mut self.current);
        if age >= GENERATION * 2 {
            self.previous.clear();
        }
        self.since = now;
    }

    fn bucket(&mut self, source: Source, rate: u32, now: Instant) -> &mut Bucket {
        if !self.current.contains_key(&source) && self.current.len() >= MAX_BUCKETS {
            return &mut self.overflow;
        }
        let previous = &mut self.previous;
        self.current.entry(source).or_insert_with(|| {
            previous.remove(&source).unwrap_or(Bucket {
                tokens: f64::from(rate),
                at: now,
            })
        })
    }
}

/// Hands the tokens back when the caller went away before its turn came.
struct Reservation<'a> {
    limiter: &'a Limiter,
    source: Source,
    count: u32,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.limiter.give_back(self.source, self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> Connection {
        Connection::remote_for_tests("192.0.2.7:4711".parse().unwrap(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_more_than_the_burst_at_once() {
        let refused = Limiter::per_second(500)
            .take(&remote(), 501, "certificate signing")
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), Kind::ResourceExhausted);
        assert!(
            refused
                .message()
                .contains("rate (501) exceeds burst size (500)"),
            "{refused}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn makes_the_second_attestation_in_a_second_wait() {
        let (limiter, start) = (Limiter::per_second(1), Instant::now());
        limiter.take(&remote(), 1, "attest agent").await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        limiter.take(&remote(), 1, "attest agent").await.unwrap();
        assert!(
            start.elapsed() >= Duration::from_millis(999),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_to_queue_beyond_the_longest_wait() {
        let limiter = Limiter::per_second(1);
        for _ in 0..=LONGEST_WAIT.as_secs() {
            limiter.reserve(Source::of("192.0.2.7".parse().unwrap()), 1, 1);
        }
        let refused = limiter
            .take(&remote(), 1, "attest agent")
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), Kind::ResourceExhausted);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_tokens_back_when_the_caller_leaves() {
        let (limiter, peer, start) = (Limiter::per_second(1), remote(), Instant::now());
        limiter.take(&peer, 1, "x").await.unwrap();
        let gone = tokio::time::timeout(Duration::from_millis(1), limiter.take(&peer, 1, "x"));
        gone.await.unwrap_err();
        limiter.take(&peer, 1, "x").await.unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(1100),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn never_limits_the_admin_socket() {
        let (limiter, local) = (Limiter::per_second(1), Connection::local_for_tests());
        for _ in 0..100 {
            limiter.take(&local, 10_000, "x").await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn gives_a_network_of_ipv6_one_bucket() {
        let (limiter, start) = (Limiter::per_second(1), Instant::now());
        for host in 1..=5 {
            let address = format!("[2001:db8::{host}]:1").parse().unwrap();
            let peer = Connection::remote_for_tests(address, None);
            limiter.take(&peer, 1, "attest agent").await.unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(3_999));
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_addresses_apart_and_forgets_idle_ones() {
        let limiter = Limiter::per_second(1);
        let other = Connection::remote_for_tests("192.0.2.8:1".parse().unwrap(), None);
        limiter.take(&remote(), 1, "x").await.unwrap();
        limiter.take(&other, 1, "x").await.unwrap();
        tokio::time::advance(GENERATION * 3).await;
        limiter.take(&other, 1, "x").await.unwrap();
        assert_eq!(limiter.buckets.lock().unwrap().current.len(), 1);
        assert!(limiter.buckets.lock().unwrap().previous.is_empty());
    }
}
