//! X.509 authorities: self-signed, or signed by an upstream authority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spiffe::bundle::{AuthoritySource, Bundle, X509Authority, X509Bundle};
use spiffe::digest::hex;
use spiffe::id::SpiffeId;
use spiffe::key::{KeyPair, KeyType, Signer};
use spiffe::random::Random;
use spiffe::svid::x509::{BundleSource, verify_svid};
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::{
    CaTemplate, Certificate, Issuer, LeafTemplate, Subject, build_ca_csr, issue_ca, issue_leaf,
    random_serial, serial_to_decimal,
};

use super::authority::AuthorityContext;
use super::journal::{Origin, Record, Series};
use super::kind::{Draft, Failures, Kind};
use super::slots::{AuthorityState, AuthorityStates};
use super::upstream::Upstream;
use super::{BACKDATE, CaError};
use crate::datastore::BundleError;

/// How long a trial document is valid.
const TRIAL: Duration = Duration::from_secs(60);

/// How long an upstream authority may take, while which nothing else is done to the X.509 authorities.
const MINT_TIMEOUT: Duration = Duration::from_secs(60);

/// How X.509 authorities are made.
#[derive(Debug)]
pub(super) struct X509Kind {
    pub(super) trust_domain: TrustDomain,
    pub(super) random: Arc<dyn Random>,
    pub(super) key_type: KeyType,
    pub(super) subject: Subject,
    pub(super) ttl: Duration,
    pub(super) upstream: Option<Arc<Upstream>>,
}

/// An X.509 authority that signs.
#[derive(Debug)]
pub(super) struct X509Issuer {
    pub(super) certificate: Certificate,
    pub(super) key: Arc<dyn Signer>,
    key_id: Vec<u8>,
    /// What a holder shows after its leaf: nothing below a self-signed authority, else the way to the upstream root.
    pub(super) presented: Vec<Arc<[u8]>>,
}

impl X509Issuer {
    pub(super) fn as_issuer(&self) -> Issuer<'_> {
        Issuer {
            subject_der: self.certificate.subject_der(),
            key_id: &self.key_id,
            signer: self.key.as_ref(),
        }
    }

    /// Whether its chain leads to one of these.
    pub(super) fn is_below(&self, roots: &[Certificate]) -> bool {
        let chain: Vec<_> = self
            .presented
            .iter()
            .filter_map(|der| Certificate::from_der(der).ok())
            .collect();
        let leads_to = |root: &Certificate| chain.iter().any(|one| one.is_signed_by(root));
        roots.iter().any(leads_to)
    }

    pub(super) fn key_id(&self) -> &[u8] {
        &self.key_id
    }
}

impl X509Kind {
    fn subject(&self, serial: &[u8]) -> Subject {
        let mut subject = self.subject.clone();
        if subject.serial_number.is_none() {
            subject.serial_number = Some(serial_to_decimal(serial));
        }
        subject
    }

    async fn self_signed(&self, key: &Arc<dyn Signer>, now: SystemTime) -> Result<Draft, CaError> {
        let serial = random_serial(self.random.as_ref());
        let template = CaTemplate {
            serial,
            subject: self.subject(&serial),
            id: self.trust_domain.id(),
            public_key: key.public_key().clone(),
            not_before: now - BACKDATE,
            not_after: now + self.ttl,
            path_len: None,
            subject_key_id: None,
        };
        let certificate = parse(&issue_ca(&template, None, key.as_ref()).await?)?;
        let root = X509Authority {
            certificate: certificate.clone(),
            tainted: false,
            source: AuthoritySource::Own,
        };
        Ok(self.draft_of(&[certificate], vec![root]))
    }

    async fn signed_upstream(
        &self,
        upstream: &Arc<Upstream>,
        key: &Arc<dyn Signer>,
        now: SystemTime,
    ) -> Result<Draft, CaError> {
        let subject = self.subject(&random_serial(self.random.as_ref()));
        let csr = build_ca_csr(&subject, &self.trust_domain.id(), key.as_ref()).await?;
        let unfit = |why: &str| Err(CaError::UnfitUpstream(why.to_owned()));
        let minting = upstream.plugin.mint_x509_ca(&csr, self.ttl);
        let Ok(minted) = tokio::time::timeout(MINT_TIMEOUT, minting).await else {
            return unfit("it took too long");
        };
        let (minted, updates) = minted.map_err(CaError::Upstream)?;
        let Some(own) = minted.chain.first() else {
            return unfit("it has no certificate");
        };
        if own.public_key() != key.public_key() {
            return unfit("the certificate is for another key");
        }
        if own.subject_key_id().is_none() {
            return unfit("the certificate has no subject key identifier");
        }
        if minted.roots.is_empty() {
            return unfit("it names no root to trust");
        }
        if let Some(warning) = upstream.cut.warning(&minted, now, self.ttl) {
            tracing::warn!(plugin = upstream.plugin.name(), "{warning}");
        }
        let source = upstream.source();
        let roots = minted.roots.iter().map(|root| X509Authority {
            source: source.clone(),
            ..root.clone()
        });
        let mut draft = self.draft_of(&minted.chain, roots.collect());
        let upstream = Arc::clone(upstream);
        draft.once_published = Some(Box::new(move || {
            upstream.follow_roots(minted.roots, updates);
        }));
        Ok(draft)
    }

    fn draft_of(&self, chain: &[Certificate], roots: Vec<X509Authority>) -> Draft {
        let own = chain.first();
        let upstream = own
            .filter(|_| self.upstream.is_some())
            .and_then(Certificate::authority_key_id);
        let mut publication = Bundle::new(self.trust_domain.clone());
        publication.x509_authorities = roots;
        Draft {
            authority_id: own
                .and_then(Certificate::subject_key_id)
                .map(hex)
                .unwrap_or_default(),
            origin: Some(match self.upstream {
                None => Origin::SelfSigned,
                Some(_) => Origin::Upstream,
            }),
            upstream_authority_id: upstream.map(hex).unwrap_or_default(),
            not_after: own.map_or(SystemTime::UNIX_EPOCH, Certificate::not_after),
            chain: chain
                .iter()
                .map(|certificate| certificate.der().to_vec())
                .collect(),
            publication,
            once_published: None,
        }
    }

    /// Lets the authority sign a leaf and verifies it as a peer will: signature, names, path length, constraints, and
    /// that the way ends at a published root. Done once for each authority, so that it need not be done for each SVID.
    async fn try_out(
        &self,
        issuer: &X509Issuer,
        trust: &Bundle,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let key = KeyPair::generate(KeyType::EcP256)
            .map_err(|error| CaError::Trial(error.to_string()))?;
        let template = LeafTemplate {
            serial: random_serial(self.random.as_ref()),
            subject: Subject::spire(),
            id: SpiffeId::server(&self.trust_domain),
            dns_names: Vec::new(),
            public_key: key.public_key().clone(),
            not_before: now - BACKDATE,
            not_after: issuer.certificate.not_after().min(now + TRIAL),
        };
        let leaf = issue_leaf(&template, &issuer.as_issuer()).await?;
        let mut chain = vec![leaf.as_slice()];
        chain.extend(issuer.presented.iter().map(AsRef::as_ref));
        let roots = Roots::of(trust);
        verify_svid(&chain, &roots, now)
            .map(|_| ())
            .map_err(|error| CaError::Trial(error.to_string()))
    }
}

impl Kind for X509Kind {
    type Issuer = X509Issuer;
    const SERIES: Series = Series::X509;
    const KEY_PREFIX: &'static str = "x509-CA";
    const WHAT: &'static str = "X509 CA";
    const FAILURES: Failures = Failures {
        prepare: "failed to prepare X.509 authority",
        taint: "failed to taint X.509 authority",
        revoke: "failed to revoke X.509 authority",
    };
    const LABEL: &'static str = "x509_ca";

    fn key_type(&self) -> KeyType {
        self.key_type
    }

    async fn draft(&self, key: &Arc<dyn Signer>, now: SystemTime) -> Result<Draft, CaError> {
        match &self.upstream {
            None => self.self_signed(key, now).await,
            Some(upstream) => self.signed_upstream(upstream, key, now).await,
        }
    }

    async fn issuer(
        &self,
        record: &Record,
        key: Arc<dyn Signer>,
        trust: &Bundle,
        now: SystemTime,
    ) -> Result<X509Issuer, CaError> {
        let chain = record
            .chain
            .iter()
            .map(|der| parse(der))
            .collect::<Result<Vec<_>, _>>()?;
        let certificate = chain
            .first()
            .cloned()
            .ok_or_else(|| CaError::Trial("it has no certificate".to_owned()))?;
        let trial = |why: &str| Err(CaError::Trial(why.to_owned()));
        if !certificate.is_ca() {
            return trial("its certificate is not a CA's");
        }
        if certificate.public_key() != key.public_key() {
            return trial("its certificate is for another key");
        }
        let own_id = self.trust_domain.id();
        if certificate.uris().iter().any(|uri| uri != own_id.as_str())
            || certificate.uris().len() > 1
        {
            return trial("its certificate names another trust domain");
        }
        let presented = if record.is_self_signed() {
            Vec::new()
        } else {
            chain.iter().map(|one| Arc::from(one.der())).collect()
        };
        let key_id = certificate.subject_key_id().unwrap_or_default().to_vec();
        let issuer = X509Issuer {
            certificate,
            key,
            key_id,
            presented,
        };
        self.try_out(&issuer, trust, now).await?;
        Ok(issuer)
    }

    fn is_published(&self, record: &Record, bundle: &Bundle) -> bool {
        // Below an upstream authority the bundle holds its roots; whether the way leads there is what the trial shows.
        // An authority of the other making, from before the configuration changed, is not taken up again.
        match (&self.upstream, record.is_self_signed()) {
            (Some(_), self_signed) => !self_signed,
            (None, false) => false,
            (None, true) => record.chain.first().is_some_and(|own| {
                bundle
                    .x509_authorities
                    .iter()
                    .any(|authority| authority.certificate.der() == own.as_slice())
            }),
        }
    }

    fn is_below_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    fn check_revocable(
        &self,
        authority_id: &str,
        states: &AuthorityStates,
        _bundle: Option<&Bundle>,
    ) -> Result<(), &'static str> {
        if AuthorityState::is(&states.old, authority_id) {
            Ok(())
        } else {
            Err("only Old local authority can be revoked")
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
        let tainted = bundles.taint_x509_authority(trust_domain, authority_id);
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
        let revoked = bundles.revoke_x509_authority(trust_domain, authority_id);
        revoked.await.map(|_bundle| ())
    }
}

fn parse(der: &[u8]) -> Result<Certificate, CaError> {
    Certificate::from_der(der).map_err(|error| CaError::Trial(error.to_string()))
}

/// The X.509 part of a bundle as something to verify against.
#[derive(Debug)]
struct Roots(BTreeMap<TrustDomain, Arc<X509Bundle>>);

impl Roots {
    fn of(bundle: &Bundle) -> Self {
        Self(BTreeMap::from([(
            bundle.trust_domain.clone(),
            Arc::new(bundle.x509_bundle()),
        )]))
    }
}

impl BundleSource for Roots {
    fn x509_bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<X509Bundle>> {
        self.0.get(trust_domain).cloned()
    }
}
