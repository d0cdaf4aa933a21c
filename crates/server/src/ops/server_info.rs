//! What the server is and how much it holds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use spiffe::clock::Clock;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Certificate;

use crate::ca::Ca;
use crate::error::{Kind, OpError, refused};
use crate::registry::{AgentFilter, EntryFilter, Registry};

/// SPIRE: cacheExpiry.
const CACHE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct ServerInfo {
    trust_domain: TrustDomain,
    registry: Arc<Registry>,
    ca: Arc<Ca>,
    clock: Arc<dyn Clock>,
    started: SystemTime,
    last: Mutex<Option<(SystemTime, Arc<Info>)>>,
}

/// The server at one moment.
#[derive(Debug)]
pub(crate) struct Info {
    /// Of its own SVID, with the root.
    pub(crate) chain: Vec<Certificate>,
    pub(crate) uptime: Duration,
    pub(crate) agents: usize,
    pub(crate) entries: usize,
    /// SPIRE: counts the server's own bundle with the federated ones.
    pub(crate) bundles: usize,
}

impl ServerInfo {
    /// The server counts as started now.
    pub(crate) fn new(registry: Arc<Registry>, ca: Arc<Ca>, clock: Arc<dyn Clock>) -> Self {
        Self {
            trust_domain: registry.trust_domain().clone(),
            registry,
            ca,
            started: clock.now(),
            clock,
            last: Mutex::new(None),
        }
    }

    /// The present state, or one of a few seconds ago: counting takes its time.
    ///
    /// # Errors
    /// NotFound without a bundle.
    pub(crate) fn get(&self) -> Result<Arc<Info>, OpError> {
        let now = self.clock.now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, info)) = last.as_ref()
            && now.duration_since(*at).is_ok_and(|age| age < CACHE)
        {
            return Ok(Arc::clone(info));
        }
        let info = Arc::new(self.look(now)?);
        *last = Some((now, Arc::clone(&info)));
        Ok(info)
    }

    fn look(&self, now: SystemTime) -> Result<Info, OpError> {
        Ok(Info {
            chain: self.chain()?,
            uptime: now.duration_since(self.started).unwrap_or_default(),
            agents: self.registry.agent_count(&AgentFilter::default()),
            entries: self.registry.entry_count(&EntryFilter::default()),
            bundles: self.registry.bundles().len(),
        })
    }

    /// The server's certificates and the root that they lead to.
    fn chain(&self) -> Result<Vec<Certificate>, OpError> {
        let bundle = self
            .registry
            .bundle(&self.trust_domain)
            .ok_or_else(|| refused(Kind::NotFound, "trust domain bundle not found"))?;
        let shown = self.ca.server_svid().map(|svid| svid.chain.clone());
        let mut chain: Vec<_> = shown
            .unwrap_or_default()
            .iter()
            .filter_map(|der| Certificate::from_der(der).ok())
            .collect();
        let root = chain.last().and_then(|last| {
            let roots = bundle
                .x509_authorities
                .iter()
                .map(|authority| &authority.certificate);
            roots
                .filter(|root| root.der() != last.der())
                .find(|root| last.is_signed_by(root))
                .cloned()
        });
        chain.extend(root);
        Ok(chain)
    }
}
