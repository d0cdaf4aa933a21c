//! An upstream authority whose certificate and key lie in PEM files.
//!
//! The files can be replaced while the server runs: they are read again for each signature, and looked at every few
//! seconds for those who follow the roots. If they cannot be read then, the last good ones stay in use.

mod problem;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use spiffe::bundle::{AuthoritySource, X509Authority};
use spiffe::clock::Clock;
use spiffe::csr::Csr;
use spiffe::key::KeyPair;
use spiffe::random::Random;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::{CaTemplate, Certificate, Issuer, issue_ca, random_serial};

use crate::error::Error;
use crate::lifecycle::{HostServices, Lifecycle};
use crate::upstream_authority::{MintedCa, Updates, UpstreamAuthority};
use config::Section;
use config::private_file;
use problem::Problem;

const NAME: &str = "disk";

/// SPIRE: `DefaultUpstreamCATTL`.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// SPIRE: `DefaultUpstreamCABackdate`.
const BACKDATE: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 4 << 20;
/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Certificates from the upstream authority to a root, at most.
const MAX_PATH: usize = 8;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUpstreamConfig {
    /// PEM, the authority's certificate first, then those that lead towards a root.
    pub cert_file_path: PathBuf,
    /// PEM, the key of the first certificate.
    pub key_file_path: PathBuf,
    /// PEM, the roots. Without it the certificate must be the only one and self-signed.
    pub bundle_file_path: Option<PathBuf>,
}

impl DiskUpstreamConfig {
    /// Reads the plugin's `plugin_data`.
    pub fn read(data: &Section) -> Option<Self> {
        let certificate = data.required_string("cert_file_path", "/etc/plastron/upstream.crt");
        let key = data.required_string("key_file_path", "/etc/plastron/upstream.key");
        let bundle = data.non_empty_string("bundle_file_path");
        Some(Self {
            cert_file_path: certificate?.into(),
            key_file_path: key?.into(),
            bundle_file_path: bundle.map(PathBuf::from),
        })
    }
}

/// The plugin.
#[derive(Debug)]
pub struct DiskUpstreamAuthority {
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    files: Arc<Files>,
}

/// The files, shared with those who follow them.
#[derive(Debug)]
struct Files {
    clock: Arc<dyn Clock>,
    in_force: Mutex<InForce>,
}

/// Which files are used, and what was in them when they were last good.
#[derive(Debug, Clone)]
struct InForce {
    config: DiskUpstreamConfig,
    upstream: Arc<Upstream>,
    /// Why they could not be used when they were read last, said once in the log.
    complaint: Option<String>,
}

/// The files' content, checked.
#[derive(Debug)]
struct Upstream {
    certificate: Certificate,
    key: KeyPair,
    /// What is given out after a new certificate: nothing when the authority is the root itself.
    chain: Vec<Certificate>,
    roots: Vec<Certificate>,
}

impl DiskUpstreamAuthority {
    /// Reads and checks the files. Blocks.
    pub fn open(
        config: DiskUpstreamConfig,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self, Error> {
        let upstream = Arc::new(load(&config, clock.now())?);
        let in_force = Mutex::new(InForce {
            config,
            upstream,
            complaint: None,
        });
        Ok(Self {
            trust_domain,
            clock: Arc::clone(&clock),
            random,
            files: Arc::new(Files { clock, in_force }),
        })
    }
}

impl Files {
    fn in_force(&self) -> MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self, config: DiskUpstreamConfig) -> Result<Upstream, Error> {
        let now = self.clock.now();
        let loaded = tokio::task::spawn_blocking(move || load(&config, now)).await;
        Ok(loaded.map_err(|_cancelled| Error::interrupted(NAME))??)
    }

    /// What the files hold now, or held when they were last good.
    async fn reload(&self) -> Arc<Upstream> {
        let before = self.in_force().clone();
        let loaded = self.load(before.config.clone()).await;
        let mut in_force = self.in_force();
        // Other files may have been configured meanwhile.
        if in_force.config != before.config {
            return Arc::clone(&in_force.upstream);
        }
        match loaded {
            Ok(upstream) => {
                in_force.complaint = None;
                in_force.upstream = Arc::new(upstream);
            }
            Err(error) => {
                let complaint = Some(error.to_string());
                if in_force.complaint != complaint {
                    tracing::warn!(%error, "upstream authority: using the files as they were last read");
                }
                in_force.complaint = complaint;
            }
        }
        Arc::clone(&in_force.upstream)
    }

    /// The roots whenever they differ from `known`, without end.
    fn updates(self: Arc<Self>, known: Option<Vec<X509Authority>>) -> Updates<X509Authority> {
        let next = async |(files, mut known): (Arc<Self>, Option<Vec<X509Authority>>)| {
            loop {
                if known.is_some() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                let roots = files.reload().await.roots();
                if known.as_ref() != Some(&roots) {
                    known = Some(roots.clone());
                    return Some((Ok(roots), (files, known)));
                }
            }
        };
        stream::unfold((self, known), next).boxed()
    }
}

impl Upstream {
    fn roots(&self) -> Vec<X509Authority> {
        let roots = self.roots.iter().cloned();
        roots
            .map(|certificate| X509Authority {
                certificate,
                tainted: false,
                source: AuthoritySource::Unknown,
            })
            .collect()
    }
}

#[async_trait]
impl Lifecycle for DiskUpstreamAuthority {
    type Config = DiskUpstreamConfig;

    async fn open(config: DiskUpstreamConfig, host: &HostServices) -> Result<Self, Error> {
        let HostServices {
            trust_domain,
            clock,
            random,
            ..
        } = host.clone();
        tokio::task::spawn_blocking(move || Self::open(config, trust_domain, clock, random))
            .await
            .map_err(|_cancelled| Error::interrupted(NAME))?
    }

    async fn reconfigure(&self, config: DiskUpstreamConfig) -> Result<(), Error> {
        let upstream = Arc::new(self.files.load(config.clone()).await?);
        *self.files.in_force() = InForce {
            config,
            upstream,
            complaint: None,
        };
        Ok(())
    }
}

#[async_trait]
impl UpstreamAuthority for DiskUpstreamAuthority {
    fn name(&self) -> &str {
        NAME
    }

    async fn mint_x509_ca(
        &self,
        csr_der: &[u8],
        preferred_ttl: Duration,
    ) -> Result<(MintedCa, Updates<X509Authority>), Error> {
        let csr = Csr::parse_and_verify(csr_der).map_err(Problem::Csr)?;
        let id = self.trust_domain.id();
        if csr.uris().len() != 1 {
            return Err(Problem::CsrContent("CSR must have exactly one URI SAN".to_owned()).into());
        }
        if csr.uris().first().map(String::as_str) != Some(id.as_str()) {
            return Err(
                Problem::CsrContent(format!("CSR must use the trust domain ID {id}")).into(),
            );
        }
        let upstream = self.files.reload().await;
        let now = self.clock.now();
        let ttl = if preferred_ttl.is_zero() {
            DEFAULT_TTL
        } else {
            preferred_ttl
        };
        let not_after = now
            .checked_add(ttl)
            .unwrap_or(upstream.certificate.not_after());
        let template = CaTemplate {
            serial: random_serial(&*self.random),
            subject: csr.subject(),
            id,
            public_key: csr.public_key().clone(),
            not_before: now.checked_sub(BACKDATE).unwrap_or(now),
            not_after: not_after.min(upstream.certificate.not_after()),
            path_len: None,
            subject_key_id: None,
        };
        let own_key_id = upstream.key.public_key().subject_key_id();
        let issuer = Issuer {
            subject_der: upstream.certificate.subject_der(),
            key_id: upstream.certificate.subject_key_id().unwrap_or(&own_key_id),
            signer: &upstream.key,
        };
        let der = issue_ca(&template, Some(&issuer), &upstream.key)
            .await
            .map_err(Problem::Build)?;
        let minted =
            Certificate::from_der(&der).map_err(|error| Problem::CsrContent(error.to_string()))?;
        let mut chain = vec![minted];
        chain.extend(upstream.chain.iter().cloned());
        let roots = upstream.roots();
        let updates = Arc::clone(&self.files).updates(Some(roots.clone()));
        Ok((MintedCa { chain, roots }, updates))
    }

    async fn subscribe_roots(&self) -> Result<Updates<X509Authority>, Error> {
        Ok(Arc::clone(&self.files).updates(None))
    }
}

fn load(config: &DiskUpstreamConfig, now: SystemTime) -> Result<Upstream, Problem> {
    let key = load_key(&config.key_file_path)?;
    let certificates = load_certificates("upstream CA cert", &config.cert_file_path)?;
    let Some(certificate) = certificates.first().cloned() else {
        return Err(Problem::NoAuthority);
    };
    let (chain, roots) = match &config.bundle_file_path {
        Some(path) => (certificates, load_certificates("upstream CA bundle", path)?),
        None if certificates.len() == 1 => (Vec::new(), certificates),
        None => return Err(Problem::NotSelfSigned),
    };
    if key.public_key() != certificate.public_key() {
        return Err(Problem::KeyMismatch);
    }
    if !certificate.is_ca() {
        return Err(Problem::NoAuthority);
    }
    if !valid_at(&certificate, now) {
        return Err(Problem::NotValidNow);
    }
    if !leads_to_root(&certificate, &chain, &roots, now) {
        return Err(Problem::NoPath);
    }
    Ok(Upstream {
        certificate,
        key,
        chain,
        roots,
    })
}

fn valid_at(certificate: &Certificate, now: SystemTime) -> bool {
    certificate.not_before() <= now && now <= certificate.not_after()
}

/// Both files are the operator's own, so this finds mistakes, not forgeries: whether each step is signed by the next.
fn leads_to_root(
    certificate: &Certificate,
    chain: &[Certificate],
    roots: &[Certificate],
    now: SystemTime,
) -> bool {
    let mut at = certificate;
    for _ in 0..MAX_PATH {
        let is_root = |root: &&Certificate| {
            root.der() == at.der() && (!root.is_self_issued() || root.is_signed_by(root))
        };
        let signs = |by: &&Certificate| by.is_ca() && valid_at(by, now) && at.is_signed_by(by);
        if roots.iter().any(|root| is_root(&root) || signs(&root)) {
            return true;
        }
        match chain.iter().find(|by| by.der() != at.der() && signs(by)) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

fn load_text(what: &'static str, path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, Problem> {
    private_file::read(path, MAX_BYTES).map_err(|source| Problem::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

fn as_text<'a>(what: &'static str, path: &Path, bytes: &'a [u8]) -> Result<&'a str, Problem> {
    std::str::from_utf8(bytes).map_err(|_not_text| Problem::Content {
        what,
        path: path.to_owned(),
        why: "it is not PEM".to_owned(),
    })
}

fn load_key(path: &Path) -> Result<KeyPair, Problem> {
    const WHAT: &str = "upstream CA key";
    let bytes = load_text(WHAT, path)?;
    KeyPair::from_pem(as_text(WHAT, path, &bytes)?).map_err(|error| Problem::Content {
        what: WHAT,
        path: path.to_owned(),
        why: error.to_string(),
    })
}

fn load_certificates(what: &'static str, path: &Path) -> Result<Vec<Certificate>, Problem> {
    let bytes = load_text(what, path)?;
    let content = |why: String| Problem::Content {
        what,
        path: path.to_owned(),
        why,
    };
    let certificates = Certificate::parse_pem_bundle(as_text(what, path, &bytes)?)
        .map_err(|error| content(error.to_string()))?;
    if certificates.is_empty() {
        return Err(content("no PEM blocks".to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests;
