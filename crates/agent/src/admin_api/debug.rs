//! The Debug service: the agent's SVID, how long it runs, what it holds. SPIRE: spire.agent.debug.v1.

use std::sync::Arc;
use std::time::SystemTime;

use proto::convert::spiffe_id_to_wire;
use proto::spire::agent::debug::v1::debug_server::Debug as DebugApi;
use proto::spire::agent::debug::v1::get_info_response::Cert;
use proto::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse};
use spiffe::clock::{Clock, unix_seconds};
use spiffe::id::SpiffeId;
use spiffe::x509::Certificate;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::gate::Gate;
use crate::node::NodeIdentity;

#[derive(Debug)]
pub(super) struct Debug {
    gate: Arc<Gate>,
    clock: Arc<dyn Clock>,
    started: SystemTime,
    node: watch::Receiver<NodeState>,
}

/// What the node is at the moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeState {
    pub(crate) identity: Option<NodeIdentity>,
    /// When the agent was last known to be in step with its server.
    pub(crate) last_sync: Option<SystemTime>,
}

impl Debug {
    pub(super) fn new(
        gate: Arc<Gate>,
        clock: Arc<dyn Clock>,
        node: watch::Receiver<NodeState>,
    ) -> Self {
        Self {
            gate,
            started: clock.now(),
            clock,
            node,
        }
    }
}

#[tonic::async_trait]
impl DebugApi for Debug {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let now = self.clock.now();
        let counts = self.gate.cache.counts();
        let node = self.node.borrow().clone();
        // While the watch stream is open, the server says at once what changes.
        let connected = self.gate.status.borrow().connected;
        let last_sync = Some(now).filter(|_| connected).or(node.last_sync);
        let chain = node
            .identity
            .as_ref()
            .map(|identity| identity.svid.chain.as_slice())
            .unwrap_or_default();
        let uptime = now.duration_since(self.started).unwrap_or_default();
        let x509_svids = count(counts.x509_svids);
        #[expect(
            deprecated,
            reason = "SPIRE's command line still shows this field beside the one that replaced it"
        )]
        let info = GetInfoResponse {
            svid_chain: chain.iter().map(to_wire).collect(),
            uptime: i32::try_from(uptime.as_secs()).unwrap_or(i32::MAX),
            svids_count: x509_svids,
            last_sync_success: last_sync.map(unix_seconds).unwrap_or_default(),
            cached_x509_svids_count: x509_svids,
            cached_jwt_svids_count: count(counts.jwt_svids),
            cached_svidstore_x509_svids_count: 0,
        };
        Ok(Response::new(info))
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn to_wire(certificate: &Certificate) -> Cert {
    let id = match certificate.uris() {
        [uri] => SpiffeId::parse(uri).ok(),
        _ => None,
    };
    Cert {
        id: id.as_ref().map(spiffe_id_to_wire),
        expires_at: unix_seconds(certificate.not_after()),
        subject: certificate.subject().to_string(),
    }
}
