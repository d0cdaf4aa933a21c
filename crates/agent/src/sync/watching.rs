//! Following a Plastron server: one stream of changes, taken up again where it broke off.

use std::collections::BTreeSet;
use std::sync::Arc;

use config::fault::Fault;
use proto::convert::ReceivedBundle;
use proto::plastron::server::v1::WatchEvent;
use spiffe::trust_domain::TrustDomain;
use tokio::time::Instant;
use tonic::Streaming;

use super::bundle_reports::BundleReports;
use super::{Following, Outcome, Sync, VERSION};
use crate::cache::{Cache, Delta};
use crate::server_client::ClientError;

/// Where in the server's history the node is, and the parts of a change that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    cursor: u64,
    epoch: String,
    gathered: Option<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    reset: bool,
    delta: Delta,
    /// Trust domains whose bundle could not be read: what the cache has of them stays, also after a reset.
    unreadable: BTreeSet<TrustDomain>,
}

impl Changes {
    /// Adds a message; gives the whole change when it was the last of its revision.
    fn take(
        &mut self,
        event: WatchEvent,
        own: &TrustDomain,
        cache: &Cache,
        reports: &mut BundleReports,
    ) -> Option<Delta> {
        let gathered = self.gathered.get_or_insert_default();
        if event.reset {
            *gathered = Gathered {
                reset: true,
                ..Gathered::default()
            };
        }
        for wire in &event.entries {
            match proto::convert::entry_from_wire(wire) {
                Ok(entry) => gathered.delta.entries.push(Arc::new(entry)),
                Err(because) => {
                    tracing::warn!(entry = %wire.id, %because, "server sent a malformed entry; it is skipped");
                }
            }
        }
        gathered.delta.removed_entries.extend(
            event
                .removed_entry_ids
                .iter()
                .map(|id| Arc::from(id.as_str())),
        );
        for wire in &event.bundles {
            match proto::convert::bundle_from_server(wire) {
                // Nobody could verify anybody with it, and the server could not be reached again.
                Ok(ReceivedBundle { bundle, .. })
                    if bundle.trust_domain == *own && bundle.x509_authorities.is_empty() =>
                {
                    reports.report(&wire.trust_domain, "it has no X.509 authority");
                    gathered.unreadable.insert(bundle.trust_domain);
                }
                Ok(ReceivedBundle { bundle, skipped }) => {
                    reports.received(&wire.trust_domain, &skipped);
                    gathered.delta.bundles.push(bundle);
                }
                Err(because) => {
                    reports.report(&wire.trust_domain, &because.to_string());
                    gathered
                        .unreadable
                        .extend(TrustDomain::parse(&wire.trust_domain).ok());
                }
            }
        }
        for name in &event.removed_bundles {
            reports.removed(name);
            gathered
                .delta
                .removed_bundles
                .extend(TrustDomain::parse(name).ok());
        }
        if event.more {
            return None;
        }
        (self.cursor, self.epoch) = (event.revision, event.epoch);
        let Gathered {
            reset,
            mut delta,
            unreadable,
        } = self.gathered.take()?;
        if reset {
            forget_the_rest(&mut delta, &unreadable, cache);
        }
        Some(delta)
    }

    /// A stream that broke off in the middle of a change is asked for the whole change again.
    pub(super) fn interrupted(&mut self) {
        self.gathered = None;
    }
}

/// After a reset, what the full list does not name is gone.
fn forget_the_rest(delta: &mut Delta, unreadable: &BTreeSet<TrustDomain>, cache: &Cache) {
    let named: BTreeSet<Arc<str>> = delta
        .entries
        .iter()
        .map(|entry| Arc::clone(&entry.id))
        .collect();
    delta.removed_entries.extend(
        cache
            .entries()
            .iter()
            .map(|entry| Arc::clone(&entry.id))
            .filter(|id| !named.contains(id)),
    );
    let named: BTreeSet<TrustDomain> = delta
        .bundles
        .iter()
        .map(|bundle| bundle.trust_domain.clone())
        .chain(unreadable.iter().cloned())
        .collect();
    delta.removed_bundles.extend(
        cache
            .bundles()
            .iter()
            .map(|bundle| bundle.trust_domain.clone())
            .filter(|trust_domain| !named.contains(trust_domain)),
    );
}

impl Sync {
    pub(super) fn open_watch(&mut self) {
        self.following = Following::Watch { open: true };
        let (client, cursor, epoch) = (
            self.client.clone(),
            self.changes.cursor,
            self.changes.epoch.clone(),
        );
        self.call(async move { Outcome::WatchOpened(client.watch(cursor, &epoch, VERSION).await) });
    }

    pub(super) fn watch_opened(
        &mut self,
        current: bool,
        outcome: Result<Streaming<WatchEvent>, ClientError>,
    ) -> Result<(), Fault> {
        match outcome {
            Ok(stream) if current => {
                // Where nothing changed since the cursor, this is all that the server says.
                self.answered();
                self.returned();
                self.listen(Box::new(stream));
                Ok(())
            }
            Ok(_of_an_earlier_link) => Ok(()),
            Err(error) => self.watch_ended(current, &error),
        }
    }

    pub(super) fn watch_said(
        &mut self,
        current: bool,
        stream: Box<Streaming<WatchEvent>>,
        said: Result<Option<WatchEvent>, ClientError>,
    ) -> Result<(), Fault> {
        if !current {
            return Ok(());
        }
        match said {
            Ok(Some(event)) => {
                self.watch_backoff.reset();
                let own = &self.node.config.trust_domain;
                let (cache, reports) = (&self.cache, &mut self.bundle_reports);
                if let Some(delta) = self.changes.take(event, own, cache, reports) {
                    self.apply(delta);
                    self.synced();
                }
                self.listen(stream);
                Ok(())
            }
            // A server ends streams when it drains or limits the age of connections: come back soon.
            Ok(None) => {
                tracing::debug!("the server ended the stream of changes");
                self.changes.interrupted();
                self.following = Following::Watch { open: false };
                self.next_sync = Instant::now() + self.watch_backoff.next();
                Ok(())
            }
            Err(error) => self.watch_ended(current, &error),
        }
    }

    fn watch_ended(&mut self, current: bool, error: &ClientError) -> Result<(), Fault> {
        if !current {
            return Ok(());
        }
        self.changes.interrupted();
        if matches!(error, ClientError::Unimplemented(_)) {
            tracing::info!("the server has no stream of changes; syncing at intervals");
            self.following = Following::Poll {
                busy: false,
                since: Instant::now(),
            };
            self.changes = Changes::default();
            self.next_sync = Instant::now();
            return Ok(());
        }
        self.following = Following::Watch { open: false };
        self.pause_after_failure();
        self.lost(error);
        self.failed(current, "lost the update stream from the server", error)
    }

    /// Waits for the next message, unless the node gets a new SVID first: the stream then closes with its connection.
    fn listen(&self, mut stream: Box<Streaming<WatchEvent>>) {
        let mut identity = self.identities.subscribe();
        self.call(async move {
            let said = tokio::select! {
                said = stream.message() => said.map_err(ClientError::from),
                _renewed = identity.changed() => Ok(None),
            };
            Outcome::WatchSaid(stream, said)
        });
    }
}
