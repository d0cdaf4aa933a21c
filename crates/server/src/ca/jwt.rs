//! JWT authorities: a key and its id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plugin::ErrorKind;
use plugin::upstream_authority::Updates;
use spiffe::bundle::{AuthoritySource, Bundle, JwtAuthority, JwtBundle};
use spiffe::clock::{from_unix, unix_seconds};
use spiffe::id::SpiffeId;
use spiffe::key::{JwsAlgorithm, KeyType, Signer};
use spiffe::random::{Random, alphanumeric};
use spiffe::svid::jwt::{JwtBundleSource, JwtClaims, sign_jwt_svid, verify_jwt_svid};
use spiffe::trust_domain::TrustDomain;

use super::CaError;
use super::authority::AuthorityContext;
use super::journal::{Record, Series};
use super::kind::{Draft, Failures, Kind};
use super::slots::{AuthorityState, AuthorityStates};
use super::upstream::Upstream;
use crate::datastore::BundleError;

/// SPIRE: the length of a key id.
const KEY_ID_LEN: usize = 32;

/// SPIRE: publishJWKTimeout.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How JWT authorities are made.
#[derive(Debug)]
pub(super) struct JwtKind {
    pub(super) trust_domain: TrustDomain,
    pub(super) random: Arc<dyn Random>,
    pub(super) key_type: KeyType,
    pub(super) ttl: Duration,
    pub(super) upstream: Option<Arc<Upstream>>,
}

/// A JWT authority that signs.
#[derive(Debug)]
pub(super) struct JwtIssuer {
    pub(super) key_id: String,
    pub(super) key: Arc<dyn Signer>,
    pub(super) algorithm: JwsAlgorithm,
    pub(super) not_after: SystemTime,
}

impl JwtKind {
    /// Makes the key known in the bundle of the level above, if that level takes keys. Gives the keys of that bundle.
    async fn publish_upstream(
        &self,
        upstream: &Upstream,
        own: &JwtAuthority,
    ) -> Result<Option<(Vec<JwtAuthority>, Updates<JwtAuthority>)>, CaError> {
        let plugin = &upstream.plugin;
        match tokio::time::timeout(PUBLISH_TIMEOUT, plugin.publish_jwt_key(own)).await {
            Ok(Ok(published)) => Ok(Some(published)),
            Ok(Err(error)) if error.kind() == ErrorKind::NotOffered => {
                tracing::warn!(
                    plugin = plugin.name(),
                    "UpstreamAuthority plugin does not support JWT-SVIDs. Workloads managed by this server may have \
                     trouble communicating with workloads outside this cluster when using JWT-SVIDs."
                );
                Ok(None)
            }
            Ok(Err(error)) => Err(CaError::Upstream(error)),
            Err(_late) => Err(CaError::UnfitUpstream(
                "it took too long to publish a JWT key".to_owned(),
            )),
        }
    }

    async fn try_out(
        &self,
        issuer: &JwtIssuer,
        trust: &Bundle,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let claims = JwtClaims {
            subject: SpiffeId::server(&self.trust_domain),
            audience: vec!["trial".to_owned()],
            issued_at: unix_seconds(now),
            expires_at: unix_seconds(now).saturating_add(60),
            issuer: None,
            jti: None,
            extra: serde_json::Map::new(),
        };
        let failed = |error: &dyn std::fmt::Display| CaError::Trial(error.to_string());
        let token = sign_jwt_svid(
            &claims,
            &issuer.key_id,
            issuer.algorithm,
            issuer.key.as_ref(),
        )
        .await
        .map_err(|error| failed(&error))?;
        let keys = Keys(BTreeMap::from([(
            trust.trust_domain.clone(),
            Arc::new(trust.jwt_bundle()),
        )]));
        verify_jwt_svid(token.expose(), "trial", &keys, now)
            .map(|_| ())
            .map_err(|error| failed(&error))
    }
}

impl Kind for JwtKind {
    type Issuer = JwtIssuer;
    const SERIES: Series = Series::Jwt;
    const KEY_PREFIX: &'static str = "JWT-Signer";
    const WHAT: &'static str = "JWT key";
    const FAILURES: Failures = Failures {
        prepare: "failed to prepare JWT authority",
        taint: "failed to taint JWT authority",
        revoke: "failed to revoke JWT authority",
    };
    const LABEL: &'static str = "jwt_key";

    fn key_type(&self) -> KeyType {
        self.key_type
    }

    async fn draft(&self, key: &Arc<dyn Signer>, now: SystemTime) -> Result<Draft, CaError> {
        let key_id = alphanumeric(self.random.as_ref(), KEY_ID_LEN);
        let not_after = now + self.ttl;
        let own = JwtAuthority {
            key_id: key_id.clone(),
            public_key: key.public_key().clone(),
            expires_at: Some(unix_seconds(not_after)),
            tainted: false,
            source: AuthoritySource::Own,
        };
        let mut publication = Bundle::new(self.trust_domain.clone());
        let mut once_published: Option<Box<dyn FnOnce() + Send>> = None;
        if let Some(upstream) = &self.upstream
            && let Some((keys, updates)) = self.publish_upstream(upstream, &own).await?
        {
            // Of the own key the own word counts.
            let others = keys.into_iter().filter(|key| key.key_id != own.key_id);
            let others = others.map(|key| JwtAuthority {
                source: upstream.source(),
                ..key
            });
            publication.jwt_authorities.extend(others);
            let upstream = Arc::clone(upstream);
            once_published = Some(Box::new(move || upstream.follow_keys(updates)));
        }
        publication.jwt_authorities.push(own);
        Ok(Draft {
            authority_id: key_id,
            origin: None,
            upstream_authority_id: String::new(),
            not_after,
            chain: Vec::new(),
            publication,
            once_published,
        })
    }

    async fn issuer(
        &self,
        record: &Record,
        key: Arc<dyn Signer>,
        trust: &Bundle,
        now: SystemTime,
    ) -> Result<JwtIssuer, CaError> {
        let key_type = key.public_key().key_type();
        let algorithm =
            key_type.ok_or_else(|| CaError::Trial("its key is of a foreign type".to_owned()))?;
        let issuer = JwtIssuer {
            key_id: record.authority_id.clone(),
            key,
            algorithm: algorithm.jws_algorithm(),
            not_after: from_unix(record.not_after),
        };
        self.try_out(&issuer, trust, now).await?;
        Ok(issuer)
    }

    fn is_published(&self, record: &Record, bundle: &Bundle) -> bool {
        bundle.jwt_authorities.iter().any(|authority| {
            authority.key_id == record.authority_id
                && authority.public_key.spki_der() == record.public_key
        })
    }

    /// Keys of servers below, or of other servers of the trust domain, can be revoked here too.
    fn check_revocable(
        &self,
        authority_id: &str,
        states: &AuthorityStates,
        bundle: Option<&Bundle>,
    ) -> Result<(), &'static str> {
        if AuthorityState::is(&states.prepared, authority_id) {
            return Err("unable to use a prepared key");
        }
        let mut keys = bundle.iter().flat_map(|bundle| &bundle.jwt_authorities);
        let is_known = keys.any(|key| key.key_id == authority_id);
        if is_known || AuthorityState::is(&states.old, authority_id) {
            Ok(())
        } else {
            Err("no JWT authority found with provided authority ID")
        }
    }

    async fn taint(
        &self,
        context: &AuthorityContext,
        authority_id: &str,
    ) -> Result<(), BundleError> {
        let AuthorityContext {
            bundles,
            trust_domain,
            ..
        } = context;
        let tainted = bundles.taint_jwt_authority(trust_domain, authority_id);
        tainted.await.map(|_bundle| ())
    }

    async fn revoke(
        &self,
        context: &AuthorityContext,
        authority_id: &str,
    ) -> Result<(), BundleError> {
        let AuthorityContext {
            bundles,
            trust_domain,
            ..
        } = context;
        let revoked = bundles.revoke_jwt_authority(trust_domain, authority_id);
        revoked.await.map(|_bundle| ())
    }
}

#[derive(Debug)]
struct Keys(BTreeMap<TrustDomain, Arc<JwtBundle>>);

impl JwtBundleSource for Keys {
    fn jwt_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<JwtBundle>> {
        self.0.get(trust_domain).cloned()
    }
}
