//! Writes of what an upstream authority trusts: its roots and keys come and leave with its word.
//!
//! Only what the bundle says the upstream authority put there leaves. What this server, a server below or an administrator
//! put there stays, whatever the upstream authority names.

use spiffe::bundle::{AuthoritySource, Bundle, JwtAuthority, X509Authority};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Certificate;

use super::bundles::{BundleError, Bundles, write};

/// The roots that an upstream authority names.
#[derive(Debug, Clone)]
pub struct UpstreamRoots {
    pub source: AuthoritySource,
    /// All of them.
    pub named: Vec<X509Authority>,
    /// Those that it did not name the last time. A root that was named before and is not in the bundle was revoked; it
    /// does not come back by being named again.
    pub new: Vec<X509Authority>,
    /// CA certificates that may still sign, or have signed what is still valid.
    pub in_use: Vec<Certificate>,
}

/// What became of the roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootsSynced {
    pub added: usize,
    pub removed: usize,
    pub tainted: usize,
    /// Not named any more, and still there for what is in use.
    pub leaving: Vec<Certificate>,
}

impl RootsSynced {
    /// Whether something was written.
    pub fn is_change(&self) -> bool {
        self.added + self.removed + self.tainted > 0
    }
}

impl Bundles {
    /// Has the bundle hold the named roots. A root that is not named any more is removed at once if it is tainted (SPIRE:
    /// it is revoked), else as soon as nothing in use leads to it.
    ///
    /// # Errors
    /// [`BundleError::WouldPruneAllX509`] when no root would be left, or the store could not write.
    pub async fn sync_upstream_roots(
        &self,
        trust_domain: &TrustDomain,
        roots: UpstreamRoots,
    ) -> Result<RootsSynced, BundleError> {
        let trust_domain = trust_domain.clone();
        self.0
            .submit(1, move |draft| {
                let stored = draft.bundle(&trust_domain);
                let mut bundle = match &stored {
                    Some(stored) => Bundle::clone(stored),
                    None => Bundle::new(trust_domain.clone()),
                };
                let synced = sync_roots(&mut bundle, &roots);
                if bundle.x509_authorities.is_empty() {
                    return Err(BundleError::WouldPruneAllX509);
                }
                if synced.is_change() {
                    bundle.sequence_number += 1;
                    write(draft, bundle);
                }
                Ok(synced)
            })
            .await?
    }

    /// Has the bundle hold the named JWT keys of an upstream authority, and none that it named before and does not now.
    /// Gives whether something was written.
    ///
    /// # Errors
    /// The store could not write.
    pub async fn sync_upstream_keys(
        &self,
        trust_domain: &TrustDomain,
        source: AuthoritySource,
        named: Vec<JwtAuthority>,
    ) -> Result<bool, BundleError> {
        let trust_domain = trust_domain.clone();
        self.0
            .submit(1, move |draft| {
                let stored = draft.bundle(&trust_domain).ok_or(BundleError::NotFound)?;
                let mut bundle = Bundle::clone(&stored);
                let is_named =
                    |key: &JwtAuthority| named.iter().any(|one| one.key_id == key.key_id);
                bundle
                    .jwt_authorities
                    .retain(|key| key.source != source || is_named(key));
                for key in &named {
                    let mut known = bundle.jwt_authorities.iter();
                    if !known.any(|known| known.key_id == key.key_id) {
                        bundle.jwt_authorities.push(JwtAuthority {
                            source: source.clone(),
                            ..key.clone()
                        });
                    }
                }
                let changed = bundle != *stored;
                if changed {
                    bundle.sequence_number += 1;
                    write(draft, bundle);
                }
                Ok(changed)
            })
            .await?
    }
}

fn sync_roots(bundle: &mut Bundle, roots: &UpstreamRoots) -> RootsSynced {
    let mut synced = RootsSynced::default();
    for root in &roots.named {
        let mut known = bundle.x509_authorities.iter_mut();
        match known.find(|known| known.certificate == root.certificate) {
            Some(known) if root.tainted && !known.tainted && known.source == roots.source => {
                known.tainted = true;
                synced.tainted += 1;
            }
            Some(_) => {}
            None if roots
                .new
                .iter()
                .any(|new| new.certificate == root.certificate) =>
            {
                bundle.x509_authorities.push(X509Authority {
                    source: roots.source.clone(),
                    ..root.clone()
                });
                synced.added += 1;
            }
            None => {}
        }
    }
    let before = bundle.x509_authorities.len();
    bundle.x509_authorities.retain(|authority| {
        let certificate = &authority.certificate;
        let mut named = roots.named.iter();
        if authority.source != roots.source || named.any(|named| named.certificate == *certificate)
        {
            return true;
        }
        let mut in_use = roots.in_use.iter();
        let is_in_use = in_use.any(|below| below == certificate || below.is_signed_by(certificate));
        let stays = is_in_use && !authority.tainted;
        if stays {
            synced.leaving.push(certificate.clone());
        }
        stays
    });
    synced.removed = before - bundle.x509_authorities.len();
    synced
}
