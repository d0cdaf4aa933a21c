//! Token buckets for the calls that cost the server a signature or a write: one for each address (IPv6: per /64) of peers that
//! are nobody here, one for each identity of agents, downstream servers and administrators.
//!
//! SPIRE: per address for everybody; here no agent can use up what others behind the same load balancer need.
//!
//! A call waits for its tokens; it is refused only when it asks for more than the bucket can ever hold, or when the queue
//! before it is longer than anybody would wait. Callers on the admin socket are never limited. The map of buckets is
//! bounded: idle ones leave after two generations, and past the cap newcomers share one bucket.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use config::fault::Code;
use daemon::telemetry::Telemetry;
use tokio::time::Instant;

use crate::caller::Connection;
use crate::config::RateLimitConfig;
use crate::error::{Kind, OpError, failed};
use crate::metrics::RATE_LIMIT;
use crate::principal::Account;

/// SPIRE: limits.AttestLimitPerIP and its siblings, per second; the burst is the same number.
const ATTEST_PER_SECOND: u32 = 1;
const SIGN_PER_SECOND: u32 = 500;
const PUBLISH_KEY_PER_SECOND: u32 = 500;
const POST_STATUS_PER_SECOND: u32 = 10;
/// SPIRE has no such limit. All nodes behind one address may ask for the bundle before they have an SVID.
const BUNDLE_PER_SECOND: u32 = 500;
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
    /// GetBundle, which is open to everybody.
    pub(crate) bundle: Limiter,
}

impl RateLimits {
    pub(crate) fn new(config: RateLimitConfig, telemetry: &Telemetry) -> Self {
        let limiter = |name, on: bool, rate: u32| Limiter {
            name,
            telemetry: telemetry.clone(),
            ..Limiter::new(on.then_some(rate))
        };
        let signing = |name| limiter(name, config.signing, SIGN_PER_SECOND);
        Self {
            attest: limiter("attestation", config.attestation, ATTEST_PER_SECOND),
            x509_signing: signing("x509_signing"),
            jwt_signing: signing("jwt_signing"),
            wit_signing: signing("wit_signing"),
            publish_key: limiter("key_publishing", true, PUBLISH_KEY_PER_SECOND),
            post_status: limiter("status", true, POST_STATUS_PER_SECOND),
            bundle: limiter("bundle", true, BUNDLE_PER_SECOND),
        }
    }
}

/// Token buckets by account, all of one rate.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// For the telemetry.
    name: &'static str,
    rate: Option<u32>,
    buckets: Mutex<Buckets>,
    telemetry: Telemetry,
}

#[derive(Debug)]
struct Buckets {
    since: Instant,
    current: HashMap<Account, Bucket>,
    previous: HashMap<Account, Bucket>,
    overflow: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Below zero: already promised to calls that wait.
    tokens: f64,
    at: Instant,
}

impl Limiter {
    #[cfg(test)]
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
            name: "unnamed",
            telemetry: Telemetry::default(),
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
    /// When `count` exceeds the burst or the queue is too long; `what` names the refused work.
    pub(crate) async fn take(
        &self,
        connection: &Connection,
        count: usize,
        what: &str,
    ) -> Result<(), OpError> {
        let Some(rate) = self.rate.filter(|_| !connection.is_local()) else {
            return Ok(());
        };
        let Some(account) = connection.account() else {
            return Ok(());
        };
        let timer = self.telemetry.start(&RATE_LIMIT, [self.name]);
        let taken = self.take_of(account, rate, count, what).await;
        timer.end_with(&taken);
        taken
    }

    async fn take_of(
        &self,
        account: Account,
        rate: u32,
        count: usize,
        what: &str,
    ) -> Result<(), OpError> {
        let Some(tokens) = u32::try_from(count).ok().filter(|count| *count <= rate) else {
            return Err(limited(
                what,
                &format!(
                    "rate ({count}) exceeds burst size ({rate}); send at most {rate} in one call"
                ),
            ));
        };
        let mut reservation = self.reserve(account, rate, tokens);
        let wait = reservation.wait;
        if wait > LONGEST_WAIT {
            // Dropping the reservation gives the tokens back.
            return Err(limited(
                what,
                &format!(
                    "{} s of work of this peer are queued already; back off and retry",
                    wait.as_secs()
                ),
            ));
        }
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
        reservation.kept = true;
        Ok(())
    }

    /// Takes the token of one call, for calls that are cheap to repeat and are not worth a queue.
    ///
    /// # Errors
    /// When no token is there now; `what` names the refused work.
    pub(crate) fn take_or_refuse(
        &self,
        connection: &Connection,
        what: &str,
    ) -> Result<(), OpError> {
        if self.take_now(connection) {
            return Ok(());
        }
        Err(limited(what, "too many at once; back off and retry"))
    }

    /// Takes the tokens of one call if they are there now.
    pub(crate) fn take_now(&self, connection: &Connection) -> bool {
        let Some(rate) = self.rate.filter(|_| !connection.is_local()) else {
            return true;
        };
        let Some(account) = connection.account() else {
            return true;
        };
        let mut reservation = self.reserve(account, rate, 1);
        // Dropping the reservation otherwise gives the token back.
        reservation.kept = reservation.wait.is_zero();
        let refused = Kind::ResourceExhausted.name();
        self.telemetry
            .start(&RATE_LIMIT, [self.name])
            .end(if reservation.kept { "OK" } else { refused });
        reservation.kept
    }

    fn reserve(&self, account: Account, rate: u32, count: u32) -> Reservation<'_> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.turn(now);
        let (bucket, account) = buckets.bucket(account, rate, now);
        let refilled =
            bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * f64::from(rate);
        bucket.tokens = refilled.min(f64::from(rate)) - f64::from(count);
        bucket.at = now;
        let wait = if bucket.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-bucket.tokens / f64::from(rate))
        };
        Reservation {
            limiter: self,
            account,
            count,
            wait,
            kept: false,
        }
    }

    /// Puts tokens back into the bucket that they were taken from. One that has been forgotten meanwhile is full again.
    fn give_back(&self, account: Option<&Account>, count: u32) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets {
            current,
            previous,
            overflow,
            ..
        } = &mut *buckets;
        let bucket = match account {
            Some(account) => current
                .get_mut(account)
                .or_else(|| previous.get_mut(account)),
            None => Some(overflow),
        };
        if let Some(bucket) = bucket {
            bucket.tokens += f64::from(count);
        }
    }
}

fn limited(what: &str, because: &str) -> OpError {
    failed(
        Kind::ResourceExhausted,
        &format!("rejecting request due to {what} rate limiting"),
        because,
    )
    .with_code(Code::TooManyRequests)
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

    /// The account's bucket and its key; without a key the one that newcomers share when there are too many. An account that had a
    /// bucket in the previous generation keeps it, so that a flood of newcomers does not displace it.
    fn bucket(
        &mut self,
        account: Account,
        rate: u32,
        now: Instant,
    ) -> (&mut Bucket, Option<Account>) {
        let Self {
            current,
            previous,
            overflow,
            ..
        } = self;
        let full = current.len() >= MAX_BUCKETS;
        let known = || current.contains_key(&account) || previous.contains_key(&account);
        if full && !known() {
            return (overflow, None);
        }
        let bucket = current.entry(account.clone()).or_insert_with(|| {
            previous.remove(&account).unwrap_or(Bucket {
                tokens: f64::from(rate),
                at: now,
            })
        });
        (bucket, Some(account))
    }
}

/// Tokens that were taken. They go back when the call is refused, or goes away before its turn.
struct Reservation<'a> {
    limiter: &'a Limiter,
    /// None: taken from the shared bucket.
    account: Option<Account>,
    count: u32,
    wait: Duration,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.limiter.give_back(self.account.as_ref(), self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{Class, PeerSvid};
    use crate::source::Source;

    fn account(address: &str) -> Account {
        Account::Source(Source::of(address.parse().unwrap()))
    }

    /// A connection from one address of a peer with this ID.
    fn agent(path: &str) -> Connection {
        let id = format!("spiffe://example.org{path}");
        let id = spiffe::id::SpiffeId::parse(&id).unwrap();
        let svid = PeerSvid::for_tests(id, "1", std::time::SystemTime::UNIX_EPOCH);
        Connection::remote_for_tests("192.0.2.7:4711".parse().unwrap(), Some(svid))
    }

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
    async fn refuses_at_once_what_is_not_worth_a_queue_and_charges_nothing_for_it() {
        let (limiter, start) = (Limiter::per_second(5), Instant::now());
        let other = Connection::remote_for_tests("198.51.100.2:1".parse().unwrap(), None);
        let local = Connection::local_for_tests();
        for _ in 0..5 {
            limiter.take_or_refuse(&remote(), "bundle request").unwrap();
        }
        for _ in 0..100 {
            let refused = limiter
                .take_or_refuse(&remote(), "bundle request")
                .unwrap_err();
            assert_eq!(refused.kind(), Kind::ResourceExhausted);
            assert_eq!(refused.fault_code(), Some(Code::TooManyRequests));
            limiter.take_or_refuse(&local, "bundle request").unwrap();
        }
        limiter.take_or_refuse(&other, "bundle request").unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(1)).await;
        limiter.take_or_refuse(&remote(), "bundle request").unwrap();
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
            limiter.reserve(account("192.0.2.7"), 1, 1).kept = true;
        }
        for _ in 0..3 {
            let refused = limiter
                .take(&remote(), 1, "attest agent")
                .await
                .unwrap_err();
            assert_eq!(refused.kind(), Kind::ResourceExhausted);
            assert!(refused.message().contains("61 s of work"), "{refused}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn gives_a_refused_newcomer_s_tokens_back_to_the_shared_bucket() {
        let limiter = Limiter::per_second(1);
        fill(&limiter);
        for _ in 0..=LONGEST_WAIT.as_secs() {
            limiter.reserve(account("198.51.100.1"), 1, 1).kept = true;
        }
        let owed = limiter.buckets.lock().unwrap().overflow.tokens;
        for _ in 0..100 {
            let other = Connection::remote_for_tests("198.51.100.2:1".parse().unwrap(), None);
            limiter.take(&other, 1, "x").await.unwrap_err();
        }
        let after = limiter.buckets.lock().unwrap().overflow.tokens;
        assert!((owed - after).abs() < 0.01, "{owed} {after}");
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_the_bucket_of_whom_it_knew_before_a_flood_of_newcomers() {
        let limiter = Limiter::per_second(1);
        limiter.take(&remote(), 1, "x").await.unwrap();
        tokio::time::advance(GENERATION).await;
        fill(&limiter);
        limiter.take(&remote(), 1, "x").await.unwrap();
        let buckets = limiter.buckets.lock().unwrap();
        assert!(buckets.current.contains_key(&account("192.0.2.7")));
    }

    /// Takes all the buckets there may be.
    fn fill(limiter: &Limiter) {
        for host in 0..u32::try_from(MAX_BUCKETS).unwrap() {
            let address = std::net::IpAddr::from((0x0a00_0000 | host).to_be_bytes());
            let account = Account::Source(Source::of(address));
            limiter.reserve(account, 1, 1).kept = true;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn limits_agents_behind_one_address_apart_and_their_workloads_together() {
        let (limiter, start) = (Limiter::per_second(1), Instant::now());
        for path in ["/spire/agent/a", "/spire/agent/b", "/spire/agent/c"] {
            limiter.take(&agent(path), 1, "x").await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for path in ["/web", "/db"] {
            let svid = agent(path).svid().unwrap().clone();
            let peer = crate::principal::Principal::Workload(svid);
            assert_eq!(peer.class(), Class::Workload);
            let peer = Connection::for_tests(peer, "192.0.2.7:1".parse().ok());
            limiter.take(&peer, 1, "x").await.unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(999));
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
