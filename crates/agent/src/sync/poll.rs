//! Following a SPIRE server: its sync at an interval, then the bundles that the entries name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use config::fault::Fault;
use futures_util::StreamExt as _;
use proto::convert::{ConvertError, ReceivedBundle};
use spiffe::bundle::Bundle;
use spiffe::entry::Entry;
use spiffe::trust_domain::TrustDomain;

use super::{Following, Outcome, Sync};
use crate::cache::{Cache, Delta};
use crate::metrics::ENTRY_SYNC;
use crate::server_client::{ClientError, Known, ServerClient, WireEntries};

/// SPIRE: federated bundles are fetched by ten at a time.
const SIDE_BY_SIDE: usize = 10;

/// What one sync with the server brought.
#[derive(Debug)]
pub(super) struct Polled {
    delta: Delta,
    /// For each bundle that came, its authorities that were left out.
    skipped: Vec<(TrustDomain, Vec<ConvertError>)>,
    /// Trust domains whose bundle could not be had this time, and why. The cache keeps the bundle it has.
    unreadable: Vec<(TrustDomain, ClientError)>,
}

impl Sync {
    pub(super) fn poll(&mut self) {
        if let Following::Poll { busy, .. } = &mut self.following {
            *busy = true;
        }
        let (client, cache, own) = (
            self.client.clone(),
            Arc::clone(&self.cache),
            self.node.config.trust_domain.clone(),
        );
        let telemetry = self.node.telemetry.clone();
        self.call(async move {
            let timer = telemetry.start(&ENTRY_SYNC, []);
            let fetched = fetch(&client, &cache, &own).await;
            timer.end_with(&fetched);
            Outcome::Polled(fetched)
        });
    }

    pub(super) fn polled(
        &mut self,
        current: bool,
        outcome: Result<Polled, ClientError>,
    ) -> Result<(), Fault> {
        if let Following::Poll { busy, .. } = &mut self.following {
            *busy = false;
        }
        match outcome {
            Ok(Polled {
                delta,
                skipped,
                unreadable,
            }) => {
                let reports = &mut self.bundle_reports;
                for (trust_domain, skipped) in &skipped {
                    reports.received(trust_domain.as_str(), skipped);
                }
                for (trust_domain, error) in &unreadable {
                    reports.report(trust_domain.as_str(), &error.to_string());
                }
                let (received, failed) = (
                    skipped.iter().map(|(name, _)| name),
                    unreadable.iter().map(|(name, _)| name),
                );
                let named: BTreeSet<&str> =
                    received.chain(failed).map(TrustDomain::as_str).collect();
                reports.keep_only(&named);
                self.apply(delta);
                self.synced();
                self.pause_after_sync();
                Ok(())
            }
            Err(error) => {
                self.pause_after_failure();
                self.lost(&error);
                self.failed(current, "entries not synced", &error)
            }
        }
    }
}

/// The server's own bundle and the node's entries have to arrive; of the bundles that the entries name, each stands
/// for itself, since another organisation decides what is in it.
async fn fetch(
    client: &ServerClient,
    cache: &Cache,
    own: &TrustDomain,
) -> Result<Polled, ClientError> {
    let ReceivedBundle {
        bundle: own_bundle,
        skipped: skipped_of_own,
    } = client.bundle().await?;
    if own_bundle.trust_domain != *own || own_bundle.x509_authorities.is_empty() {
        return Err(ClientError::malformed(
            "the server's bundle is empty or of another trust domain",
        ));
    }
    let held = cache.entries();
    let WireEntries { entries, removed } = client.sync_entries(&known(&held)).await?;

    let gone: BTreeSet<&Arc<str>> = removed.iter().collect();
    let replaced: BTreeSet<&Arc<str>> = entries.iter().map(|entry| &entry.id).collect();
    let foreign: BTreeSet<TrustDomain> = held
        .iter()
        .filter(|entry| !gone.contains(&entry.id) && !replaced.contains(&entry.id))
        .chain(&entries)
        .flat_map(|entry| entry.federates_with.iter().cloned())
        .filter(|trust_domain| trust_domain != own)
        .collect();
    let Federated {
        mut bundles,
        mut skipped,
        unreadable,
    } = federated(client, foreign).await?;
    let stays = |trust_domain: &TrustDomain| {
        trust_domain == own
            || bundles
                .iter()
                .any(|bundle| bundle.trust_domain == *trust_domain)
            || unreadable.iter().any(|(named, _)| named == trust_domain)
    };
    let removed_bundles = cache
        .bundles()
        .iter()
        .map(|bundle| bundle.trust_domain.clone())
        .filter(|trust_domain| !stays(trust_domain))
        .collect();
    bundles.push(own_bundle);
    skipped.push((own.clone(), skipped_of_own));
    Ok(Polled {
        delta: Delta {
            entries,
            removed_entries: removed,
            bundles,
            removed_bundles,
        },
        skipped,
        unreadable,
    })
}

fn known(held: &[Arc<Entry>]) -> BTreeMap<Arc<str>, Known> {
    held.iter()
        .map(|entry| {
            let known = Known {
                revision_number: entry.revision_number,
                created_at: entry.created_at,
            };
            (Arc::clone(&entry.id), known)
        })
        .collect()
}

/// Bundles of other trust domains.
struct Federated {
    bundles: Vec<Bundle>,
    skipped: Vec<(TrustDomain, Vec<ConvertError>)>,
    unreadable: Vec<(TrustDomain, ClientError)>,
}

/// Asks for the bundles of `foreign`. A bundle that the server does not have is in neither list.
///
/// # Errors
/// Only what says that the node itself is refused.
async fn federated(
    client: &ServerClient,
    foreign: BTreeSet<TrustDomain>,
) -> Result<Federated, ClientError> {
    let mut answers = futures_util::stream::iter(foreign)
        .map(|trust_domain| async move {
            let answer = client.federated_bundle(&trust_domain).await;
            (trust_domain, answer)
        })
        .buffered(SIDE_BY_SIDE);
    let mut found = Federated {
        bundles: Vec::new(),
        skipped: Vec::new(),
        unreadable: Vec::new(),
    };
    while let Some((trust_domain, answer)) = answers.next().await {
        match answer {
            Ok(Some(received)) if received.bundle.trust_domain == trust_domain => {
                found.bundles.push(received.bundle);
                found.skipped.push((trust_domain, received.skipped));
            }
            Ok(Some(other)) => {
                let error = ClientError::malformed(format!(
                    "it is the bundle of {}",
                    other.bundle.trust_domain
                ));
                found.unreadable.push((trust_domain, error));
            }
            Ok(None) => {}
            Err(
                error @ (ClientError::Banned
                | ClientError::MustReattest(_)
                | ClientError::SvidRefused(_)),
            ) => return Err(error),
            Err(error) => found.unreadable.push((trust_domain, error)),
        }
    }
    Ok(found)
}
