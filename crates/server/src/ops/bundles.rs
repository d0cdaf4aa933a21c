//! Trust bundles: the server's own, to which servers below add their keys, and those of federated trust domains.

use std::sync::Arc;

use config::fault::Code;
use spiffe::bundle::{AuthoritySource, Bundle, JwtAuthority};
use spiffe::trust_domain::TrustDomain;

use super::Batch;
use super::page::by_trust_domain;
use crate::caller::Caller;
use crate::datastore::{self, BundleError, BundleMask, DeleteMode};
use crate::error::{Kind, OpError, failed, malformed, refused, write_failed};
use crate::registry::{Listing, Page, Registry};

/// JWT keys of this trust domain, its downstream servers' included. Readers of the bundle refuse one with thousands.
pub(crate) const MAX_JWT_AUTHORITIES: usize = 1_024;

#[derive(Debug)]
pub(crate) struct Bundles {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) bundles: datastore::Bundles,
}

/// How a federated bundle is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Write {
    Create,
    Update(BundleMask),
    Set,
}

impl Write {
    fn verb(self) -> &'static str {
        match self {
            Self::Create => "creating",
            Self::Update(_) => "updating",
            Self::Set => "setting",
        }
    }

    fn failure(self) -> &'static str {
        match self {
            Self::Create => "unable to create bundle",
            Self::Update(_) => "failed to update bundle",
            Self::Set => "failed to set bundle",
        }
    }
}

impl Bundles {
    pub(crate) fn count(&self) -> usize {
        self.registry.bundles().len()
    }

    /// The server's own bundle.
    ///
    /// # Errors
    /// NotFound.
    pub(crate) fn own(&self) -> Result<Arc<Bundle>, OpError> {
        self.registry
            .bundle(&self.trust_domain)
            .ok_or_else(not_found)
    }

    /// A page of the bundles of other trust domains, sorted by them.
    ///
    /// # Errors
    /// InvalidArgument when the page token is not one of this server's.
    pub(crate) fn list_federated(&self, page: &Page) -> Result<Listing<Arc<Bundle>>, OpError> {
        let mut bundles = self.registry.bundles();
        bundles.retain(|bundle| bundle.trust_domain != self.trust_domain);
        by_trust_domain(bundles, |bundle| &bundle.trust_domain, page)
    }

    /// # Errors
    /// InvalidArgument for the server's own trust domain, NotFound.
    pub(crate) fn get_federated(&self, trust_domain: &str) -> Result<Arc<Bundle>, OpError> {
        let name = self.other_than_own(
            trust_domain,
            "getting a federated bundle for the server's own trust domain is not allowed",
        )?;
        self.registry.bundle(&name).ok_or_else(not_found)
    }

    /// Adds authorities to the server's own bundle. They are added untainted: tainting is a call of its own.
    ///
    /// # Errors
    /// InvalidArgument without authorities, or the store could not write.
    pub(crate) async fn append(&self, mut more: Bundle) -> Result<Arc<Bundle>, OpError> {
        if more.jwt_authorities.is_empty() && more.x509_authorities.is_empty() {
            return Err(refused(Kind::InvalidArgument, "no authorities to append"));
        }
        for authority in &mut more.x509_authorities {
            authority.tainted = false;
            authority.source = AuthoritySource::Administrator;
        }
        for authority in &mut more.jwt_authorities {
            authority.tainted = false;
            authority.source = AuthoritySource::Administrator;
        }
        let appended = self.bundles.append(more).await;
        appended.map_err(|error| write_failed("failed to append bundle", &error))
    }

    /// Adds a downstream server's key to the server's own bundle.
    ///
    /// # Errors
    /// InvalidArgument for a key that never expires, AlreadyExists when another key has its ID, ResourceExhausted when the
    /// bundle is full.
    pub(crate) async fn publish(&self, mut key: JwtAuthority) -> Result<Arc<Bundle>, OpError> {
        key.tainted = false;
        key.source = AuthoritySource::Downstream;
        if let Some(own) = self.registry.bundle(&self.trust_domain) {
            publishable(&own, &key)?;
        }
        let mut more = Bundle::new(self.trust_domain.clone());
        more.jwt_authorities = vec![key.clone()];
        let published = self.bundles.append_up_to(more, MAX_JWT_AUTHORITIES);
        let published = published.await;
        let published = published.map_err(|error| refusal(error, "failed to publish JWT key"))?;
        // A known ID stays with the key that it has; tokens of another key would be accepted by nobody.
        let mut keys = published.jwt_authorities.iter();
        match keys.find(|known| known.key_id == key.key_id) {
            Some(known) if known.public_key == key.public_key => Ok(published),
            _ => Err(failed(
                Kind::AlreadyExists,
                "invalid JWT authority",
                format!("another key has the key ID \"{}\"", key.key_id),
            )),
        }
    }

    /// Refuses to write the server's own bundle by the calls for federated ones.
    ///
    /// # Errors
    /// InvalidArgument.
    pub(crate) fn check_federated(&self, trust_domain: &str, how: Write) -> Result<(), OpError> {
        let not_own = format!(
            "{} a federated bundle for the server's own trust domain is not allowed",
            how.verb()
        );
        self.other_than_own(trust_domain, &not_own).map(|_| ())
    }

    /// Writes what could be read, each by itself.
    pub(crate) async fn write_all(
        &self,
        caller: &Caller,
        mut batch: Batch<Bundle>,
        how: Write,
    ) -> Vec<Result<Arc<Bundle>, OpError>> {
        let mut written = Vec::new();
        for bundle in batch.take() {
            written.push(self.write(bundle, how).await);
        }
        batch.conclude(caller, written)
    }

    /// Writes a federated bundle. One without any key verifies nobody: it never takes the place of one with keys.
    ///
    /// # Errors
    /// InvalidArgument, AlreadyExists, NotFound, or the store could not write.
    async fn write(&self, bundle: Bundle, how: Write) -> Result<Arc<Bundle>, OpError> {
        let outcome = match how {
            Write::Create => self.bundles.create(bundle).await,
            Write::Update(mask) => self.bundles.update(bundle, mask).await,
            Write::Set => self.bundles.set(bundle).await,
        };
        outcome.map_err(|error| refusal(error, how.failure()))
    }

    /// # Errors
    /// InvalidArgument for the server's own trust domain, NotFound, FailedPrecondition when entries federate with it.
    pub(crate) async fn delete(&self, trust_domain: &str, mode: DeleteMode) -> Result<(), OpError> {
        let name = self.other_than_own(
            trust_domain,
            "removing the bundle for the server trust domain is not allowed",
        )?;
        let outcome = self.bundles.delete(&name, mode).await;
        outcome.map_err(|error| refusal(error, "failed to delete federated bundle"))
    }

    fn other_than_own(&self, name: &str, not_own: &str) -> Result<TrustDomain, OpError> {
        let name =
            TrustDomain::parse(name).map_err(malformed("trust domain argument is not valid"))?;
        if name == self.trust_domain {
            return Err(refused(Kind::InvalidArgument, not_own));
        }
        Ok(name)
    }
}

/// Whether a downstream server's key may join the bundle: it leaves again by itself, and there is room.
pub(crate) fn publishable(own: &Bundle, key: &JwtAuthority) -> Result<(), OpError> {
    if key.expires_at.is_none() {
        return Err(refused(
            Kind::InvalidArgument,
            "invalid JWT authority: it never expires; set expires_at",
        ));
    }
    let mut keys = own.jwt_authorities.iter();
    if own.jwt_authorities.len() >= MAX_JWT_AUTHORITIES
        && keys.all(|known| known.key_id != key.key_id)
    {
        let full = BundleError::JwtAuthoritiesFull(MAX_JWT_AUTHORITIES);
        return Err(refusal(full, "failed to publish JWT key"));
    }
    Ok(())
}

pub(super) fn not_found() -> OpError {
    refused(Kind::NotFound, "bundle not found").with_code(Code::BundleNotFound)
}

fn refusal(error: BundleError, what: &str) -> OpError {
    match error {
        BundleError::Exists => refused(Kind::AlreadyExists, "bundle already exists"),
        BundleError::NotFound => not_found(),
        BundleError::Keyless => {
            failed(Kind::InvalidArgument, what, error).with_code(Code::InvalidBundle)
        }
        BundleError::JwtAuthoritiesFull(_) => refused(Kind::ResourceExhausted, error.to_string()),
        BundleError::Referenced(_) => {
            failed(Kind::FailedPrecondition, what, error).with_code(Code::BundleInUse)
        }
        other => write_failed(what, &other),
    }
}
