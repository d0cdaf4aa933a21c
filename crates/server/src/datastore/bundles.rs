//! Writes of trust bundles, the server's own and those of federated trust domains.

use daemon::telemetry::CallError;
use std::sync::Arc;
use std::time::SystemTime;

use spiffe::bundle::{AuthoritySource, Bundle, JwtAuthority, X509Authority};
use spiffe::clock::unix_seconds;
use spiffe::digest::hex;
use spiffe::entry::Entry;
use spiffe::trust_domain::TrustDomain;

use super::DatastoreError;
use super::draft::Draft;
use super::write_queue::WriteQueue;
use crate::registry::{Kind, Object};

/// Which parts of a bundle to write (SPIRE: `BundleMask`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a mask has one switch per part"
)]
pub struct BundleMask {
    pub x509_authorities: bool,
    pub jwt_authorities: bool,
    pub wit_authorities: bool,
    pub refresh_hint: bool,
    pub sequence_number: bool,
}

impl BundleMask {
    pub const ALL: Self = Self {
        x509_authorities: true,
        jwt_authorities: true,
        wit_authorities: true,
        refresh_hint: true,
        sequence_number: true,
    };
}

/// What to do with entries that federate with a bundle to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteMode {
    /// Refuse when there are any.
    Restrict,
    /// Delete them, too.
    Delete,
    /// Keep them without the federation.
    Dissociate,
}

/// Why a bundle was not written. Texts as SPIRE's, which clients match on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("bundle not found")]
    NotFound,
    #[error("bundle already exists")]
    Exists,
    /// It would leave nothing by which anybody could be verified.
    #[error("it has neither an X.509 nor a JWT authority, so nothing would verify against it")]
    Keyless,
    #[error("the bundle has {0} JWT authorities already; wait until some expire")]
    JwtAuthoritiesFull(usize),
    #[error("cannot delete bundle; federated with {0} registration entries")]
    Referenced(usize),
    #[error("no ca found with provided subject key ID")]
    NoX509Authority,
    #[error("no JWT Key found with provided key ID")]
    NoJwtAuthority,
    #[error("root CA is already tainted")]
    X509AlreadyTainted,
    #[error("key is already tainted")]
    JwtAlreadyTainted,
    #[error("it is not possible to revoke an untainted root CA")]
    X509NotTainted,
    #[error("it is not possible to revoke an untainted key")]
    JwtNotTainted,
    #[error("would prune all certificates")]
    WouldPruneAllX509,
    #[error("would prune all JWT signing keys")]
    WouldPruneAllJwt,
    #[error(transparent)]
    Store(#[from] DatastoreError),
}

impl CallError for BundleError {
    fn status(&self) -> &'static str {
        match self {
            Self::Store(error) => error.status(),
            Self::NotFound | Self::NoX509Authority | Self::NoJwtAuthority => "NotFound",
            Self::Exists => "AlreadyExists",
            _ => "FailedPrecondition",
        }
    }
}

/// The handle by which bundles are written.
#[derive(Debug, Clone)]
pub struct Bundles(pub(super) Arc<WriteQueue>);

impl Bundles {
    /// Adds the authorities that the stored bundle lacks and counts its sequence number up if there were any.
    /// Creates the bundle when there is none. An authority that is known stays as it is, tainted or not.
    ///
    /// # Errors
    /// When the store could not write.
    pub async fn append(&self, bundle: Bundle) -> Result<Arc<Bundle>, DatastoreError> {
        self.0.submit(1, move |draft| append(draft, &bundle)).await
    }

    /// As [`append`](Self::append), with room for `most` JWT authorities.
    ///
    /// # Errors
    /// [`BundleError::JwtAuthoritiesFull`], or the store could not write.
    pub async fn append_up_to(
        &self,
        bundle: Bundle,
        most: usize,
    ) -> Result<Arc<Bundle>, BundleError> {
        self.0
            .submit(1, move |draft| {
                if let Some(stored) = draft.bundle(&bundle.trust_domain) {
                    let known = |key: &JwtAuthority| {
                        let mut keys = stored.jwt_authorities.iter();
                        keys.any(|known| known.key_id == key.key_id)
                    };
                    let new = bundle.jwt_authorities.iter().filter(|key| !known(key));
                    let new = new.count();
                    if new > 0 && stored.jwt_authorities.len() + new > most {
                        return Err(BundleError::JwtAuthoritiesFull(most));
                    }
                }
                Ok(append(draft, &bundle))
            })
            .await?
    }

    /// # Errors
    /// [`BundleError::Exists`], or the store could not write.
    pub async fn create(&self, bundle: Bundle) -> Result<Arc<Bundle>, BundleError> {
        self.0
            .submit(1, move |draft| {
                if draft.bundle(&bundle.trust_domain).is_some() {
                    return Err(BundleError::Exists);
                }
                Ok(write(draft, bundle.clone()))
            })
            .await?
    }

    /// Writes the parts of the mask.
    ///
    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::Keyless`] when it would take all keys away, or the store could not write.
    pub async fn update(
        &self,
        bundle: Bundle,
        mask: BundleMask,
    ) -> Result<Arc<Bundle>, BundleError> {
        self.0
            .submit(1, move |draft| {
                let stored = draft
                    .bundle(&bundle.trust_domain)
                    .ok_or(BundleError::NotFound)?;
                replace(draft, &stored, masked(&stored, &bundle, mask))
            })
            .await?
    }

    /// Creates or replaces.
    ///
    /// # Errors
    /// [`BundleError::Keyless`] when it would take all keys away, or the store could not write.
    pub async fn set(&self, bundle: Bundle) -> Result<Arc<Bundle>, BundleError> {
        self.0
            .submit(1, move |draft| match draft.bundle(&bundle.trust_domain) {
                Some(stored) => replace(draft, &stored, bundle.clone()),
                None => Ok(write(draft, bundle.clone())),
            })
            .await?
    }

    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::Referenced`] in mode Restrict, or the store could not write.
    pub async fn delete(
        &self,
        trust_domain: &TrustDomain,
        mode: DeleteMode,
    ) -> Result<(), BundleError> {
        let trust_domain = trust_domain.clone();
        self.0
            .submit(1, move |draft| {
                draft.bundle(&trust_domain).ok_or(BundleError::NotFound)?;
                let federated =
                    draft.entries_where(|entry| entry.federates_with.contains(&trust_domain));
                match mode {
                    DeleteMode::Restrict if federated.is_empty() => {}
                    DeleteMode::Restrict => return Err(BundleError::Referenced(federated.len())),
                    DeleteMode::Delete => federated
                        .iter()
                        .for_each(|entry| draft.delete(Kind::Entry, &entry.id)),
                    DeleteMode::Dissociate => {
                        for entry in &federated {
                            let mut entry = Entry::clone(entry);
                            entry.federates_with.retain(|other| *other != trust_domain);
                            // SPIRE's agents fetch an entry again when this number has changed.
                            entry.revision_number += 1;
                            draft.put(Object::Entry(Arc::new(entry)));
                        }
                    }
                }
                draft.delete(Kind::Bundle, trust_domain.as_str());
                Ok(())
            })
            .await?
    }

    /// Removes authorities that ended by `before`; returns whether there were any. A missing bundle has none.
    ///
    /// # Errors
    /// [`BundleError::WouldPruneAllX509`] or [`BundleError::WouldPruneAllJwt`] when that is all there would be to remove,
    /// or the store could not write.
    pub async fn prune(
        &self,
        trust_domain: &TrustDomain,
        before: SystemTime,
    ) -> Result<bool, BundleError> {
        let trust_domain = trust_domain.clone();
        self.0
            .submit(1, move |draft| {
                let Some(stored) = draft.bundle(&trust_domain) else {
                    return Ok(false);
                };
                let mut pruned = Bundle::clone(&stored);
                pruned
                    .x509_authorities
                    .retain(|authority| authority.certificate.not_after() > before);
                let live = |authority: &JwtAuthority| {
                    authority
                        .expires_at
                        .is_none_or(|end| end > unix_seconds(before))
                };
                pruned.jwt_authorities.retain(live);
                pruned.wit_authorities.retain(live);
                // One list that would be emptied keeps its authorities and holds the others up no longer than itself: a server
                // that makes no JWT authorities any more still gets rid of its old X.509 ones.
                let mut refused = None;
                if pruned.jwt_authorities.is_empty() && !stored.jwt_authorities.is_empty() {
                    pruned.jwt_authorities.clone_from(&stored.jwt_authorities);
                    refused = Some(BundleError::WouldPruneAllJwt);
                }
                if pruned.x509_authorities.is_empty() && !stored.x509_authorities.is_empty() {
                    pruned.x509_authorities.clone_from(&stored.x509_authorities);
                    refused = Some(BundleError::WouldPruneAllX509);
                }
                let changed = pruned != *stored;
                if changed {
                    pruned.sequence_number += 1;
                    write(draft, pruned);
                }
                match refused {
                    Some(error) if !changed => Err(error),
                    _ => Ok(changed),
                }
            })
            .await?
    }

    /// Marks an X.509 authority as no longer to be trusted for new SVIDs. `subject_key_id` is lower-case hex.
    ///
    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::NoX509Authority`], [`BundleError::X509AlreadyTainted`], or the store
    /// could not write.
    pub async fn taint_x509_authority(
        &self,
        trust_domain: &TrustDomain,
        subject_key_id: &str,
    ) -> Result<Arc<Bundle>, BundleError> {
        let wanted = subject_key_id.to_owned();
        self.change_bundle(trust_domain, move |bundle| {
            let mut found = false;
            for authority in bundle
                .x509_authorities
                .iter_mut()
                .filter(|authority| has_key_id(authority, &wanted))
            {
                if authority.tainted {
                    return Err(BundleError::X509AlreadyTainted);
                }
                authority.tainted = true;
                found = true;
            }
            if found {
                Ok(())
            } else {
                Err(BundleError::NoX509Authority)
            }
        })
        .await
    }

    /// Removes a tainted X.509 authority.
    ///
    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::NoX509Authority`], [`BundleError::X509NotTainted`], or the store
    /// could not write.
    pub async fn revoke_x509_authority(
        &self,
        trust_domain: &TrustDomain,
        subject_key_id: &str,
    ) -> Result<Arc<Bundle>, BundleError> {
        let wanted = subject_key_id.to_owned();
        self.change_bundle(trust_domain, move |bundle| {
            let mut named = bundle
                .x509_authorities
                .iter()
                .filter(|authority| has_key_id(authority, &wanted))
                .peekable();
            if named.peek().is_none() {
                return Err(BundleError::NoX509Authority);
            }
            if named.any(|authority| !authority.tainted) {
                return Err(BundleError::X509NotTainted);
            }
            bundle
                .x509_authorities
                .retain(|authority| !has_key_id(authority, &wanted));
            Ok(())
        })
        .await
    }

    /// Marks a JWT authority as no longer to be trusted.
    ///
    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::NoJwtAuthority`], [`BundleError::JwtAlreadyTainted`], or the store
    /// could not write.
    pub async fn taint_jwt_authority(
        &self,
        trust_domain: &TrustDomain,
        key_id: &str,
    ) -> Result<Arc<Bundle>, BundleError> {
        let wanted = key_id.to_owned();
        self.change_bundle(trust_domain, move |bundle| {
            let mut authorities = bundle.jwt_authorities.iter_mut();
            let authority = authorities
                .find(|authority| authority.key_id == wanted)
                .ok_or(BundleError::NoJwtAuthority)?;
            if authority.tainted {
                return Err(BundleError::JwtAlreadyTainted);
            }
            authority.tainted = true;
            Ok(())
        })
        .await
    }

    /// Removes a tainted JWT authority.
    ///
    /// # Errors
    /// [`BundleError::NotFound`], [`BundleError::NoJwtAuthority`], [`BundleError::JwtNotTainted`], or the store
    /// could not write.
    pub async fn revoke_jwt_authority(
        &self,
        trust_domain: &TrustDomain,
        key_id: &str,
    ) -> Result<Arc<Bundle>, BundleError> {
        let wanted = key_id.to_owned();
        self.change_bundle(trust_domain, move |bundle| {
            let mut authorities = bundle.jwt_authorities.iter();
            let authority = authorities
                .find(|authority| authority.key_id == wanted)
                .ok_or(BundleError::NoJwtAuthority)?;
            if !authority.tainted {
                return Err(BundleError::JwtNotTainted);
            }
            bundle
                .jwt_authorities
                .retain(|authority| authority.key_id != wanted);
            Ok(())
        })
        .await
    }

    /// Changes a bundle and counts its sequence number up.
    async fn change_bundle(
        &self,
        trust_domain: &TrustDomain,
        change: impl Fn(&mut Bundle) -> Result<(), BundleError> + Send + 'static,
    ) -> Result<Arc<Bundle>, BundleError> {
        let trust_domain = trust_domain.clone();
        self.0
            .submit(1, move |draft| {
                let mut bundle =
                    Bundle::clone(&*draft.bundle(&trust_domain).ok_or(BundleError::NotFound)?);
                change(&mut bundle)?;
                bundle.sequence_number += 1;
                Ok(write(draft, bundle))
            })
            .await?
    }
}

pub(super) fn write(draft: &mut Draft<'_>, bundle: Bundle) -> Arc<Bundle> {
    let bundle = Arc::new(bundle);
    draft.put(Object::Bundle(Arc::clone(&bundle)));
    bundle
}

/// Writes in the place of `stored`. A bundle without any key verifies nobody: it never takes the place of one with keys.
fn replace(
    draft: &mut Draft<'_>,
    stored: &Bundle,
    bundle: Bundle,
) -> Result<Arc<Bundle>, BundleError> {
    if is_keyless(&bundle) && !is_keyless(stored) {
        return Err(BundleError::Keyless);
    }
    Ok(write(draft, bundle))
}

fn is_keyless(bundle: &Bundle) -> bool {
    bundle.x509_authorities.is_empty() && bundle.jwt_authorities.is_empty()
}

fn append(draft: &mut Draft<'_>, bundle: &Bundle) -> Arc<Bundle> {
    let Some(stored) = draft.bundle(&bundle.trust_domain) else {
        return write(draft, bundle.clone());
    };
    let mut merged = Bundle::clone(&stored);
    let grown = merged.append(bundle);
    let claimed = claim(&mut merged, bundle);
    if !grown && !claimed {
        return stored;
    }
    if grown {
        merged.sequence_number += 1;
    }
    write(draft, merged)
}

/// What an administrator adds is the administrator's from then on, whoever put it there before: it does not leave with an
/// upstream authority's word.
fn claim(merged: &mut Bundle, added: &Bundle) -> bool {
    let administrator = AuthoritySource::Administrator;
    let mut claimed = false;
    for authority in &mut merged.x509_authorities {
        let mut added = added.x509_authorities.iter();
        let is_added = |one: &X509Authority| {
            one.source == administrator && one.certificate == authority.certificate
        };
        if authority.source != administrator && added.any(is_added) {
            authority.source = administrator.clone();
            claimed = true;
        }
    }
    for key in &mut merged.jwt_authorities {
        let mut added = added.jwt_authorities.iter();
        let is_added = |one: &JwtAuthority| one.source == administrator && one.key_id == key.key_id;
        if key.source != administrator && added.any(is_added) {
            key.source = administrator.clone();
            claimed = true;
        }
    }
    claimed
}

pub(super) fn masked(stored: &Bundle, new: &Bundle, mask: BundleMask) -> Bundle {
    let mut bundle = stored.clone();
    if mask.x509_authorities {
        bundle.x509_authorities.clone_from(&new.x509_authorities);
    }
    if mask.jwt_authorities {
        bundle.jwt_authorities.clone_from(&new.jwt_authorities);
    }
    if mask.wit_authorities {
        bundle.wit_authorities.clone_from(&new.wit_authorities);
    }
    if mask.refresh_hint {
        bundle.refresh_hint = new.refresh_hint;
    }
    if mask.sequence_number {
        bundle.sequence_number = new.sequence_number;
    }
    bundle
}

fn has_key_id(authority: &X509Authority, lower_hex: &str) -> bool {
    let key_id = authority.certificate.subject_key_id();
    key_id.is_some_and(|id| hex(id) == lower_hex)
}
