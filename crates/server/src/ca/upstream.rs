//! The subscription to an upstream authority: what it trusts comes into the bundle, and leaves it, with its word.
//!
//! - It goes away: everything stays as it is; the subscription is tried again with a growing pause, and the log says so once.
//! - It comes back, or repeats itself: only what differs from its last word is written.
//! - It names nothing: nobody trusts nothing, so that is taken for a fault and everything stays.
//! - It names another root, be it of the same name with another key: that one is added, and the former leaves once
//!   nothing of any server leads to it. If this server's CA does, it is replaced at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use plugin::upstream_authority::{MintedCa, Updates, UpstreamAuthority};
use plugin::{Error, ErrorKind};
use spiffe::bundle::{AuthoritySource, JwtAuthority, X509Authority};
use spiffe::clock::unix_seconds;
use spiffe::x509::Certificate;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::authority::{AuthorityContext, moment};
use crate::datastore::UpstreamRoots;

/// The first pause before a lost subscription is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often it is looked whether a root that leaves is still in use, and whether what could not be stored now can be.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long an upstream authority may take to accept a subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(60);

/// The upstream authority, and the newest subscriptions to it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) plugin: Arc<dyn UpstreamAuthority>,
    roots: Subscription<X509Authority>,
    keys: Subscription<JwtAuthority>,
    pub(super) cut: LifetimeCut,
}

/// A subscription that a newer one may replace.
struct Subscription<T> {
    newer: Mutex<Option<Updates<T>>>,
    arrived: Notify,
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

impl<T: Send> Subscription<T> {
    fn new() -> Self {
        Self {
            newer: Mutex::new(None),
            arrived: Notify::new(),
        }
    }

    fn replace(&self, updates: Updates<T>) {
        *self.newer.lock().unwrap_or_else(PoisonError::into_inner) = Some(updates);
        self.arrived.notify_one();
    }

    fn take_newer(&self, current: &mut Option<Updates<T>>) {
        let mut newer = self.newer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = newer.take() {
            *current = Some(newer);
        }
    }

    /// What comes next, of the newest subscription; waits for one if there is none.
    async fn next(&self, current: &mut Option<Updates<T>>) -> Option<Result<Vec<T>, Error>> {
        loop {
            self.take_newer(current);
            let next = async {
                match current.as_mut() {
                    Some(updates) => updates.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.arrived.notified() => {}
                item = next => return item,
            }
        }
    }
}

impl Upstream {
    pub(super) fn new(plugin: Arc<dyn UpstreamAuthority>) -> Self {
        Self {
            plugin,
            roots: Subscription::new(),
            keys: Subscription::new(),
            cut: LifetimeCut::default(),
        }
    }

    pub(super) fn source(&self) -> AuthoritySource {
        AuthoritySource::Upstream(self.plugin.name().to_owned())
    }

    /// A CA was minted and is published: from now on its roots are followed.
    pub(super) fn follow_roots(&self, now: Vec<X509Authority>, updates: Updates<X509Authority>) {
        let first = futures_util::stream::iter([Ok(now)]);
        self.roots.replace(first.chain(updates).boxed());
    }

    /// A key was published.
    pub(super) fn follow_keys(&self, updates: Updates<JwtAuthority>) {
        self.keys.replace(updates);
    }

    /// Keeps the JWT keys of the upstream authority in the bundle. Never returns.
    pub(super) async fn run_keys(&self, context: &AuthorityContext) {
        let mut follower = KeysFollower::default();
        loop {
            follower.step(self, context).await;
        }
    }

    fn names_nothing(&self, what: &str) {
        tracing::warn!(
            plugin = self.plugin.name(),
            "the upstream authority names no {what} at all; those of the bundle stay"
        );
    }
}

/// When it is time to look again at what has to wait. Kept from step to step: an upstream authority that never falls silent
/// does not put it off.
#[derive(Default)]
struct NextLook(Option<Instant>);

impl NextLook {
    /// Returns when something has waited for long enough.
    async fn due(&mut self, something_waits: bool) {
        if !something_waits {
            self.0 = None;
            return std::future::pending().await;
        }
        let at = *self.0.get_or_insert_with(|| Instant::now() + LOOK_EVERY);
        tokio::time::sleep_until(at).await;
        self.0 = None;
    }
}

/// Where a server stands in following the JWT keys.
#[derive(Default)]
pub(super) struct KeysFollower {
    current: Option<Updates<JwtAuthority>>,
    /// The last word, if it could not be stored yet.
    unsaved: Option<Vec<JwtAuthority>>,
    next_look: NextLook,
}

impl KeysFollower {
    /// Waits for one thing to happen, and does what follows from it.
    pub(super) async fn step(&mut self, upstream: &Upstream, context: &AuthorityContext) {
        tokio::select! {
            biased;
            () = self.next_look.due(self.unsaved.is_some()) => {
                if let Some(named) = self.unsaved.take() {
                    self.sync(upstream, context, named).await;
                }
            }
            item = upstream.keys.next(&mut self.current) => match item {
                Some(Ok(named)) if named.is_empty() => upstream.names_nothing("JWT key"),
                Some(Ok(named)) => self.sync(upstream, context, named).await,
                // The next key that is published begins another subscription.
                Some(Err(error)) if error.kind() != ErrorKind::NotOffered => {
                    tracing::warn!(%error, plugin = upstream.plugin.name(), "the upstream authority tells of no more JWT keys for now");
                    self.current = None;
                }
                Some(Err(_)) | None => self.current = None,
            },
        }
    }

    async fn sync(
        &mut self,
        upstream: &Upstream,
        context: &AuthorityContext,
        named: Vec<JwtAuthority>,
    ) {
        // An earlier word counts no more, stored or not.
        self.unsaved = None;
        let synced = context.bundles.sync_upstream_keys(
            &context.trust_domain,
            upstream.source(),
            named.clone(),
        );
        if let Err(error) = synced.await {
            tracing::error!(%error, "the JWT keys of the upstream authority could not be stored");
            self.unsaved = Some(named);
        }
    }
}

/// Where a server stands in following the roots.
#[derive(Default)]
pub(super) struct RootsFollower {
    current: Option<Updates<X509Authority>>,
    /// The upstream authority's last word.
    named: Option<Vec<X509Authority>>,
    /// Roots of the bundle that are to leave or are tainted: nothing should be signed below them.
    pub(super) unreliable: Vec<Certificate>,
    /// A later word that could not be stored yet.
    unsaved: Option<Vec<X509Authority>>,
    /// Some are still there because something leads to them.
    some_leave: bool,
    pause: Option<Duration>,
    is_away: bool,
    /// The plugin cannot tell of roots without a CA being minted.
    waits_for_mint: bool,
    next_look: NextLook,
}

impl RootsFollower {
    /// Waits for one thing to happen, and does what follows from it.
    pub(super) async fn step(&mut self, upstream: &Upstream, context: &AuthorityContext) {
        upstream.roots.take_newer(&mut self.current);
        let subscribes = self.current.is_none() && !self.waits_for_mint;
        let pause = self.pause.unwrap_or(Duration::ZERO);
        let subscription_due = async {
            match subscribes {
                true => tokio::time::sleep(pause).await,
                false => std::future::pending().await,
            }
        };
        let waits = self.some_leave || self.unsaved.is_some() || !self.unreliable.is_empty();
        tokio::select! {
            biased;
            () = self.next_look.due(waits) => {
                let again = self.named.clone().filter(|_| self.some_leave);
                if let Some(named) = self.unsaved.take().or(again) {
                    self.sync(upstream, context, named).await;
                }
            }
            item = upstream.roots.next(&mut self.current) => match item {
                Some(Ok(roots)) => self.take(upstream, context, roots).await,
                Some(Err(error)) => self.lost(upstream, &error),
                None => {
                    self.current = None;
                    self.pause.get_or_insert(FIRST_PAUSE);
                }
            },
            () = subscription_due => self.subscribe(upstream).await,
        }
    }

    async fn subscribe(&mut self, upstream: &Upstream) {
        let subscribing = upstream.plugin.subscribe_roots();
        let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribing).await;
        let too_long = |_elapsed| {
            let message = "it took too long to subscribe to the roots";
            let plugin = upstream.plugin.name().to_owned();
            Err(Error::new(plugin, ErrorKind::Transient, message))
        };
        match subscribed.unwrap_or_else(too_long) {
            Ok(updates) => self.current = Some(updates),
            Err(error) => self.lost(upstream, &error),
        }
    }

    fn lost(&mut self, upstream: &Upstream, error: &Error) {
        self.current = None;
        if error.kind() == ErrorKind::NotOffered {
            self.waits_for_mint = true;
            return;
        }
        if !self.is_away {
            tracing::warn!(%error, plugin = upstream.plugin.name(), "the upstream authority is away; its roots stay as they are");
        }
        self.is_away = true;
        let pause = self.pause.map_or(FIRST_PAUSE, |pause| pause * 2);
        self.pause = Some(pause.min(LONGEST_PAUSE));
    }

    async fn take(
        &mut self,
        upstream: &Upstream,
        context: &AuthorityContext,
        roots: Vec<X509Authority>,
    ) {
        if std::mem::take(&mut self.is_away) {
            tracing::info!(
                plugin = upstream.plugin.name(),
                "the upstream authority is back"
            );
        }
        self.pause = None;
        self.waits_for_mint = false;
        if roots.is_empty() {
            return upstream.names_nothing("root");
        }
        // This word is newer than one that could not be stored, which must not be stored after it.
        let was_behind = self.unsaved.take().is_some();
        if was_behind || self.named.as_ref() != Some(&roots) {
            self.sync(upstream, context, roots).await;
        }
    }

    async fn sync(
        &mut self,
        upstream: &Upstream,
        context: &AuthorityContext,
        named: Vec<X509Authority>,
    ) {
        let before = self.named.as_deref().unwrap_or_default();
        let is_new = |root: &&X509Authority| {
            let mut before = before.iter();
            !before.any(|known| known.certificate == root.certificate)
        };
        let in_use = context
            .journal
            .certificates_in_use(unix_seconds(context.clock.now()));
        let roots = UpstreamRoots {
            source: upstream.source(),
            new: named.iter().filter(is_new).cloned().collect(),
            named: named.clone(),
            in_use,
        };
        let synced = context
            .bundles
            .sync_upstream_roots(&context.trust_domain, roots);
        let synced = match synced.await {
            Ok(synced) => synced,
            Err(error) => {
                tracing::error!(%error, "the roots of the upstream authority could not be stored");
                self.unsaved = Some(named);
                return;
            }
        };
        if synced.is_change() {
            tracing::info!(
                plugin = upstream.plugin.name(),
                added = synced.added,
                removed = synced.removed,
                tainted = synced.tainted,
                leaving = synced.leaving.len(),
                "the roots of the upstream authority changed"
            );
        }
        self.some_leave = !synced.leaving.is_empty();
        if self.named.as_ref() != Some(&named) {
            let tainted = named.iter().filter(|root| root.tainted);
            let tainted = tainted.map(|root| root.certificate.clone());
            self.unreliable = synced.leaving.into_iter().chain(tainted).collect();
            self.named = Some(named);
        }
    }
}

/// Says once that CAs live shorter than they should, for each reason, however often one is minted.
#[derive(Debug, Default)]
pub(super) struct LifetimeCut {
    said: Mutex<Option<Reason>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Nothing can outlive the upstream authority, which ends then.
    UpstreamExpires(SystemTime),
    /// The upstream authority gives no more.
    ShorterLifetime,
}

impl LifetimeCut {
    /// The warning for a new CA, unless it was given before.
    pub(super) fn warning(
        &self,
        minted: &MintedCa,
        now: SystemTime,
        ttl: Duration,
    ) -> Option<String> {
        /// Rounding, and the time that minting takes.
        const TOLERANCE: Duration = Duration::from_secs(60);
        let own = minted.chain.first()?.not_after();
        let wanted = now.checked_add(ttl)?;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if own + TOLERANCE >= wanted {
            *said = None;
            return None;
        }
        let highest = minted.chain.last()?;
        let roots = minted.roots.iter().map(|root| &root.certificate);
        let signers = roots.filter(|root| highest.is_signed_by(root));
        let above = minted.chain.iter().skip(1).chain(signers);
        let reason = match above.map(Certificate::not_after).min() {
            Some(end) if own < end => Reason::ShorterLifetime,
            _ => Reason::UpstreamExpires(own),
        };
        if said.replace(reason) == Some(reason) {
            return None;
        }
        let dates = format!(
            "expires at {} in place of {} (ca_ttl)",
            moment(unix_seconds(own)),
            moment(unix_seconds(wanted))
        );
        Some(match reason {
            Reason::UpstreamExpires(_) => format!(
                "the new X.509 CA {dates}, because the upstream authority expires then; renew the upstream authority"
            ),
            Reason::ShorterLifetime => {
                format!("the new X.509 CA {dates}, because the upstream authority gives no more")
            }
        })
    }
}
