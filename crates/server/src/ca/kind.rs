//! What a kind of authority is. A new kind is one implementation of [`Kind`], a series of the journal and a row of
//! [`Ca`](super::Ca)'s table; its life and an operator's say over it are written once, in `authority` and `operations`.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::bundle::Bundle;
use spiffe::key::{KeyType, Signer};

use super::CaError;
use super::authority::AuthorityContext;
use super::journal::{Origin, Record, Series};
use super::slots::AuthorityStates;
use crate::datastore::BundleError;

/// What differs between the kinds.
pub(super) trait Kind: Send + Sync + 'static {
    /// What the gate signs with.
    type Issuer: Send + Sync;
    const SERIES: Series;
    /// The key is called `<prefix>-A` or `<prefix>-B` (SPIRE: the same).
    const KEY_PREFIX: &'static str;
    /// For logs.
    const WHAT: &'static str;
    /// For the telemetry.
    const LABEL: &'static str;
    const FAILURES: Failures;

    fn key_type(&self) -> KeyType;

    /// Makes the documents of a new authority around a fresh key, asking an upstream authority if there is one.
    fn draft(
        &self,
        key: &Arc<dyn Signer>,
        now: SystemTime,
    ) -> impl Future<Output = Result<Draft, CaError>> + Send;

    /// What signs, for a new record or one of an earlier life of the server. Tries it: a document made with it must
    /// verify against `trust`.
    fn issuer(
        &self,
        record: &Record,
        key: Arc<dyn Signer>,
        trust: &Bundle,
        now: SystemTime,
    ) -> impl Future<Output = Result<Self::Issuer, CaError>> + Send;

    /// Whether those who verify against `bundle` accept what this authority signs.
    fn is_published(&self, record: &Record, bundle: &Bundle) -> bool;

    /// Whether the bundle holds the root above and not the authority itself, which then cannot be tainted or revoked.
    fn is_below_upstream(&self) -> bool {
        false
    }

    /// Whether an authority that does not sign may be revoked, or SPIRE's words for why not.
    fn check_revocable(
        &self,
        authority_id: &str,
        states: &AuthorityStates,
        bundle: Option<&Bundle>,
    ) -> Result<(), &'static str>;

    /// Marks an authority in the bundle.
    fn taint(
        &self,
        context: &AuthorityContext,
        authority_id: &str,
    ) -> impl Future<Output = Result<(), BundleError>> + Send;

    /// Removes a tainted authority from the bundle.
    fn revoke(
        &self,
        context: &AuthorityContext,
        authority_id: &str,
    ) -> impl Future<Output = Result<(), BundleError>> + Send;
}

/// SPIRE's words for operations that failed.
pub(super) struct Failures {
    pub(super) prepare: &'static str,
    pub(super) taint: &'static str,
    pub(super) revoke: &'static str,
}

/// A new authority before it has a place.
pub(super) struct Draft {
    pub(super) authority_id: String,
    pub(super) origin: Option<Origin>,
    pub(super) upstream_authority_id: String,
    pub(super) not_after: SystemTime,
    /// As in [`Record::chain`].
    pub(super) chain: Vec<Vec<u8>>,
    /// What the bundle gains.
    pub(super) publication: Bundle,
    /// What follows once it is published: an upstream authority's updates are listened to.
    pub(super) once_published: Option<Box<dyn FnOnce() + Send>>,
}
