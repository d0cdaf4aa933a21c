//! Following a SPIRE server: its sync at an interval, then the bundles that the entries name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use config::fault::Fault;
use futures_util::{StreamExt as _, TryStreamExt as _};
use spiffe::bundle::Bundle;
use spiffe::trust_domain::TrustDomain;

use super::{Following, Outcome, Sync};
use crate::cache::{Cache, Delta};
use crate::link::{Known, Link, LinkError, WireEntries};

/// SPIRE: federated bundles are fetched by ten at a time.
const SIDE_BY_SIDE: usize = 10;

impl Sync {
    pub(super) fn poll(&mut self) {
        if let Following::Poll { busy, .. } = &mut self.following {
            *busy = true;
        }
        let (link, cache, own) = (
            self.link.clone(),
            Arc::clone(&self.cache),
            self.node.config.trust_domain.clone(),
        );
        self.call(async move { Outcome::Polled(fetch(&link, &cache, &own).await) });
    }

    pub(super) fn polled(
        &mut self,
        current: bool,
        outcome: Result<Delta, LinkError>,
    ) -> Result<(), Fault> {
        if let Following::Poll { busy, .. } = &mut self.following {
            *busy = false;
        }
        match outcome {
            Ok(delta) => {
                self.apply(delta);
                self.synced();
                self.pause_after_sync();
                Ok(())
            }
            Err(error) => {
                self.pause_after_failure();
                self.failed(current, "entries not synced", &error)
            }
        }
    }
}

async fn fetch(link: &Link, cache: &Cache, own: &TrustDomain) -> Result<Delta, LinkError> {
    let held = cache.entries();
    let known: BTreeMap<Arc<str>, Known> = held
        .iter()
        .map(|entry| {
            (
                Arc::clone(&entry.id),
                Known {
                    revision_number: entry.revision_number,
                    created_at: entry.created_at,
                },
            )
        })
        .collect();
    let WireEntries { entries, removed } = link.sync_entries(&known).await?;

    let gone: BTreeSet<&Arc<str>> = removed.iter().collect();
    let replaced: BTreeSet<&Arc<str>> = entries.iter().map(|entry| &entry.id).collect();
    let foreign: BTreeSet<TrustDomain> = held
        .iter()
        .filter(|entry| !gone.contains(&entry.id) && !replaced.contains(&entry.id))
        .chain(&entries)
        .flat_map(|entry| entry.federates_with.iter().cloned())
        .filter(|trust_domain| trust_domain != own)
        .collect();
    let fetched: Vec<Option<Bundle>> = futures_util::stream::iter(foreign.clone())
        .map(|trust_domain| async move { link.federated_bundle(&trust_domain).await })
        .buffered(SIDE_BY_SIDE)
        .try_collect()
        .await?;
    let mut bundles: Vec<Bundle> = fetched.into_iter().flatten().collect();
    let present: BTreeSet<TrustDomain> = bundles
        .iter()
        .map(|bundle| bundle.trust_domain.clone())
        .collect();
    let own_bundle = link.bundle().await?;
    if own_bundle.trust_domain != *own || own_bundle.x509_authorities.is_empty() {
        return Err(LinkError::malformed(
            "the server's bundle is empty or of another trust domain",
        ));
    }
    bundles.push(own_bundle);
    let removed_bundles = cache
        .bundles()
        .iter()
        .map(|bundle| bundle.trust_domain.clone())
        .filter(|trust_domain| trust_domain != own && !present.contains(trust_domain))
        .collect();
    Ok(Delta {
        entries,
        removed_entries: removed,
        bundles,
        removed_bundles,
    })
}

/// The tainted authorities that were dealt with already.
#[derive(Debug, Default)]
pub(super) struct Tainted {
    x509: BTreeSet<Vec<u8>>,
    jwt: BTreeSet<String>,
}

impl Tainted {
    /// The key identifiers of authorities that are tainted since the last look: X.509, then JWT.
    pub(super) fn news_of(&mut self, bundle: &Bundle) -> (BTreeSet<Vec<u8>>, BTreeSet<String>) {
        let x509: BTreeSet<Vec<u8>> = bundle
            .x509_authorities
            .iter()
            .filter(|authority| authority.tainted)
            .filter_map(|authority| authority.certificate.subject_key_id().map(Into::into))
            .collect();
        let jwt: BTreeSet<String> = bundle
            .jwt_authorities
            .iter()
            .filter(|authority| authority.tainted)
            .map(|authority| authority.key_id.clone())
            .collect();
        let news = (&x509 - &self.x509, &jwt - &self.jwt);
        (self.x509, self.jwt) = (x509, jwt);
        news
    }
}
