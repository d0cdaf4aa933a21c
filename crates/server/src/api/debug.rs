//! The Debug service: what the server is and how much it holds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use proto::convert::spiffe_id_to_wire;
use proto::spire::api::server::debug::v1::debug_server::Debug as DebugApi;
use proto::spire::api::server::debug::v1::{GetInfoRequest, GetInfoResponse, get_info_response};
use spiffe::clock::{Clock, unix_seconds};
use spiffe::id::SpiffeId;
use spiffe::trust_domain::TrustDomain;
use spiffe::x509::Certificate;
use tonic::{Request, Response, Status};

use super::wire;
use crate::ca::Ca;
use crate::error::{Kind, OpError, refused};
use crate::registry::{AgentFilter, EntryFilter, Registry};

/// SPIRE: cacheExpiry.
const CACHE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct DebugService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) registry: Arc<Registry>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started: SystemTime,
    pub(crate) ca: Arc<Ca>,
    pub(crate) last: Mutex<Option<(SystemTime, GetInfoResponse)>>,
}

#[tonic::async_trait]
impl DebugApi for DebugService {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let now = self.clock.now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, info)) = last.as_ref()
            && now.duration_since(*at).is_ok_and(|age| age < CACHE)
        {
            return Ok(Response::new(info.clone()));
        }
        let info = self.info(now)?;
        *last = Some((now, info.clone()));
        Ok(Response::new(info))
    }
}

impl DebugService {
    fn info(&self, now: SystemTime) -> Result<GetInfoResponse, OpError> {
        let bundle = self
            .registry
            .bundle(&self.trust_domain)
            .ok_or_else(|| refused(Kind::NotFound, "trust domain bundle not found"))?;
        let shown = self
            .ca
            .server_svid()
            .map(|svid| svid.chain.clone())
            .unwrap_or_default();
        let mut chain: Vec<_> = shown
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
        let uptime = now
            .duration_since(self.started)
            .unwrap_or_default()
            .as_secs();
        Ok(GetInfoResponse {
            svid_chain: chain.iter().map(cert_to_wire).collect(),
            uptime: i32::try_from(uptime).unwrap_or(i32::MAX),
            agents_count: wire::count(self.registry.agent_count(&AgentFilter::default())),
            entries_count: wire::count(self.registry.entry_count(&EntryFilter::default())),
            // SPIRE: counts the own bundle with the federated.
            federated_bundles_count: wire::count(self.registry.bundles().len()),
        })
    }
}

fn cert_to_wire(certificate: &Certificate) -> get_info_response::Cert {
    let id = match certificate.uris() {
        [uri] => SpiffeId::parse(uri).ok(),
        _ => None,
    };
    get_info_response::Cert {
        id: id.as_ref().map(spiffe_id_to_wire),
        expires_at: unix_seconds(certificate.not_after()),
        subject: certificate.subject().to_string(),
    }
}
